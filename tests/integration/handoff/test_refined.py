"""The whole of it: the cloud's attention shortens the device's prefill, and the device finishes from that."""

import math
from contextlib import aclosing

import anyio
import pytest
from cloud_support import KEY
from held_engine import OwnSlot

from pdd_core.patience import Patience
from pdd_core.refinement.guard import Guard
from pdd_core.timeline import Source
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession, CloudClient

pytestmark = pytest.mark.anyio

FACTS = [f"Room {n} of the museum shows things that were found in the year {1700 + 7 * n}." for n in range(36)]
CHAT = [{"role": "user", "content": " ".join(FACTS) + "\n\nWhen were the things in room 23 found?"}]
WAIT = Patience(late_s=math.inf, first_token_s=120.0, device_step_s=240.0)
"""However soon the cloud has used its budget: it is not asked for more, which might be all the rest."""
LENIENT = Guard(threshold=20.0)
"""What is read is tested here; how it is judged, in `device/test_refined_reading.py`."""


class Looked(CloudClient):
    """The real cloud's client, which tells when the refined prompt has come, or none will."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.looked = anyio.Event()

    async def stream(self, *args, on_update, **options):
        def told(update):
            on_update(update)
            if update["refinement"] is not None:
                self.looked.set()

        async with aclosing(super().stream(*args, on_update=told, **options)) as chunks:
            async for chunk in chunks:
                yield chunk
        self.looked.set()


class Held(OwnSlot):
    """The real engine, which reads on only then: however long the cloud takes for the prompt, it is far behind."""

    def __init__(self, engine, cloud):
        super().__init__(engine)
        self._cloud, self._begun = cloud, False

    async def extend(self, *args, **options):
        if self._begun:
            await self._cloud.looked.wait()
        self._begun = True
        return await self.slot.extend(*args, **options)


@pytest.fixture
def answered(cloud, engine):
    async def answer(**fields):
        engine.reset()
        request = AnswerRequest(
            prompt_token_ids=engine.vocab.render_chat(CHAT), max_tokens=24, decode_budget=16, **fields
        )
        async with (
            Looked(cloud.base_url, api_key=KEY) as client,
            AnswerSession(
                request,
                engine=Held(engine, client),
                cloud=client,
                rate=math.inf,
                guard=LENIENT,
                patience=WAIT,
            ) as session,
        ):
            shown = [token async for token in session]
        return shown, session.outcome

    return answer


async def test_the_device_reads_less_and_finishes_the_answer(answered):
    shown, outcome = await answered(refine_ratio=0.25)
    report = outcome.refinement
    assert report is not None
    assert report.ratio == 0.25
    assert report.saved_tokens > 300, (report, outcome.decisions)
    assert [token.index for token in shown] == list(range(len(shown)))
    assert outcome.finish_reason in {"stop", "length"}
    assert outcome.timeline.count(Source.CLOUD) >= 1
    assert all(token.logprobs is None for token in shown)  # the guard's are its own


async def test_at_ratio_1_nothing_is_left_out(answered):
    _, outcome = await answered(refine_ratio=1.0)
    assert outcome.refinement.saved_tokens == 0

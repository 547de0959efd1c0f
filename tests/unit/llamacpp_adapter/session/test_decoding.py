"""Tokens that come several in a step: counted, shown and stopped as single ones are."""

import math
from contextlib import asynccontextmanager
from itertools import pairwise

import anyio
import pytest

from pdd_core.patience import Patience
from pdd_core.plugins import Policies
from pdd_core.policies.pacing import AdaptivePacing
from pdd_llamacpp_adapter.cloud.cloud_stream import CloudEnd
from pdd_llamacpp_adapter.engine.device_profile import DeviceProfile
from pdd_llamacpp_adapter.engine.drafting import LookupDrafter
from pdd_llamacpp_adapter.engine.speed import DeviceSpeed
from pdd_llamacpp_adapter.engine.steps import Step
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.session.answer_session import AnswerSession

pytestmark = pytest.mark.anyio

PROMPT = list(range(1, 51))
STEP_S = 0.1


class Bursts:
    """`FakeEngine.generate` with several tokens in each step."""

    drafts = True

    def __init__(self, engine, sizes):
        self._engine, self._sizes = engine, list(sizes)
        self.drafter, self.steps = None, 0

    def __getattr__(self, name):
        return getattr(self._engine, name)

    @property
    def memory(self):
        return self._engine

    @asynccontextmanager
    async def exclusive(self, prompt=()):
        yield self

    async def generate(self, logits, choose, drafter=None):
        self.drafter = drafter
        yield Step((choose(logits),))
        while True:
            size = self._sizes[min(self.steps, len(self._sizes) - 1)]
            self.steps += 1
            await anyio.sleep(STEP_S * (1 if size == 1 else 2))
            made = []
            while len(made) < size and not (made and made[-1].last):
                logits[:] = 0
                logits[self._engine.held[-1] + 1 + len(self.made)] = 9.0
                made.append(choose(logits.copy()))
                self.made.append(made[-1].token)
            yield Step(tuple(made), size, STEP_S * (1 if size == 1 else 2))
            if made[-1].last:
                return

    made = ()


@pytest.fixture
def bursts(fake_engine):
    def make(*sizes):
        engine = Bursts(fake_engine(), sizes)
        engine.made = [0]  # the first token is chosen from the prompt's logits
        return engine

    return make


def session_of(engine, *, policies, rate=math.inf, **fields):
    options = {name: fields.pop(name) for name in ("speed", "profile", "cloud") if name in fields}
    request = AnswerRequest(**{"prompt_token_ids": PROMPT, "max_tokens": 20, **fields})
    patience = Patience(late_s=math.inf)
    return AnswerSession(request, engine=engine, policies=policies, rate=rate, patience=patience, **options)


async def test_all_tokens_count_as_work_and_only_single_steps_tell_the_step(bursts, policies):
    speed = DeviceSpeed()
    async with session_of(bursts(1, 4, 4, 1, 4), policies=policies, speed=speed) as session:
        ids = [token.token_id async for token in session]
    assert ids == list(range(51, 71))
    assert speed.step_s == pytest.approx(STEP_S)
    assert session.work.decoded_tokens == 19
    assert session.work.decoded_s == pytest.approx((1 + 2 + 2 + 1 + 2 + 2 + 2) * STEP_S)


async def test_tokens_of_one_step_arrive_together(bursts, policies):
    async with session_of(bursts(1, 3, 3), policies=policies) as session:
        tokens = [token async for token in session]
    arrived = [token.received_at for token in tokens]
    assert arrived[2] == arrived[3] == arrived[4] < arrived[5]


@pytest.mark.parametrize("ends", [54, 55, 56])
async def test_a_stop_string_ends_the_answer_in_the_middle_of_a_step(bursts, policies, ends):
    async with session_of(bursts(1, 6), policies=policies, stop=(f"<{ends}>",)) as session:
        ids = [token.token_id async for token in session]
    assert ids == list(range(51, ends + 1))
    assert (session.outcome.finish_reason, session.outcome.stop_reason) == ("stop", f"<{ends}>")
    assert session.outcome.timeline.text == "".join(f"<{token}>" for token in range(51, ends))


async def test_a_stop_token_and_a_length_end_it_in_the_middle_as_well(bursts, policies):
    async with session_of(bursts(6), policies=policies, stop_token_ids=(55,)) as session:
        assert [token.token_id async for token in session] == list(range(51, 56))
    assert session.outcome.finish_reason == "stop"
    async with session_of(bursts(6), policies=policies, max_tokens=4) as session:
        assert [token.token_id async for token in session] == list(range(51, 55))
    assert session.outcome.finish_reason == "length"


async def test_leaving_in_the_middle_of_a_burst_ends_the_engines_work(bursts, policies):
    engine = bursts(5)
    async with session_of(engine, policies=policies, rate=10.0, max_tokens=200) as session:
        async for token in session:
            if token.token_id == 57:
                break
    assert session.outcome.finish_reason == "cancelled"
    assert engine.steps < 20


async def test_bursts_are_shown_evenly(bursts):
    adaptive = Policies({"adaptive": AdaptivePacing()}, allow=())
    engine = bursts(*[1] * 6, *[4, 1, 1] * 20)
    async with session_of(engine, policies=adaptive, rate=0.9 / STEP_S, max_tokens=60) as session:
        tokens = [token async for token in session]
    gaps = [b.shown_at - a.shown_at for a, b in pairwise(tokens)]
    assert max(gaps[8:]) < 1.7 * STEP_S, "a longer step is hidden by what the ones before brought"
    assert min(gaps[:25]) > 0.5 * STEP_S


async def test_the_drafter_knows_prompt_and_answer(bursts, policies, fake_cloud):
    engine = bursts(1)
    cloud = fake_cloud([[51], [52, 53], CloudEnd.BUDGET])
    async with session_of(engine, policies=policies, cloud=cloud, decode_budget=3) as session:
        ids = [token.token_id async for token in session]
    assert ids == list(range(51, 71))
    assert isinstance(engine.drafter, LookupDrafter)
    assert engine.drafter._ids[: len(PROMPT) + 3] == [*PROMPT, 51, 52, 53]
    assert engine.drafter._left == 17


async def test_a_profile_gets_no_drafts(bursts, policies):
    engine = bursts(1)
    profile = DeviceProfile("slow", 200.0, 25.0)
    async with session_of(engine, policies=policies, profile=profile) as session:
        assert [token.token_id async for token in session] == list(range(51, 71))
    assert engine.drafter is None
    assert engine.steps == 0

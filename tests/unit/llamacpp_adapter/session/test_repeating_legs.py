"""Whatever breaks in a further leg of the cloud's: the text is that of an undisturbed run.

With a penalty, a further leg makes the answer again from its beginning; a stop string may begin in one leg and end
in another. The cloud is a recording, served over real HTTP, and the device chooses as the real one.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, replace

import anyio
import numpy as np
import pytest
from fault_cloud import ANSWER_FAULTS, PATIENCE, STREAM_FAULTS, Fault, FaultCloud, Recording, patience
from step_by_step import StepByStep

from pdd_core.errors import DeviceEngineFailed, PDDError
from pdd_core.fingerprint import fingerprint
from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.session.answer_session import AnswerSession
from pdd_llamacpp_adapter.session.answer_text import AnswerText

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

LETTERS = "abcdefgh"
TABLE = [one + other for one in LETTERS for other in LETTERS]
EOS = len(TABLE) - 1
PROMPT = (1, 2, 3)
LENGTH = 16
BUDGET = 4
REPEATED = (0, BUDGET - 1)
NEW = (BUDGET, 2 * BUDGET - 1)
"""Places in a second leg."""
SIDE_BY_SIDE = 16
HUNG = 0.3
"""Seconds."""


@pytest.fixture
def anyio_backend():
    """Sockets take real time."""
    return "asyncio"


class LetterVocabulary:
    """Every token is two letters, but for the end."""

    eos_id = EOS
    stop_ids = frozenset({EOS})
    size = len(TABLE)
    token_bytes = tuple(text.encode() for text in TABLE)

    def is_special(self, token_id):
        return token_id == EOS

    def piece(self, token_id):
        return TABLE[token_id].encode() if token_id != EOS else b""


class LetterEngine(StepByStep):
    """Logits by place and last token. Begins when `ready` is over, fails at call `fails_at`."""

    vocab = LetterVocabulary()
    n_ctx = 512

    def __init__(self, *, ready=anyio.lowlevel.checkpoint, fails_at=None):
        self._ready, self._fails_at = ready, fails_at
        self._length = self._calls = 0

    async def start(self, prompt, *, refined=True):
        await self._ready()
        return 0

    async def extend(self, ids, *, want_logits=False):
        self._calls += 1
        if self._calls == self._fails_at:
            raise DeviceEngineFailed("llama_decode returned -3")
        await anyio.lowlevel.checkpoint()
        self._length += len(ids)
        if not want_logits:
            return None
        logits = np.random.default_rng((self._length, ids[-1])).normal(size=len(TABLE)).astype(np.float32)
        logits[EOS] = -9.0
        return logits


@dataclass
class Shown:
    """What the consumer of one answer sees."""

    ids: list
    text: str
    error: PDDError | None
    finish: tuple
    repeated: int


async def shown(request, device, waits=PATIENCE, cloud=None):
    ids, texts, error = [], [], None
    with anyio.fail_after(60):
        async with AnswerSession(request, engine=device, cloud=cloud, rate=math.inf, patience=waits) as answer:
            try:
                async for token in answer:
                    assert token.index == len(ids)
                    ids.append(token.token_id)
                    texts.append(token.text)
            except PDDError as lost:
                error = lost
            texts.append(answer.tail)
    outcome = answer.outcome
    finish = (outcome.finish_reason, outcome.stop_reason)
    return Shown(ids, "".join(texts), error, finish, outcome.cloud_tokens_in_vain)


def asked(**fields):
    return AnswerRequest(prompt_token_ids=PROMPT, max_tokens=LENGTH, decode_budget=BUDGET, **fields)


def recorded(answer):
    """An undisturbed answer as the cloud would stream it."""
    choices = [
        {"index": 0, "text": TABLE[token], "token_ids": [token], "finish_reason": None, "stop_reason": None}
        for token in answer.ids
    ]
    choices[-1]["finish_reason"], choices[-1]["stop_reason"] = answer.finish
    head = {"id": "c", "object": "text_completion", "created": 1, "model": "m"}
    return Recording(PROMPT, [{**head, "choices": [choice]} for choice in choices])


def info():
    tokenizer = fingerprint(LetterVocabulary.token_bytes, special_ids=(EOS,), eos_ids=(EOS,))
    return {
        "schema_version": "2.0",
        "plugin_version": "0.1.0",
        "engine": "vllm",
        "model": "m",
        "max_model_len": 2048,
        "tokenizer": json.loads(tokenizer.model_dump_json()),
        "features": ["decode_budget", "budget_policies"],
        "refinement": "off",
        "limits": {"max_decode_budget": 256, "max_handoffs": 64, "ttl_s": 60.0, "cancel_timeout_s": 3.0},
    }


def cases(places):
    """(fault, when the device is ready, the device's failing call)."""
    devices = (("behind it", None), ("never", None), ("at once", 4))
    for (ready, fails_at), later in itertools.product(devices, (None, "down")):
        for kind, at in itertools.product(STREAM_FAULTS, places):
            yield Fault(kind, at, later, leg=2), ready, fails_at
        for kind in ANSWER_FAULTS:
            yield Fault(kind, 0, later, leg=2), ready, fails_at


async def undisturbed(penalty, stops):
    """The request, and the device's own answer to it."""
    request = asked(frequency_penalty=penalty)
    answer = await shown(request, LetterEngine())
    if stops:
        # begins and ends inside of tokens, and within what a third leg would bring
        request = replace(request, stop=[answer.text[17:22]])
        answer = await shown(request, LetterEngine())
    assert (answer.error, answer.finish[0]) == (None, "stop" if stops else "length")
    assert len(answer.ids) > 2 * BUDGET
    return request, answer


async def test_the_penalty_and_the_stop_string_matter():
    _, plain = await undisturbed(0.0, stops=False)
    request, penalised = await undisturbed(1.5, stops=True)
    assert penalised.ids != plain.ids[: len(penalised.ids)]
    assert penalised.text == "".join(TABLE[token] for token in penalised.ids).partition(request.stop[0])[0]


@pytest.mark.parametrize(("penalty", "places"), [(1.5, (*REPEATED, *NEW)), (0.0, NEW)], ids=["again", "on"])
async def test_no_fault_of_a_further_leg_loses_repeats_or_changes_anything(penalty, places):
    request, whole = await undisturbed(penalty, stops=True)
    happened = repeated = 0
    limiter = anyio.CapacityLimiter(SIDE_BY_SIDE)
    async with (
        FaultCloud(info(), [recorded(whole)]).running() as server,
        CloudClient(server.url, api_key="x") as client,
    ):
        await client.connect(LetterEngine.vocab)

        async def one(key, fault, ready, fails_at):
            nonlocal happened, repeated
            name = (fault, ready, fails_at)

            async def behind_it():
                while not fault.happened:
                    await anyio.sleep(0.01)

            wait = {"behind it": behind_it, "never": anyio.sleep_forever, "at once": anyio.lowlevel.checkpoint}
            device = LetterEngine(ready=wait[ready], fails_at=fails_at)
            server.faults[key] = fault
            async with limiter:
                answer = await shown(
                    replace(request, cache_salt=key), device, patience(fault, ready, hung=HUNG), cloud=client
                )
            if answer.error is None:
                assert (answer.ids, answer.text, answer.finish) == (whole.ids, whole.text, whole.finish), name
            else:
                cloud_returns = fault.later is None and fault.kind not in ("401", "404")
                assert not cloud_returns, f"{name}: {answer.error}"
                assert ready != "behind it", f"{name}: {answer.error}"
                assert answer.ids == whole.ids[: len(answer.ids)], name
                text = AnswerText(LetterEngine.vocab.piece, stop=request.stop)
                assert answer.text == "".join(map(text.push, answer.ids)) + text.flush(), name
            happened += fault.happened
            repeated += answer.repeated > 0

        async with anyio.create_task_group() as tasks:
            for number, case in enumerate(cases(places)):
                tasks.start_soon(one, f"case-{number}", *case)
    count = len(server.posts)
    assert happened > 0.9 * count
    assert repeated > 0.5 * count * bool(penalty)

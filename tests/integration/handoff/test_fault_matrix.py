"""Whatever breaks between device and cloud, and at whatever token: the text is that of an undisturbed run.

The cloud is a recording of the real one, served over real HTTP; the device is the real llama.cpp, asked once for
each sequence of tokens that comes up, so that thousands of answers take minutes.
"""

from __future__ import annotations

import itertools
import json
import math
import time

import anyio
import exhaustive
import httpx2
import numpy as np
import pytest
from cloud_support import KEY, PROMPTS, new_id
from fault_cloud import ANSWER_FAULTS, CANCEL_FAULTS, STREAM_FAULTS, Fault, FaultCloud, Recording, patience
from step_by_step import StepByStep

from pdd_core.errors import DeviceEngineFailed, PDDError
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession, CloudClient
from pdd_llamacpp_adapter.cloud.cloud_route import Way

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(1200)]

LENGTH = 24
BUDGET = 10
SOON = 6
SIDE_BY_SIDE = 16
HUNG = 0.5
"""Seconds."""


class RememberedEngine(StepByStep):
    """The real engine's greedy choices, each computed once. Begins as `ready` says, fails at call `fails_at`."""

    def __init__(self, real, known, *, ready="at once", fails_at=None):
        self._real, self._known, self._ready, self._fails_at = real, known, ready, fails_at
        self.vocab, self.n_ctx = real.vocab, real.n_ctx
        self._held: tuple = ()
        self._calls = 0

    async def start(self, prompt, *, refined=True):
        if self._ready == "late":
            await anyio.sleep(0.25)
        elif self._ready == "never":
            await anyio.sleep(math.inf)
        return 0

    async def extend(self, ids, *, want_logits=False):
        self._calls += 1
        if self._calls == self._fails_at:
            raise DeviceEngineFailed("llama_decode returned -3")
        await anyio.lowlevel.checkpoint()
        self._held += tuple(ids)
        if not want_logits:
            return None
        if self._held not in self._known:
            async with self._real.exclusive() as slot:
                if self._held not in self._known:
                    kept = await slot.memory.start(self._held)
                    logits = await slot.extend(self._held[kept:], want_logits=True)
                    self._known[self._held] = int(np.argmax(logits))
        logits = np.zeros(self.vocab.size, dtype=np.float32)
        logits[self._known[self._held]] = 1.0
        return logits


def record(cloud, prompt):
    """One opted-in answer of the real cloud, event by event."""
    body = {
        "model": "smollm2",
        "prompt": prompt,
        "max_tokens": LENGTH,
        "temperature": 0,
        "stream": True,
        "return_token_ids": True,
        "vllm_xargs": {"pdd_handoff": new_id(), "pdd_decode_budget": LENGTH},
    }
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx2.stream(
        "POST", f"{cloud.base_url}/completions", json=body, headers=headers, timeout=60
    ) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    return Recording(tuple(prompt), [event for event in events if event["choices"]])


@pytest.fixture(scope="module")
def info(cloud):
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx2.get(f"{cloud.base_url}/pdd/info", headers=headers, timeout=30).raise_for_status().json()


@pytest.fixture(scope="module")
def recordings(cloud, engine):
    made = [record(cloud, engine.vocab.tokenize(text)) for text in PROMPTS[1:13]]
    return [recording for recording in made if len(recording.events) == LENGTH]


BOUNDARIES = (0, 1, BUDGET - 1, BUDGET, BUDGET + 1, LENGTH - 1)
"""Tokens at which something else begins or ends."""


def cases(tokens):
    """(fault, when the device is ready, the device's failing call), for faults at each of `tokens`."""
    for kind, at, later, ready in itertools.product(
        STREAM_FAULTS, tokens, (None, "down"), ("at once", "late", "never")
    ):
        if ready != "at once" or at < SOON:  # a device that is ready at once takes over before the later ones
            yield Fault(kind, at, later), ready, None
    for kind, later, ready in itertools.product(ANSWER_FAULTS, (None, "down"), ("at once", "late", "never")):
        yield Fault(kind, 0, later), ready, None
    for cancel in CANCEL_FAULTS:
        yield Fault(cancel=cancel), "at once", None
    for call, later in itertools.product(tokens, (None, "down")):
        if call:
            yield Fault(later=later), "at once", call


@pytest.mark.parametrize(
    ("tokens", "prompts", "least"),
    [
        pytest.param(BOUNDARIES, 1, 200, id="boundaries"),
        pytest.param(range(LENGTH), 4, 2000, id="every token", marks=pytest.mark.exhaustive),
    ],
)
async def test_no_fault_loses_repeats_or_changes_a_token(info, recordings, engine, capsys, tokens, prompts, least):
    known: dict = {}

    async def alone(recording):
        request = AnswerRequest(prompt_token_ids=recording.prompt, max_tokens=LENGTH)
        async with AnswerSession(request, engine=RememberedEngine(engine, known), rate=math.inf) as answer:
            return [token.token_id async for token in answer]

    # where two tokens are nearly tied, the engines may differ without any fault
    recordings = [recording for recording in recordings if await alone(recording) == recording.ids][:prompts]
    assert len(recordings) == prompts
    begun = time.monotonic()
    count = happened = both_lost = 0
    async with (
        FaultCloud(info, recordings).running() as direct,
        FaultCloud(info, recordings, inline=False, routes=False).running() as routed,
        CloudClient(direct.url, api_key="x") as client,
        CloudClient(routed.url, api_key="x") as behind,
    ):
        for one_of in (client, behind):
            await one_of.connect(engine.vocab)
        assert [client.route.way, behind.route.way] == [Way.ROUTES, Way.POST]
        clouds = ((direct, client), (routed, behind))
        limiter = anyio.CapacityLimiter(SIDE_BY_SIDE)

        async def one(number, recording, fault, ready, fails_at):
            nonlocal happened, both_lost
            server, client = clouds[number % 2]
            async with limiter:
                key = f"case-{number}"
                server.faults[key] = fault
                device = RememberedEngine(engine, known, ready=ready, fails_at=fails_at)
                name = (fault, ready, fails_at)
                try:
                    ids, text, error, answer = await run(
                        client, key, recording, device, patience(fault, ready, hung=HUNG)
                    )
                except TimeoutError:
                    pytest.fail(f"hangs: {name}")
                assert ids == recording.ids[: len(ids)], f"another answer: {name}"
                received = len(answer.outcome.timeline.tokens)
                assert len(ids) == received
                if error is None:
                    assert ids == recording.ids, f"not the whole answer: {name}"
                else:
                    cloud_returns = fault.later is None and fault.kind not in ("401", "404")
                    able = cloud_returns or (ready != "never" and fails_at is None)
                    assert not able, f"{name}: {error}, {answer.outcome.decisions}"
                    both_lost += 1
                whole = engine.vocab.detokenizer()
                expected = "".join(map(whole.push, ids))
                assert text == expected, name
                happened += fault.happened or fails_at is not None or fault.cancel is not None
                del server.faults[key]

        async with anyio.create_task_group() as tasks:
            for recording in recordings:
                for fault, ready, fails_at in cases(tokens):
                    count += 1
                    tasks.start_soon(one, count, recording, fault, ready, fails_at)
    with capsys.disabled():
        seconds = time.monotonic() - begun
        print(
            f"\n{count} answers, {happened} disturbed, {both_lost} of them left without either engine; "
            f"tokens lost, repeated or changed: 0; {seconds:.0f} s"
        )
    assert count == prompts * sum(1 for _ in cases(tokens))
    assert happened >= least, "hardly any fault had a chance to happen"
    if len(tokens) == LENGTH:
        exhaustive.note_passed()


async def run(client, key, recording, device, waits):
    """One answer: ids and text as shown, the error it ended with, and the session."""
    request = AnswerRequest(
        prompt_token_ids=recording.prompt, max_tokens=LENGTH, decode_budget=BUDGET, cache_salt=key
    )
    ids, texts, error = [], [], None
    with anyio.fail_after(60):
        async with AnswerSession(request, engine=device, cloud=client, rate=math.inf, patience=waits) as answer:
            try:
                async for token in answer:
                    assert token.index == len(ids)
                    ids.append(token.token_id)
                    texts.append(token.text)
            except PDDError as lost:
                error = lost
            texts.append(answer.tail)
    return ids, "".join(texts), error, answer

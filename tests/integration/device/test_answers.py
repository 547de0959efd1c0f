from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import anyio
import pytest
from near_ties import assert_same
from recorded_cloud import RecordedCloud

from pdd_core.patience import Patience
from pdd_core.planner.types import Verdict
from pdd_core.plugins import Policies
from pdd_core.policies.pacing import FixedRatePacing
from pdd_core.timeline import Source
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession, DeviceProfile, generate

POLICIES = Policies({"fixed-rate": FixedRatePacing()}, allow=())
OPTIONS = {"policies": POLICIES, "rate": math.inf}


def answer(engine, prompt, **options):
    fields = {name: options.pop(name) for name in ("temperature", "seed", "frequency_penalty") if name in options}
    request = AnswerRequest(prompt_token_ids=prompt, max_tokens=24, **fields)
    return generate(request, engine=engine, **OPTIONS, **options)


def ids_of(outcome):
    return [token.token_id for token in outcome.timeline.tokens]


async def handed_over(engine, request, ids):
    waits = Patience(late_s=math.inf)  # the recording ends where the device is to go on, however late it is
    async with AnswerSession(
        request, engine=engine, cloud=RecordedCloud(ids), patience=waits, **OPTIONS
    ) as session:
        async for _ in session:
            pass
    return session.outcome


def test_greedy_answers_repeat(engine, prompt):
    first = ids_of(answer(engine, prompt))
    engine.reset()
    assert ids_of(answer(engine, prompt)) == first
    assert len(first) == 24


@pytest.mark.parametrize("position", [1, 3, 8, 15])
def test_a_handed_over_answer_equals_the_devices_own(engine, prompt, position):
    own = ids_of(answer(engine, prompt))
    engine.reset()
    request = AnswerRequest(prompt_token_ids=prompt, max_tokens=24)
    outcome = anyio.run(handed_over, engine, request, own[:position])
    anyio.run(assert_same, engine, prompt, ids_of(outcome), own)
    assert outcome.timeline.count(Source.CLOUD) == position
    assert outcome.took_over_at is not None


def test_a_seeded_answer_goes_on_the_same_after_the_same_handoff(engine, prompt):
    request = AnswerRequest(prompt_token_ids=prompt, max_tokens=24, temperature=0.8, top_p=0.95, seed=11)
    own = ids_of(answer(engine, prompt))[:4]
    outcomes = []
    for _ in range(2):
        engine.reset()
        outcomes.append(ids_of(anyio.run(handed_over, engine, request, own)))
    assert outcomes[0] == outcomes[1]


def test_a_warm_context_saves_the_prefill(engine, prompt):
    cold = answer(engine, prompt)
    warm = answer(engine, prompt)
    assert cold.reused_tokens == 0
    assert warm.reused_tokens == len(prompt) - 1
    assert ids_of(warm)[0] == ids_of(cold)[0]


def test_a_profile_is_never_beaten(engine, prompt):
    outcome = answer(engine, prompt, profile=DeviceProfile("slow", 200.0, 25.0))
    assert outcome.timeline.ttft >= len(prompt) / 200.0
    assert outcome.timeline.tokens[-1].received_at - outcome.timeline.ttft >= 23 / 25.0


def test_an_unreachable_cloud_leaves_the_answer_to_the_device(engine, prompt):
    own = ids_of(answer(engine, prompt))
    engine.reset()
    outcome = answer(engine, prompt, cloud_url="http://127.0.0.1:9/v1")
    assert ids_of(outcome) == own
    assert outcome.cloud_error.startswith("CloudUnreachable")


@pytest.mark.anyio
async def test_two_sessions_on_one_engine_take_turns(engine, prompt):
    other = engine.vocab.render_chat([{"role": "user", "content": "Count from one to five."}])
    answers = {}

    async def make(name, ids):
        request = AnswerRequest(prompt_token_ids=ids, max_tokens=6)
        async with AnswerSession(request, engine=engine, **OPTIONS) as session:
            answers[name] = [token.token_id async for token in session]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(make, "one", prompt)
        tasks.start_soon(make, "other", other)
    for name, ids in (("one", prompt), ("other", other)):
        together = answers[name]
        engine.reset()
        await make(name, ids)
        assert answers[name] == together


@pytest.mark.anyio
async def test_leaving_early_stops_llama_in_the_middle_of_a_chunk(engine, long_prompt):
    request = AnswerRequest(prompt_token_ids=long_prompt, max_tokens=24)
    processed, first = [], anyio.Event()

    def note(done, *_):
        processed.append(done)
        first.set()

    async with AnswerSession(request, engine=engine, on_progress=note, **OPTIONS) as session:
        await first.wait()
        await anyio.sleep(0.02)  # a chunk takes ten times as long
    assert session.outcome.finish_reason == "cancelled"
    assert engine.slots[0].memory.n_past == processed[-1] < len(long_prompt)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal for one process of a console")
def test_ctrl_c_stops_a_running_prefill(gguf):
    program = f"""
from pdd_core.timeline import Source
from pdd_llamacpp_adapter import AnswerRequest, DeviceEngine, generate
with DeviceEngine.open({str(gguf)!r}) as engine:
    request = AnswerRequest(prompt_token_ids=list(range(100, 3600)), max_tokens=8)
    generate(request, engine=engine, on_progress=lambda done, *_: print(done, flush=True))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    assert b"ExceptionGroup" not in errors
    assert int((rest.split() or [b"0"])[-1]) < 3500, "the rest of the prompt, a dozen of chunks, was left"


class ToldCloud(RecordedCloud):
    """A cloud that told, before this answer, which tokens end one."""

    def __init__(self, *eos_ids):
        super().__init__([])
        self.info = SimpleNamespace(tokenizer=SimpleNamespace(eos_ids=eos_ids))


def test_an_answer_of_the_device_alone_ends_at_every_token_of_the_clouds(engine, prompt):
    whole = ids_of(answer(engine, prompt))
    position = next(place for place in range(3, len(whole)) if whole[place] not in whole[:place])
    options = {"cloud": ToldCloud(2, whole[position]), "verdict": Verdict.DEVICE_ONLY}

    async def alone(**fields):
        request = AnswerRequest(prompt_token_ids=prompt, max_tokens=24, **fields)
        async with AnswerSession(request, engine=engine, **OPTIONS, **options) as session:
            ids = [token.token_id async for token in session]
        return ids, session.outcome.finish_reason

    assert anyio.run(alone) == (whole[: position + 1], "stop")
    ids, _ = anyio.run(partial(alone, ignore_eos=True))
    assert ids == whole

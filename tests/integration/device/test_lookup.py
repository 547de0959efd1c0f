"""Drafts on the real llama.cpp: the same answers, and a memory that holds what the engine says it holds."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import anyio
import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions
import numpy as np
import pytest
from gguf_files import VOCABULARIES, Model
from near_ties import NEAR_TIE, assert_same
from one_answer import each_step
from recorded_cloud import RecordedCloud

from pdd_core.errors import DeviceEngineFailed
from pdd_core.llama_params import LlamaParams
from pdd_core.patience import Patience
from pdd_core.plugins import Policies
from pdd_core.policies.pacing import FixedRatePacing
from pdd_core.timeline import Source
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession, DeviceEngine, DeviceProfile
from pdd_llamacpp_adapter.engine.context import LlamaContext
from pdd_llamacpp_adapter.engine.drafting import LookupDrafter, StepCosts
from pdd_llamacpp_adapter.engine.sampler import Sampler
from pdd_llamacpp_adapter.engine.speed import DeviceSpeed
from pdd_llamacpp_adapter.engine.steps import Choice, Steps

POLICIES = Policies({"fixed-rate": FixedRatePacing()}, allow=())
TEXT = "The crane lifts 12 tons, the ferry carries 40 cars, and the bridge is 310 metres long. "
CODE = (
    "def area(width, height):\n    return width * height\n\n\ndef volume(width, height, depth):\n    return width"
)


class Guessing:
    """Drafts what was answered before, with mistakes, and without looking at what it costs."""

    def __init__(self, right, seed=0):
        self.right, self.made_count, self.draw = right, 0, random.Random(seed)

    def draft(self, most, *, beside=0):
        draft = self.right[self.made_count :][: min(most, self.draw.randrange(8))]
        return [token if self.draw.random() < 0.8 else self.draw.choice(self.right) for token in draft]

    def made(self, token):
        self.made_count += 1

    def took(self, seconds, *, rows, made, beside=0):
        pass


class Eager(StepCosts):
    """Drafts are always worth it, whatever is measured: no test depends on the speed of a machine."""

    def __init__(self):
        super().__init__()
        for rows in (1, 4, 8, 16) * 5:
            super().measured(rows, 1.0)

    def measured(self, rows, seconds):
        pass

    def forget(self):
        pass


def made(sequence, prompt, drafter, *, tokens=40, request=None):
    """Return the ids of an answer, made with `drafter`; after each step the memory is what it should be."""
    sequence.rewind(0)
    size = sequence.context.n_batch
    for begin in range(0, len(prompt), size):
        logits = sequence.decode(prompt[begin : begin + size], want_logits=begin + size >= len(prompt))
    request = request or AnswerRequest(prompt_token_ids=prompt, max_tokens=tokens)
    sampler, ids = Sampler(request, stop_ids=()), []

    def choose(logits):
        ids.append(sampler.sample(logits)[0])
        return Choice(ids[-1], len(ids) == tokens)

    for _ in each_step(sequence, Steps(choose, drafter), logits):
        assert sequence.ids == [*prompt, *ids[:-1]]
        assert sequence.held() == len(sequence.ids)
    return ids


@pytest.fixture
def sequence(gguf):
    opened = LlamaContext(gguf, LlamaParams.of(n_ctx=512, threads=1))
    yield opened.sequences[0]
    opened.close()


@pytest.mark.anyio
@pytest.mark.parametrize("text", [TEXT * 3, CODE])
async def test_greedy_answers_with_drafts_are_the_same_up_to_near_ties(engine, text):
    prompt, sequence = engine.vocab.tokenize(text), engine.slots[0].memory.sequence
    own = made(sequence, prompt, None)
    await assert_same(engine, prompt, made(sequence, prompt, Guessing(own)), own)
    await assert_same(engine, prompt, made(sequence, prompt, LookupDrafter(prompt, left=40, costs=Eager())), own)


def test_seeded_answers_with_drafts_are_drawn_by_the_same_noise(engine):
    prompt, sequence = engine.vocab.tokenize(TEXT * 2), engine.slots[0].memory.sequence
    request = AnswerRequest(
        prompt_token_ids=prompt, max_tokens=24, temperature=0.5, top_k=3, seed=4, repetition_penalty=1.1
    )
    own = made(sequence, prompt, None, tokens=24, request=request)
    assert made(sequence, prompt, Guessing(own), tokens=24, request=request) == own


def test_logits_behind_a_draft_are_those_of_single_tokens_up_to_rounding(sequence):
    ids = [1, 300, 17, 88, 402, 9, 1200, 77]
    single = []
    for token in ids:
        sequence.decode([token], want_logits=False, outputs=[0])
        single.append(sequence.context.logits_at(0).copy())
    sequence.rewind(3)
    sequence.decode(ids[3:], want_logits=False, outputs=range(5))
    for index in range(5):
        np.testing.assert_allclose(sequence.context.logits_at(index), single[3 + index], atol=NEAR_TIE)


def test_an_answer_goes_on_to_the_last_cell(sequence):
    prompt = [index % 7 + 100 for index in range(480)]
    right = made(sequence, prompt, None, tokens=33)
    assert len(made(sequence, prompt, Guessing(right), tokens=33)) == 33
    assert len(sequence.ids) == sequence.context.n_ctx
    assert sequence.most_drafted == -1


@pytest.mark.parametrize("swa_full", [True, False])
@pytest.mark.parametrize("ubatch", [4, 64])
def test_a_sliding_window_keeps_what_it_needs_behind_every_draft(tmp_path, swa_full, ubatch):
    (path,) = Model(VOCABULARIES["spm"](), arch="gemma3", context=2048).write(tmp_path / "window.gguf")
    params = LlamaParams.of(n_ctx=1024, threads=1, batch_size=64, ubatch_size=ubatch, swa_full=swa_full)
    context = LlamaContext(path, params)
    try:
        sequence = context.sequences[0]
        prompt = [5 + index * 7 % 23 for index in range(300)]
        own = made(sequence, prompt, None, tokens=600)
        assert made(sequence, prompt, Guessing(own), tokens=600) == own
        if not swa_full:
            assert L.llama_memory_seq_pos_min(context.memory, 0) > 0, "the window has moved"
    finally:
        context.close()


@pytest.mark.parametrize("kind", ["recurrent", "hybrid"])
def test_a_model_that_cannot_drop_tokens_gets_no_drafts(gguf, monkeypatch, kind):
    monkeypatch.setattr(L, f"llama_model_is_{kind}", lambda model: True)
    with DeviceEngine.open(gguf, n_ctx=128, threads=1, spec="lookup") as engine:
        assert engine.slots[0].memory.sequence.most_drafted == 0
        assert not engine.slots[0].drafts


def test_small_batches_bound_the_draft(gguf):
    context = LlamaContext(gguf, LlamaParams.of(n_ctx=128, threads=1, batch_size=3))
    try:
        assert context.sequences[0].most_drafted == 2
    finally:
        context.close()


async def answered(engine, prompt, *, tokens=48, **options):
    """Return (ids, outcome, session) of a whole answer with `spec` as the engine has it."""
    request = AnswerRequest(prompt_token_ids=prompt, max_tokens=tokens, ignore_eos=True)
    options = {"rate": math.inf, "policies": POLICIES, "patience": Patience(late_s=math.inf), **options}
    async with AnswerSession(request, engine=engine, **options) as session:
        ids = [token.token_id async for token in session]
    return ids, session.outcome, session


@pytest.fixture(scope="module")
def looking_up(gguf):
    with DeviceEngine.open(gguf, n_ctx=1024, threads=1, spec="lookup") as opened:
        yield opened


@pytest.fixture
def speed():
    made = DeviceSpeed()
    made.step_costs = Eager()
    return made


@pytest.mark.anyio
async def test_a_session_with_lookup_answers_as_one_without(engine, looking_up, speed):
    prompt = engine.vocab.tokenize(TEXT * 4)
    own, _, _ = await answered(engine, prompt)
    looking_up.reset()
    ids, outcome, session = await answered(looking_up, prompt, speed=speed)
    await assert_same(engine, prompt, ids, own)
    assert outcome.finish_reason == "length"
    assert session.work.decoded_tokens == 47
    assert len({token.received_at for token in outcome.timeline.tokens}) < 40, "several came in one step"
    assert looking_up.slots[0].memory.n_past == len(prompt) + 47


@pytest.mark.anyio
async def test_the_next_turn_reuses_an_answer_that_was_made_with_drafts(engine, looking_up, speed):
    prompt = engine.vocab.tokenize(TEXT * 4)
    looking_up.reset()
    ids, _, _ = await answered(looking_up, prompt, speed=speed)
    longer = [*prompt, *ids, *engine.vocab.tokenize(" And then")]
    _, outcome, _ = await answered(looking_up, longer, tokens=2, speed=speed)
    assert outcome.reused_tokens == len(prompt) + 47
    logits = await engine.slots[0].extend(longer, want_logits=True)
    await looking_up.slots[0].memory.rewind(len(longer) - 1)
    again = await looking_up.slots[0].extend(longer[-1:], want_logits=True)
    np.testing.assert_allclose(again, logits, atol=0.1)


@pytest.mark.anyio
async def test_the_device_goes_on_behind_the_cloud_with_lookup(engine, looking_up, speed):
    prompt = engine.vocab.tokenize(TEXT * 4)
    own, _, _ = await answered(engine, prompt)
    looking_up.reset()
    ids, outcome, _ = await answered(looking_up, prompt, speed=speed, cloud=RecordedCloud(own[:6]))
    await assert_same(engine, prompt, ids, own)
    assert outcome.timeline.count(Source.CLOUD) == 6


@pytest.mark.anyio
async def test_leaving_in_the_middle_keeps_the_memory_right(engine, looking_up, speed):
    prompt = engine.vocab.tokenize(TEXT * 4)
    looking_up.reset()
    request = AnswerRequest(prompt_token_ids=prompt, max_tokens=200, ignore_eos=True)
    async with AnswerSession(request, engine=looking_up, rate=math.inf, policies=POLICIES, speed=speed) as session:
        seen = []
        async for token in session:
            seen.append(token.token_id)
            if len(seen) == 12:
                break
    sequence = looking_up.slots[0].memory.sequence
    assert sequence.held() == len(sequence.ids) >= len(prompt)
    assert sequence.ids[: len(prompt)] == prompt
    assert sequence.ids[len(prompt) :][:11] == seen[:11]


@pytest.mark.anyio
async def test_closing_the_engine_in_the_middle_of_a_draft_is_an_error(gguf, prompt):
    engine = DeviceEngine.open(gguf, n_ctx=512, threads=1)
    logits = await engine.slots[0].extend(prompt, want_logits=True)
    steps = engine.slots[0].generate(
        logits, lambda row: Choice(int(row.argmax()), last=False), Guessing([5] * 4000)
    )
    await anext(steps)
    await anyio.to_thread.run_sync(engine.close)
    with pytest.raises(DeviceEngineFailed, match="closed"):
        _ = [step async for step in steps]


@pytest.mark.anyio
async def test_a_profile_has_no_lookup(looking_up, speed, prompt):
    looking_up.reset()
    _, outcome, _ = await answered(
        looking_up, prompt, tokens=8, speed=speed, profile=DeviceProfile("slow", 4000.0, 100.0)
    )
    arrived = [token.received_at for token in outcome.timeline.tokens]
    assert all(b > a for a, b in pairwise(arrived)), "one by one"

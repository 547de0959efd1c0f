"""A refined prompt on the real engine: swapped in the middle, judged, given up, gone on from, and undone."""

from __future__ import annotations

from itertools import pairwise

import anyio
import numpy as np
import pytest

from pdd_core.handoff import Refinement
from pdd_core.refinement.guard import Guard
from pdd_core.timeline import Source, TokenLogprob, TokenLogprobs
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession
from pdd_llamacpp_adapter.cloud.cloud_stream import CloudChunk
from pdd_llamacpp_adapter.engine.history import RefinedHistory
from pdd_llamacpp_adapter.engine.logprobs import NextToken, log_likelihood
from pdd_llamacpp_adapter.engine.upgrade import upgrade
from pdd_llamacpp_adapter.session.device_reading import Reading
from pdd_llamacpp_adapter.session.refined_prompt_fetch import protected_by_device

pytestmark = pytest.mark.anyio


async def process(engine, ids, chunk=64):
    logits = None
    for start in range(0, len(ids), chunk):
        logits = await engine.slots[0].extend(ids[start : start + chunk], want_logits=start + chunk >= len(ids))
    return logits


async def fresh(engine, ids, chunk=64):
    engine.reset()
    return await process(engine, ids, chunk)


@pytest.mark.parametrize("read", [0, 64, 192])
async def test_logits_after_a_swap_are_those_of_a_fresh_prefill(engine, long_prompt, read):
    reading = Reading(long_prompt[:512])
    kept = [index for index in range(512) if index % 5 < 2 or index > 480]
    await process(engine, reading.pending((), read))
    reading.processed = read
    assert reading.refine(kept) > 0
    swapped = await process(engine, reading.pending((), 512))
    assert engine.slots[0].memory.n_past == len(reading.ids)
    assert np.array_equal(swapped, await fresh(engine, reading.ids))


async def test_likelihoods_equal_a_computation_token_by_token(engine, long_prompt):
    ids, told = long_prompt[:96], long_prompt[100:140]
    expected, logits = [], await fresh(engine, ids)
    for token in told:
        expected.append(log_likelihood(logits, NextToken(token)))
        logits = await engine.slots[0].extend([token], want_logits=True)
    engine.reset()
    await process(engine, ids[:64])
    batch = [*ids[64:], *told]
    following = {31 + index: NextToken(token) for index, token in enumerate(told)}
    found, last = await engine.slots[0].judge(batch, following, want_logits=True)
    assert engine.slots[0].memory.n_past == 136
    # F16 weights: llama.cpp's kernels for one token and for a batch round differently
    np.testing.assert_allclose(found, expected, atol=0.05)
    np.testing.assert_allclose(last, logits, atol=0.1)
    assert max(found) < 0.0


async def test_likelihoods_of_a_batch_that_is_cut_are_those_of_the_whole(engine, long_prompt):
    following = {index: NextToken(long_prompt[index + 1]) for index in range(500, 540)}
    cut, none = await engine.slots[0].judge(long_prompt, following)
    assert none is None
    engine.reset()
    expected = []
    await process(engine, long_prompt[:500], 250)
    for token, after in pairwise(long_prompt[500:541]):
        logits = await engine.slots[0].extend([token], want_logits=True)
        expected.append(log_likelihood(logits, NextToken(after)))
    np.testing.assert_allclose(cut, expected, atol=0.05)


def test_a_grammars_mask_renormalises(engine):
    logits = np.array([1.0, 2.0, 3.0, 0.5], dtype=np.float32)
    allowed = np.array([True, False, True, False])
    assert log_likelihood(logits, NextToken(0, allowed)) == pytest.approx(-2.0 - np.log1p(np.exp(-2.0)))


async def test_a_turn_behind_a_refined_one_equals_a_fresh_computation(engine, long_prompt):
    prompt, said, asked = long_prompt[:300], long_prompt[400:420], long_prompt[500:540]
    reading = Reading(prompt)
    reading.refine([*range(40), *range(200, 300)])
    await process(engine, [*reading.ids, *said])
    engine.slots[0].memory.remember(RefinedHistory(tuple(reading.ids), reading.prompt))

    whole = [*prompt, *said, *asked]
    assert engine.slots[0].memory.holds(whole) == 320
    assert await engine.slots[0].memory.start(whole) == 320
    assert engine.slots[0].memory.n_past == len(reading.ids) + len(said)
    behind = await process(engine, asked)
    assert engine.slots[0].history.whole([*reading.ids, *said, *asked]) == whole
    np.testing.assert_allclose(behind, await fresh(engine, [*reading.ids, *said, *asked]), atol=0.1)
    assert engine.slots[0].history is None


async def test_a_memory_that_was_cut_short_stands_for_itself(engine, long_prompt):
    await process(engine, long_prompt[:100])
    engine.slots[0].memory.remember(RefinedHistory(tuple(long_prompt[:100]), tuple(range(200))))
    assert await engine.slots[0].memory.rewind(100) == 100
    assert engine.slots[0].history is not None
    await engine.slots[0].memory.rewind(99)
    assert engine.slots[0].history is None


async def read_refined(engine, prompt, said):
    reading = Reading(prompt)
    reading.refine([*range(40), *range(len(prompt) - 100, len(prompt))])
    await process(engine, [*reading.ids, *said])
    engine.slots[0].memory.remember(RefinedHistory(tuple(reading.ids), reading.prompt))
    return reading


async def test_idle_time_makes_a_refined_memory_the_whole_one(engine, long_prompt):
    prompt, said, asked = long_prompt[:300], long_prompt[400:420], long_prompt[500:540]
    await read_refined(engine, prompt, said)
    assert await upgrade(engine.slots[0], engine.n_ctx, lambda: 64)
    assert engine.slots[0].history is None
    assert engine.slots[0].memory.n_past == 320
    assert await engine.slots[0].memory.start([*prompt, *said, *asked]) == 320
    behind = await process(engine, asked)
    np.testing.assert_allclose(behind, await fresh(engine, [*prompt, *said, *asked]), atol=0.1)


async def test_an_answer_gets_the_engine_from_idle_work_at_once_and_as_it_was(engine, long_prompt):
    prompt, said, asked = long_prompt[:560], long_prompt[400:420], long_prompt[500:540]
    reading = await read_refined(engine, prompt, said)
    expected = await process(engine, asked)
    await engine.slots[0].memory.rewind(len(reading.ids) + len(said))
    came, done = anyio.Event(), []

    async def idle_work(slot):
        came.set()
        done.append(await upgrade(slot, engine.n_ctx, lambda: 512))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.queue.when_idle, idle_work)
        await came.wait()
        await anyio.sleep(0.1)  # it is seconds of work
        assert engine.slots[0].history.prompt == tuple(prompt)
        assert engine.slots[0].memory.holds([*prompt, *said, *asked]) == 580
        async with engine.exclusive():
            assert done == []
            assert engine.slots[0].history.prompt == tuple(prompt)
            assert await engine.slots[0].memory.start([*prompt, *said, *asked]) == 580
            assert np.array_equal(await process(engine, asked), expected)


class RefiningCloud:
    """A cloud that sends a known answer with its likelihoods, and refines the prompt to `kept`."""

    info = None
    cancel_timeout = 1.0

    def __init__(self, ids, logprobs, prompt, kept):
        self._ids, self._logprobs, self._prompt, self._kept = ids, logprobs, prompt, kept
        self.refined = anyio.Event()

    async def connected(self, vocab):
        class Info:
            refinement = "attention"
            features = ()

            class tokenizer:  # noqa: N801
                eos_ids = (2,)

        return Info

    async def handoff(self, handoff_id, *, wait):
        class State:
            prompt_token_ids = self._prompt
            refinement = Refinement(
                method="attention",
                ratio=0.25,
                kept_indices=self._kept,
                kept_token_ids=[self._prompt[index] for index in self._kept],
                protected=[],
                window=16,
                layers=[12],
            )

        return State

    async def stream(self, request, opt_in):
        assert request.logprobs == 0
        for token, logprob in zip(self._ids, self._logprobs, strict=True):
            yield CloudChunk((token,), "", None, (TokenLogprobs(TokenLogprob(token, logprob)),))
            await anyio.sleep(0.02)
        await anyio.sleep(60)

    async def cancel(self, handoff_id, *, used=None):
        return True


QUESTION = "What is the name of the lighthouse keeper? Answer with the name."
FILLER = "The harbour is busy in the morning, and the boats come back before the evening. "


@pytest.fixture(scope="session")
def document(loaded):
    """A prompt whose answer hangs on one sentence in its middle, and the indices of that sentence."""
    needle = "The lighthouse keeper is called Ferdinand Abelson. "
    text = FILLER * 22 + needle + FILLER * 22
    ids = loaded.vocab.render_chat([{"role": "user", "content": f"{text}\n\n{QUESTION}"}])
    pieces = [loaded.vocab.spelt(token) for token in ids]
    begin = "".join(pieces).index(needle)
    starts = np.cumsum([0, *map(len, pieces)])
    first, last = np.searchsorted(starts, [begin, begin + len(needle)])
    return ids, list(range(int(first) - 60, int(last) + 60))


async def answered(engine, ids, count):
    """The greedy answer to a prompt, with each token's logprob."""
    logits, told = await fresh(engine, ids), []
    for _ in range(count):
        token = int(np.argmax(logits))
        told.append((token, log_likelihood(logits, NextToken(token))))
        logits = await engine.slots[0].extend([token], want_logits=True)
    return [token for token, _ in told], [logprob for _, logprob in told]


async def handed_over(engine, ids, needle, *, sent, judged=4):
    """An answer of which the cloud sends the first `sent` tokens, and no more for a minute.

    `judged` of them have to be there before the guard agrees.
    """
    whole, logprobs = await answered(engine, ids, sent)
    engine.reset()
    request = AnswerRequest(prompt_token_ids=ids, max_tokens=sent + 12, refine_ratio=0.25)
    protected = protected_by_device(request, engine.vocab)
    kept = sorted({*needle, *(index for start, end in protected for index in range(start, end))})
    cloud = RefiningCloud(whole, logprobs, ids, kept)
    guard = Guard(threshold=0.75, least_tokens=judged, tokens=32)
    async with AnswerSession(request, engine=engine, cloud=cloud, rate=float("inf"), guard=guard) as session:
        tokens = [token async for token in session]
    return whole, tokens, session.outcome


async def test_a_refined_prompt_that_keeps_what_matters_is_agreed_to(engine, document):
    ids, needle = document
    whole, tokens, outcome = await handed_over(engine, ids, needle, sent=5)
    report = outcome.refinement
    assert report.guard == "agreed"
    assert report.saved_tokens > len(ids) // 3
    assert outcome.timeline.count(Source.DEVICE) > 0
    shown = [token.token_id for token in tokens]
    begun = outcome.timeline.count(Source.CLOUD)
    assert shown[:begun] == whole[:begun]
    assert engine.slots[0].history.prompt == tuple(ids)
    assert len(engine.slots[0].history.ids) == len(ids) - report.saved_tokens
    behind = [*ids, *shown]
    assert engine.slots[0].memory.holds([*behind, 5]) >= len(behind) - 1


async def test_one_that_drops_what_matters_is_given_up(engine, document):
    ids, _ = document
    # of the answer, the name begins at the seventh token
    whole, tokens, outcome = await handed_over(engine, ids, [], sent=11, judged=8)
    report = outcome.refinement
    assert report.guard == "disagreed"
    assert engine.slots[0].history is None
    shown = [token.token_id for token in tokens]
    common = min(len(whole), len(shown))
    assert shown[:common] == whole[:common], "the device went on behind the full prompt"

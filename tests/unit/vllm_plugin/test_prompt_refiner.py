import asyncio
import logging
import sys
import threading
import time
from array import array
from types import MappingProxyType, SimpleNamespace

import anyio
import numpy as np
import pytest
from vllm_fakes import parallel, sampling_params

from pdd_core.handoff import NoRefinement, Refinement
from pdd_core.hookspecs import hookimpl
from pdd_core.optin import OptIn
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.handoff_record import NOT_ENABLED, PENDING, HandoffRecord
from pdd_vllm_plugin.prompt_refiner import PromptRefiner
from pdd_vllm_plugin.question_window import window_of
from pdd_vllm_plugin.refiner_threads import THREADS

pytestmark = pytest.mark.anyio

LENGTH = 200


class Tokenizer:
    all_special_ids = (0,)
    added_tokens_decoder = MappingProxyType({})

    def convert_ids_to_tokens(self, ids):
        return ["<s>" if token == 0 else f"Ġw{token}" for token in ids]

    def get_vocab(self):
        return {"<s>": 0, "Ċ": 1}

    def get_added_vocab(self):
        return {"<s>": 0}


class Engine:
    """Scores token 77 far above the others."""

    vllm_config = SimpleNamespace(parallel_config=parallel())

    def __init__(self, answer=None):
        self.answer = answer

    async def collective_rpc(self, method, args):
        await asyncio.sleep(0)
        if self.answer is not None:
            return [[self.answer for _ in args[0]]]
        values = np.full((1, LENGTH), 1e-4, dtype=np.float32)
        values[0, 77] = 1.0
        return [[{"layers": [3], "window": 16, "values": values.tobytes()} for _ in args[0]]]


def record(*, ratio=0.25, protect=(), length=LENGTH, name="h" * 32):
    made = HandoffRecord(
        opt_in=OptIn(name, refine_ratio=ratio, protect=protect), completion_id="cmpl-x", engine_request_id="x",
        model="m", tokenizer="t", sampling_params={}, created=time.time(), touched=0.0, refinement=PENDING,
    )  # fmt: skip
    made.prompt_token_ids.extend([0, *(2 + index % 50 for index in range(length - 1))])
    return made


async def refined(refining, asked):
    refining.begin(asked)
    await asyncio.wait_for(asked.refined.wait(), 20)
    return asked.refinement


def refining(engine=None, method="attention", **settings):
    return PromptRefiner(engine or Engine(), PDDConfig(**settings), method, Tokenizer())


async def test_what_was_attended_to_stays():
    asked = record(protect=((10, 13),))
    refinement = await refined(refining(), asked)
    assert isinstance(refinement, Refinement), refinement
    assert (refinement.method, refinement.window, refinement.layers) == ("attention", 16, [3])
    assert {0, 10, 11, 12, 77, LENGTH - 1} <= set(refinement.kept_indices)
    assert refinement.kept_token_ids == [asked.prompt_token_ids[index] for index in refinement.kept_indices]
    assert not asked.refinement_pending


async def test_a_refiner_without_scores_asks_no_worker():
    refinement = await refined(refining(Engine({"missed": "never asked"}), method="truncation"), record())
    assert (refinement.method, refinement.window, refinement.layers) == ("truncation", 0, [])


@pytest.mark.parametrize(
    ("engine", "settings", "reason"),
    [
        (Engine({"missed": "it ran as a graph"}), {}, "not_captured"),
        (Engine({"layers": [3], "window": 16, "values": b"\0" * 8}), {}, "not_captured"),
        (Engine(), {"refine_max_prompt_tokens": 100}, "too_long"),
        (Engine({"layers": [3]}), {}, "failed"),
    ],
)
async def test_why_there_is_none(engine, settings, reason):
    refinement = await refined(refining(engine, **settings), record())
    assert isinstance(refinement, NoRefinement)
    assert refinement.reason == reason


async def test_too_long_a_prompt_asks_no_worker():
    """No worker has followed it."""
    refinement = await refined(refining(Engine({"missed": "never asked"}), refine_max_prompt_tokens=100), record())
    assert refinement.reason == "too_long"


class Worded(Tokenizer):
    """Token 1 is a blank line."""

    def convert_ids_to_tokens(self, ids):
        return ["<s>" if token == 0 else "ĊĊ" if token == 1 else f"Ġw{token}" for token in ids]

    def get_vocab(self):
        return {"<s>": 0, "ĊĊ": 1, "Ċ": 99}


def test_the_workers_are_told_how_long_the_question_is():
    made = PromptRefiner(Engine(), PDDConfig(), "attention", Worded())
    params = sampling_params({"pdd_handoff": "h" * 32})
    told = made.with_question(params, array("I", [0, *[5] * 900, 1, *range(2, 22)]))
    assert window_of(told.extra_args, most=64) == 20


@pytest.mark.parametrize("prompt", [[], [0, 2**40]])
def test_of_a_prompt_that_cannot_be_read_all_that_may_count_counts(prompt):
    class Broken(Worded):
        def convert_ids_to_tokens(self, ids):
            raise OverflowError("no such id")

    params = sampling_params({"pdd_handoff": "h" * 32})
    assert PromptRefiner(Engine(), PDDConfig(), "attention", Broken()).with_question(params, prompt) is params


def test_where_no_worker_looks_none_is_told():
    params = sampling_params({"pdd_handoff": "h" * 32})
    assert refining(method="lexical").with_question(params, [0, 2, 3]) is params


class Paragraphs(Engine):
    """Sees 12 paragraphs. The one with the question's word has the most attention, or the least."""

    ids = (0, *(token for number in range(12) for token in (*[10 + number] * 9, 1)), 13, 13)

    def __init__(self, *, agrees):
        values = np.array([1.0 + token / 99 for token in self.ids], dtype=np.float32)
        values[[token == 13 for token in self.ids]] = 3.0 if agrees else 0.1
        super().__init__({"layers": [3], "window": 2, "values": values.tobytes()})

    def record(self, ratio=0.25):
        asked = record(ratio=ratio, length=1)
        asked.prompt_token_ids = array("I", self.ids)
        return asked


def of_paragraphs(*, agrees, method="attention"):
    engine = Paragraphs(agrees=agrees)
    return PromptRefiner(engine, PDDConfig(), method, Worded()), engine


async def test_a_prompt_whose_lines_matter_alike_is_not_refined():
    made, engine = of_paragraphs(agrees=False)
    refinement = await refined(made, engine.record())
    assert (refinement.kind, refinement.reason) == ("none", "spread")
    assert "agree on no lines that matter more than the others (0." in refinement.message
    made, engine = of_paragraphs(agrees=True)
    assert (await refined(made, engine.record())).method == "attention"


async def test_a_prompt_whose_lines_matter_alike_is_refined_where_no_attention_says_so():
    made, engine = of_paragraphs(agrees=False, method="lexical")
    assert (await refined(made, engine.record())).method == "lexical"
    made, engine = of_paragraphs(agrees=False)
    assert len((await refined(made, engine.record(ratio=1.0))).kept_indices) == len(engine.ids)


async def test_a_third_party_refines_what_it_likes():
    class ThirdParty:
        @hookimpl
        def pdd_refine(self, prompt):
            return list(range(len(prompt)))

    made, engine = of_paragraphs(agrees=False)
    made._policies.manager.register(ThirdParty(), "third-party")
    assert (await refined(made, engine.record())).method == "third-party"


def with_third_party(answer, **settings):
    """PromptRefiner with a third party that answers as the function `answer`, of scores and prompt, does."""

    class ThirdParty:
        @hookimpl
        def pdd_refine(self, scores, prompt):
            return answer(scores, prompt)

    made = refining(**settings)
    made._policies.manager.register(ThirdParty(), "third-party")
    return made


def raises(scores, prompt):
    raise ZeroDivisionError("oops")


def leaves(scores, prompt):
    raise SystemExit("I am a script")


@pytest.mark.parametrize(
    "answer",
    [
        raises,
        lambda scores, prompt: [5, 3, len(prompt)],
        lambda scores, prompt: (index for index in range(len(prompt))),
        lambda scores, prompt: list(np.arange(len(prompt))),
        lambda scores, prompt: [False, True, *range(2, len(prompt))],
        lambda scores, prompt: [],
        lambda scores, prompt: dict.fromkeys(range(len(prompt))),
        leaves,
    ],
)
async def test_a_third_partys_nonsense_is_passed_over(answer, caplog):
    made = with_third_party(answer)
    for _ in range(2):
        refinement = await refined(made, record())
        assert refinement.method == "attention"
    assert caplog.text.count("third-party") == 1


async def test_a_third_party_that_passes_leaves_the_scores_as_they_were():
    def puts_20_first(scores, prompt):
        scores.values[:] = 0
        scores.values[0, 20] = 1

    def forgets(scores, prompt):
        prompt.token_ids = ()

    untouched = await refined(refining(), record(ratio=0.66))  # some more than what is protected
    for answer in (puts_20_first, forgets):
        assert await refined(with_third_party(answer), record(ratio=0.66)) == untouched


@pytest.fixture
def release():
    """Lets the threads go that a test made hang."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("strict", [False, True])
async def test_a_third_party_that_hangs_is_given_up_and_then_not_asked(release, caplog, strict):
    asked = []

    def hangs(scores, prompt):
        asked.append(threading.current_thread())
        release.wait()

    made = with_third_party(hangs, refine_timeout_s=0.01, strict=strict)
    for _ in range(2 * THREADS):
        assert (await refined(made, record())).method == "attention"
    assert len(asked) == THREADS
    assert all(thread.daemon for thread in asked)  # none of them keeps the server from ending
    assert "third-party gave no refined prompt within 0.01 s (additional_config.pdd" in caplog.text
    assert f"third-party is not asked: {THREADS} of its answers are overdue" in caplog.text
    levels = [entry.levelno for entry in caplog.records]
    assert levels == ([logging.ERROR] * 2 * THREADS if strict else [logging.WARNING] * 2)


async def test_a_third_party_that_answers_late_is_asked_again(release):
    asked = []

    def late(scores, prompt):
        asked.append(prompt)
        release.wait()

    made = with_third_party(late, refine_timeout_s=0.01)
    await asyncio.gather(*(refined(made, record(name=f"{number:032}")) for number in range(THREADS)))
    release.set()
    while made._threads.overdue:
        await asyncio.sleep(0)
    await refined(made, record())
    assert len(asked) == THREADS + 1


async def test_third_parties_that_are_slow_take_no_threads_of_others(release):
    made = with_third_party(lambda scores, prompt: release.wait() and None)
    records = [record(name=f"{number:032}") for number in range(60)]
    for one in records:
        made.begin(one)
    for _ in range(20):
        await asyncio.sleep(0)
    assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    release.set()
    await asyncio.wait_for(asyncio.gather(*(one.refined.wait() for one in records)), 60)


async def test_an_end_before_the_first_token_settles_it():
    asked = record()
    asked.end("abort")
    assert asked.refined.is_set()
    assert asked.refinement.reason == "failed"


async def test_a_request_that_is_not_refined_stays_so():
    asked = record()
    asked.refinement = NOT_ENABLED
    asked.end("stop")
    assert asked.refinement is NOT_ENABLED


async def test_a_refined_prompt_is_charged_for_what_it_takes():
    asked = record(length=5000)
    asked.prompt_token_ids = array("I", [0, *range(1000, 5999)])
    before = asked.size
    refinement = await refined(refining(method="truncation"), asked)
    lists = (refinement.kept_indices, refinement.kept_token_ids)
    taken = sum(sys.getsizeof(numbers) + sum(map(sys.getsizeof, numbers)) for numbers in lists)
    assert 4 * (asked.size - before) == pytest.approx(taken, rel=0.2)

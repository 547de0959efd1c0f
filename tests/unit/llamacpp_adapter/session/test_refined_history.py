"""Answers to a prompt whose beginning the device holds in a refined form."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager

import anyio
import pytest

from pdd_core.errors import CloudLost, CloudUnreachable
from pdd_core.patience import Patience
from pdd_core.planner.types import Verdict
from pdd_core.refinement.guard import Guard
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.engine.history import RefinedHistory
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.session.answer_session import AnswerSession

pytestmark = pytest.mark.anyio

PROMPT = list(range(1, 301))
HEAD = [*range(10), *range(100, 120), *range(170, 240)]
HISTORY = RefinedHistory(tuple(PROMPT[index] for index in HEAD), tuple(PROMPT[:240]))
ANSWER = list(range(301, 321))


@pytest.fixture
def engine(fake_engine):
    def make(**options):
        return fake_engine(**{"seconds": 0.02, "held": list(HISTORY.ids), "history": HISTORY, **options})

    return make


@pytest.fixture
def answer(policies):
    async def make(engine, cloud, verdict=Verdict.HANDOFF, **fields):
        """The outcome of an answer to `PROMPT`, all of whose tokens came."""
        request = AnswerRequest(prompt_token_ids=PROMPT, max_tokens=20, decode_budget=64, **fields)
        session = AnswerSession(
            request,
            engine=engine,
            cloud=cloud,
            verdict=verdict,
            policies=policies,
            rate=math.inf,
            guard=Guard(1.0, 4, 32),
            patience=Patience(retry_delay_s=0.01, late_s=0.05, cloud_retries=0),
        )
        with anyio.fail_after(20):
            async with session:
                assert [token.token_id async for token in session] == ANSWER
        return session.outcome

    return make


def decided(outcome, words):
    return [one.what for one in outcome.decisions if words in one.what]


async def test_an_answer_behind_a_refined_one_goes_on_from_there_and_is_judged(answer, engine, fake_cloud):
    device, cloud = engine(), fake_cloud([list(range(301, 307)), 60])
    outcome = await answer(device, cloud)
    assert device.held[:160] == [*HISTORY.ids, *PROMPT[240:]]
    assert outcome.reused_tokens == len(HISTORY.prompt)
    assert decided(outcome, "behind a refined history: 100 tokens that stand for 240")
    assert cloud.asked[0].logprobs == 0
    assert cloud.opt_in.refine_ratio is None
    assert outcome.refinement.guard == "agreed"
    assert outcome.refinement.ratio is None


@pytest.mark.parametrize("cloud", [True, False], ids=["by its plan", "for want of a cloud"])
async def test_a_device_alone_has_nobody_to_judge_by_and_reads_the_whole_prompt(answer, engine, fake_cloud, cloud):
    device = engine()
    outcome = await answer(device, fake_cloud([]) if cloud else None, Verdict.DEVICE_ONLY)
    assert device.held[:300] == PROMPT
    assert device.begun == [False]
    assert outcome.reused_tokens == 10, "what both begin with"
    assert outcome.refinement is None
    assert not decided(outcome, "refined history")


@pytest.mark.parametrize("sent", [[], [301, 302]], ids=["before a token", "after some"])
@pytest.mark.parametrize("ends", [CloudLost("broke off"), 60], ids=["lost", "silent"])
async def test_nor_has_one_that_steps_in_for_a_cloud_that_was_to_make_it_all(
    answer, engine, fake_cloud, sent, ends
):
    """It was asked for a plain answer, so there are no likelihoods."""
    device, cloud = engine(), fake_cloud([*([sent] if sent else []), ends])
    outcome = await answer(device, cloud, Verdict.CLOUD_ONLY)
    assert cloud.asked[0].logprobs is None
    assert device.held[:300] == PROMPT
    assert outcome.timeline.count(Source.DEVICE) == 20 - len(sent)
    assert outcome.refinement is None


async def test_a_cloud_that_makes_it_all_leaves_the_history_where_it_is(answer, engine, fake_cloud):
    device = engine()
    await answer(device, fake_cloud(["goes on"]), Verdict.CLOUD_ONLY)
    assert (device.held, device.history, device.begun) == (list(HISTORY.ids), HISTORY, [])


async def test_a_refined_history_is_judged_also_by_a_cloud_that_refines_no_more(answer, engine, fake_cloud):
    device, cloud = engine(likelihoods=[-9.0]), fake_cloud([list(range(301, 313)), 60], refines="off")
    outcome = await answer(device, cloud, refine_ratio=0.5)
    assert (cloud.asked[0].logprobs, cloud.opt_in.refine_ratio) == (0, None)
    assert (outcome.refinement.guard, outcome.refinement.reason) == ("disagreed", "not_enabled")
    assert device.held[:300] == PROMPT


async def test_a_history_that_came_about_while_the_answer_waited_is_not_gone_on_from(answer, engine, fake_cloud):
    """The cloud was asked for no likelihoods: the memory was another one then."""
    device = engine(history=None, held=[])

    @asynccontextmanager
    async def after_another_answer(prompt):
        device.held, device.history = list(HISTORY.ids), HISTORY
        yield device

    device.exclusive = after_another_answer
    cloud = fake_cloud([list(range(301, 307)), 60])
    outcome = await answer(device, cloud)
    assert cloud.asked[0].logprobs is None
    assert device.held[:300] == PROMPT
    assert outcome.refinement is None


async def test_a_refined_history_is_told_of_also_where_no_token_could_be_judged(answer, engine, fake_cloud):
    cloud = fake_cloud([], connect_error=CloudUnreachable("no connection"))
    outcome = await answer(engine(), cloud)
    assert outcome.timeline.count(Source.DEVICE) == 20
    report = outcome.refinement
    assert (report.guard, report.guard_tokens, report.ratio) == ("too_few_tokens", 0, None)
    assert decided(outcome, "too few tokens to judge by: no token to judge by")

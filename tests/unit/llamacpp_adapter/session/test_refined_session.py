"""Sessions whose device reads a refined prompt."""

from __future__ import annotations

import math

import anyio
import pytest

from pdd_core.errors import CloudLost, CloudRefused, ContextOverflow
from pdd_core.handoff import NoRefinement, Refinement
from pdd_core.patience import Patience
from pdd_core.refinement.guard import Guard
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.cloud.cloud_stream import CloudEnd
from pdd_llamacpp_adapter.engine.history import RefinedHistory
from pdd_llamacpp_adapter.engine.speed import DeviceSpeed
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.session.answer_session import AnswerSession

pytestmark = pytest.mark.anyio

PROMPT = list(range(1, 301))
KEPT = [*range(10), *range(100, 120), *range(170, 300)]
"""Of 300 tokens; the last paragraph, here all there is, is protected from position 172 on."""


def refined(kept=KEPT, **changes):
    fields = {"method": "attention", "ratio": 0.5, "protected": [], "window": 16, "layers": [3]}
    ids = [PROMPT[index] for index in kept if 0 <= index < len(PROMPT)]
    return Refinement(**{**fields, "kept_indices": list(kept), "kept_token_ids": ids, **changes})


@pytest.fixture
def session(policies):
    def make(*, max_tokens=20, decode_budget=64, patience=None, **options):
        fields = {"prompt_token_ids": PROMPT, "max_tokens": max_tokens, "decode_budget": decode_budget}
        request = AnswerRequest(**fields | {"refine_ratio": 0.5} | options.pop("fields", {}))
        waits = Patience(**{"retry_delay_s": 0.01, "late_s": 0.05, **(patience or {})})
        return AnswerSession(
            request,
            **{"policies": policies, "rate": math.inf, "guard": Guard(1.0, 4, 32), "patience": waits, **options},
        )

    return make


def wait_for_look(engine, cloud):
    """Have the device's first batch last until the refined prompt is known."""
    looked, extend, handoff = anyio.Event(), engine.extend, cloud.handoff

    async def extending(ids, **options):
        if not engine.calls:
            await looked.wait()
        return await extend(ids, **options)

    async def looking(handoff_id, **options):
        state = await handoff(handoff_id, **options)
        looked.set()
        return state

    engine.extend, cloud.handoff = extending, looking


async def collect(session):
    with anyio.fail_after(20):
        async with session as answer:
            tokens = [token async for token in answer]
    return tokens, answer.outcome


def decided(outcome, words):
    return [one.what for one in outcome.decisions if words in one.what]


async def test_the_device_reads_the_kept_tokens_behind_what_it_has_read(session, fake_engine, fake_cloud):
    engine = fake_engine()
    cloud = fake_cloud([list(range(301, 307)), 60], refinement=refined())
    wait_for_look(engine, cloud)
    tokens, outcome = await collect(session(engine=engine, cloud=cloud))
    assert [token.token_id for token in tokens] == list(range(301, 321))
    first = engine.held.index(301)
    prompt = engine.held[:first]
    head = next(index for index in range(len(prompt)) if prompt[index] != PROMPT[index])
    assert prompt == [*PROMPT[:head], *(PROMPT[index] for index in KEPT if index >= head)]
    assert head < len(PROMPT)
    assert engine.held[first:] == list(range(301, 320))
    report = outcome.refinement
    assert (report.ratio, report.kept_tokens, report.reason) == (0.5, len(KEPT), None)
    assert report.saved_tokens == len(PROMPT) - len(prompt) > 0
    assert report.guard == "agreed"
    assert report.guard_excess == pytest.approx(0.0, abs=0.05)
    assert decided(outcome, "the guard agreed: ")
    assert decided(outcome, "refined the prompt to 160 of 300 prompt tokens (attention)")
    assert engine.history == RefinedHistory(tuple(prompt), tuple(PROMPT))
    summary = outcome.summary()["refinement"]
    assert summary["prompt_tokens"] == 300
    assert summary["saved_tokens"] == report.saved_tokens


async def test_a_device_that_waits_for_a_refined_prompt_is_not_late(session, fake_engine, fake_cloud):
    engine, speed = fake_engine(), DeviceSpeed()
    speed.prefill_tps = 20.0
    # the cloud has made its budget before its refined prompt is there; that lasts for ten seconds, in which a
    # device reads half of the prompt, and not all of it
    cloud = fake_cloud([list(range(301, 311)), CloudEnd.BUDGET], refinement=refined(), late=0.3)
    wait_for_look(engine, cloud)
    tokens, outcome = await collect(session(engine=engine, cloud=cloud, rate=1.0, speed=speed, flush_within=0.0))
    assert [token.token_id for token in tokens] == list(range(301, 321))
    assert outcome.extensions == 0
    assert outcome.refinement.saved_tokens > 0


async def test_the_cloud_is_asked_for_what_the_guard_needs_and_the_client_sees_none_of_it(
    session, fake_engine, fake_cloud
):
    cloud = fake_cloud([list(range(301, 307)), 60], refinement=refined())
    tokens, _ = await collect(session(engine=fake_engine(seconds=0.01), cloud=cloud, fields={"protect": [(5, 9)]}))
    assert cloud.asked[0].logprobs == 0
    assert {token.logprobs for token in tokens} == {None}
    [opt_in] = cloud.opt_ins
    assert opt_in.refine_ratio == 0.5
    assert opt_in.protect == ((0, 1), (5, 9), (172, 300))
    assert cloud.looks == [(opt_in.handoff_id, 10.0)]


async def test_logprobs_that_the_client_asks_for_are_its_own(session, fake_engine, fake_cloud):
    cloud = fake_cloud([list(range(301, 307)), 60], refinement=refined())
    tokens, _ = await collect(session(engine=fake_engine(seconds=0.01), cloud=cloud, fields={"logprobs": 2}))
    assert cloud.asked[0].logprobs == 2
    assert None not in {token.logprobs for token in tokens}


async def test_without_a_wish_nothing_is_asked(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[301], CloudEnd.BUDGET])
    _, outcome = await collect(session(engine=fake_engine(), cloud=cloud, fields={"refine_ratio": None}))
    assert (cloud.asked[0].logprobs, cloud.looks, cloud.opt_in.refine_ratio) == (None, [], None)
    assert outcome.refinement is None
    assert outcome.summary()["refinement"] is None


async def test_the_answer_waits_in_the_cloud_for_a_verdict(session, fake_engine, fake_cloud):
    """Level after each token, the device lets the cloud go on until four were judged."""
    engine = fake_engine()
    steps = [step for token in range(302, 340) for step in (0.05, [token])]
    cloud = fake_cloud([[301], *steps], refinement=refined())
    wait_for_look(engine, cloud)
    tokens, outcome = await collect(session(engine=engine, cloud=cloud))
    assert [token.token_id for token in tokens] == list(range(301, 321))
    assert outcome.timeline.count(Source.CLOUD) >= 4
    assert outcome.refinement.guard == "agreed"
    assert outcome.refinement.guard_tokens >= 4


async def test_a_cloud_that_has_nothing_more_to_send_leaves_the_answer_without_a_verdict(
    session, fake_engine, fake_cloud
):
    engine = fake_engine()
    cloud = fake_cloud([[301, 302], CloudEnd.BUDGET], refinement=refined())
    wait_for_look(engine, cloud)
    tokens, outcome = await collect(session(engine=engine, cloud=cloud, patience={"late_s": math.inf}))
    assert [token.token_id for token in tokens] == list(range(301, 321))
    assert outcome.refinement.guard == "too_few_tokens"
    assert outcome.refinement.guard_tokens == 2
    assert decided(outcome, "too few tokens")


async def test_a_guard_that_disagrees_brings_the_full_prompt_back(session, fake_engine, fake_cloud):
    engine = fake_engine(likelihoods=[-9.0])
    steps = [step for token in range(307, 360) for step in (0.02, [token])]
    cloud = fake_cloud([list(range(301, 307)), *steps], refinement=refined())
    wait_for_look(engine, cloud)
    tokens, outcome = await collect(session(engine=engine, cloud=cloud, max_tokens=50))
    assert [token.token_id for token in tokens] == list(range(301, 351))
    assert engine.held[: len(PROMPT) + 49] == [*PROMPT, *range(301, 350)]
    assert outcome.refinement.guard == "disagreed"
    assert outcome.refinement.guard_excess == pytest.approx(8.9)
    assert outcome.refinement.saved_tokens == 0
    assert decided(
        outcome, "the guard disagreed: +8.90 nats per token at worst, of 6 tokens: back to the full prompt"
    )
    assert outcome.timeline.count(Source.DEVICE) > 0
    assert engine.history is None


async def test_the_cloud_helps_out_a_device_that_went_back_to_the_full_prompt(session, fake_engine, fake_cloud):
    engine = fake_engine(seconds=0.1, likelihoods=[-9.0])
    cloud = fake_cloud(
        [list(range(301, 309)), CloudEnd.BUDGET],
        [[[309 + i, 310 + i], CloudEnd.BUDGET] for i in range(0, 8, 2)],
        refinement=refined(),
    )
    wait_for_look(engine, cloud)
    tokens, outcome = await collect(session(engine=engine, cloud=cloud, max_tokens=30))
    assert [token.token_id for token in tokens] == list(range(301, 331))
    assert outcome.extensions >= 1
    assert all(opt_in.refine_ratio is None for opt_in in cloud.opt_ins[1:]), "only the first leg refines"
    assert len(cloud.looks) == 1
    assert outcome.refinement.guard == "disagreed"
    assert outcome.took_over_at is not None


@pytest.mark.parametrize(
    ("refinement", "reason"),
    [
        (NoRefinement(reason="too_long", message="the prompt is too long"), "too_long"),
        (CloudRefused("no such handoff", status=404), "unavailable"),
        (CloudLost("cut"), "unavailable"),
        (refined([0, 2, 1, 299]), "invalid"),
        (refined([*range(10), 400]), "invalid"),
        (refined(range(150)), "invalid"),
        (refined(kept_token_ids=[7] * len(KEPT)), "invalid"),
    ],
    ids=["none", "gone", "lost", "out of order", "out of range", "not protected", "other ids"],
)
async def test_the_full_prompt_goes_on_whatever_comes_instead(
    session, fake_engine, fake_cloud, refinement, reason
):
    engine = fake_engine(seconds=0.02)
    cloud = fake_cloud([list(range(301, 307)), 60], refinement=refinement)
    tokens, outcome = await collect(session(engine=engine, cloud=cloud))
    assert [token.token_id for token in tokens] == list(range(301, 321))
    assert engine.held[:300] == PROMPT
    assert outcome.refinement.reason == reason
    assert outcome.refinement.guard is None
    assert decided(outcome, "the prompt was not refined: ")


async def test_a_refinement_of_another_prompt_is_refused(session, fake_engine, fake_cloud):
    cloud = fake_cloud([list(range(301, 307)), 60], refinement=refined(), prompt=(5, *PROMPT[1:]))
    engine = fake_engine(seconds=0.02)
    _, outcome = await collect(session(engine=engine, cloud=cloud))
    assert outcome.refinement.reason == "invalid"
    assert engine.held[:300] == PROMPT


async def test_a_cloud_that_refines_nothing_is_not_asked_to(session, fake_engine, fake_cloud):
    cloud = fake_cloud([list(range(301, 307)), 60], refines="off")
    _, outcome = await collect(session(engine=fake_engine(seconds=0.01), cloud=cloud))
    assert (cloud.opt_in.refine_ratio, cloud.opt_in.protect, cloud.looks) == (None, (), [])
    assert cloud.asked[0].logprobs is None
    assert outcome.refinement.reason == "not_enabled"


async def test_a_cloud_is_not_asked_to_keep_more_spans_than_it_takes(
    session, fake_engine, fake_cloud, monkeypatch
):
    marked = {"protect": [(10, 11), (20, 21)]}  # with the first token and the last paragraph these are four
    for most in (3, 4):
        monkeypatch.setattr("pdd_llamacpp_adapter.session.session_start.MAX_PROTECTED", most)
        cloud = fake_cloud([list(range(301, 307)), 60], refinement=refined())
        _, outcome = await collect(session(engine=fake_engine(seconds=0.01), cloud=cloud, fields=marked))
        asked = most == 4
        assert (cloud.opt_in.refine_ratio is not None, len(cloud.opt_in.protect)) == (asked, 4 if asked else 0)
        assert (outcome.refinement.reason == "too_many_spans") is not asked


async def test_a_refinement_that_comes_after_catch_up_changes_nothing(session, fake_engine, fake_cloud):
    engine = fake_engine()
    cloud = fake_cloud([0.1, [301], 0.2, [302], 60], refinement=refined(), late=0.1)
    tokens, outcome = await collect(session(engine=engine, cloud=cloud, max_tokens=5))
    assert [token.token_id for token in tokens] == list(range(301, 306))
    assert engine.held[:300] == PROMPT
    assert outcome.refinement.saved_tokens == 0
    assert outcome.refinement.reason == "too_late"


async def test_a_prompt_that_fits_once_refined_waits_for_that(session, fake_engine, fake_cloud):
    engine = fake_engine(n_ctx=200)
    cloud = fake_cloud([0.1, list(range(301, 307)), 60], refinement=refined())
    tokens, outcome = await collect(session(engine=engine, cloud=cloud))
    assert [token.token_id for token in tokens] == list(range(301, 321))
    assert engine.calls[0] == PROMPT[:1], "what stays in any case is read at once"
    assert engine.held[: len(KEPT)] == [PROMPT[index] for index in KEPT]
    assert outcome.timeline.count(Source.DEVICE) > 0
    assert outcome.refinement.saved_tokens == len(PROMPT) - len(KEPT)


async def test_a_guard_that_disagrees_where_the_full_prompt_does_not_fit_leaves_it_to_the_cloud(
    session, fake_engine, fake_cloud
):
    engine = fake_engine(n_ctx=200, likelihoods=[-9.0])
    cloud = fake_cloud([0.05, list(range(301, 309)), CloudEnd.BUDGET], [["goes on"]], refinement=refined())
    tokens, outcome = await collect(session(engine=engine, cloud=cloud))
    assert [token.token_id for token in tokens] == list(range(301, 321))
    assert {token.source for token in tokens} == {Source.CLOUD}
    assert outcome.finish_reason == "length"
    assert outcome.cloud_error is None
    report = outcome.refinement
    assert (report.guard, report.saved_tokens, report.kept_tokens) == ("disagreed", 0, len(KEPT))
    assert decided(outcome, "the guard disagreed: ") == [
        "the guard disagreed: +8.90 nats per token at worst, of 8 tokens"
    ], "and nothing of a full prompt that cannot be read"
    assert decided(outcome, "the device was lost: ContextOverflow: the refined prompt will not do")
    assert decided(outcome, "the cloud finishes: ContextOverflow")
    assert cloud.opt_ins[1].refine_ratio is None
    assert cloud.asked[1].prompt_token_ids == (*PROMPT, *range(301, 309)), "it goes on behind what was shown"
    assert (engine.held, engine.history) == (PROMPT[:10], None), "another answer finds none of it"


@pytest.mark.parametrize("held", [5, 170, 250, 299])
async def test_however_much_of_a_prompt_that_does_not_fit_is_held(session, fake_engine, fake_cloud, held):
    """300 and 20 do not fit 310; the refined 160 do, but only in the place of what is held."""
    engine = fake_engine(n_ctx=310, held=PROMPT[:held])
    cloud = fake_cloud([0.05, list(range(301, 307)), 60], refinement=refined())
    tokens, outcome = await collect(session(engine=engine, cloud=cloud))
    assert [token.token_id for token in tokens] == list(range(301, 321))
    assert outcome.timeline.count(Source.DEVICE) > 0
    assert engine.held[: len(KEPT)] == [PROMPT[index] for index in KEPT]
    assert outcome.refinement.guard == "agreed"
    assert outcome.refinement.reason is None
    assert outcome.refinement.saved_tokens >= 0
    assert engine.history.prompt == tuple(PROMPT)


async def test_nothing_is_read_that_would_have_to_go_again(session, fake_engine, fake_cloud):
    """Behind what is held, all that stays in any case would not fit: what is held will go."""
    engine = fake_engine(n_ctx=290, held=PROMPT[:200])
    cloud = fake_cloud([0.05, list(range(301, 307)), 60], refinement=refined())
    _, outcome = await collect(session(engine=engine, cloud=cloud))
    assert engine.calls[0][0] == PROMPT[100], "the first of the kept tokens that the prompt's beginning lacks"
    assert decided(outcome, "the device reads the refined prompt, in place of what it held")
    assert outcome.timeline.count(Source.DEVICE) > 0


async def test_a_refined_prompt_that_does_not_fit_leaves_the_answer_to_the_cloud(session, fake_engine, fake_cloud):
    engine = fake_engine(n_ctx=170)
    cloud = fake_cloud([list(range(301, 307)), CloudEnd.BUDGET], [["goes on"]], refinement=refined())
    tokens, outcome = await collect(session(engine=engine, cloud=cloud))
    assert [token.token_id for token in tokens] == list(range(301, 321))
    assert {token.source for token in tokens} == {Source.CLOUD}
    assert decided(outcome, "the device was lost: ContextOverflow")
    assert engine.calls == [PROMPT[:1]]


async def test_nor_is_one_read_that_never_comes(session, fake_engine, fake_cloud):
    none = NoRefinement(reason="failed", message="KeyError")
    cloud = fake_cloud([[301], CloudEnd.BUDGET], [["goes on"]], refinement=none)
    tokens, outcome = await collect(session(engine=fake_engine(n_ctx=200), cloud=cloud))
    assert [token.token_id for token in tokens] == list(range(301, 321))
    assert outcome.refinement.reason == "failed"


async def test_nor_one_that_does_not_come_in_time(session, fake_engine, fake_cloud):
    """It may drip in, byte by byte, and never be there: then nobody can go on, and says so."""
    cloud = fake_cloud([[301], CloudLost("cut")], refinement=refined(), late=1e6)
    waiting = session(engine=fake_engine(n_ctx=200), cloud=cloud, patience={"cloud_retries": 0})
    with anyio.fail_after(60), pytest.raises(CloudLost):
        await collect(waiting)
    assert waiting.outcome.refinement.reason == "unavailable"


async def test_a_device_that_waits_for_a_refined_prompt_does_not_give_the_cloud_up(
    session, fake_engine, fake_cloud
):
    """The cloud may prefill a long prompt for longer than a device that is ready would wait for a first token."""
    cloud = fake_cloud([0.3, list(range(301, 307)), 60], refinement=refined())
    _, outcome = await collect(
        session(engine=fake_engine(n_ctx=200), cloud=cloud, patience={"first_token_s": 0.05})
    )
    assert outcome.cloud_error is None
    assert outcome.timeline.count(Source.DEVICE) > 0


async def test_what_would_not_fit_even_refined_is_refused(session, fake_engine, fake_cloud):
    with pytest.raises(ContextOverflow, match="a refined prompt of 50% does not fit either"):
        await collect(session(engine=fake_engine(n_ctx=160), cloud=fake_cloud([])))


async def test_a_device_alone_reads_what_it_is_given(session, fake_engine):
    engine = fake_engine()
    _, outcome = await collect(session(engine=engine))
    assert engine.held[:300] == PROMPT
    assert outcome.refinement is None
    with pytest.raises(ContextOverflow):
        await collect(session(engine=fake_engine(n_ctx=200)))


async def test_the_clouds_further_legs_go_on_from_the_full_prompt(session, fake_engine, fake_cloud):
    cloud = fake_cloud([0.05, [301], CloudLost("cut")], [[[302], CloudEnd.LENGTH]], refinement=refined())
    await collect(session(engine=fake_engine(seconds=0.3), cloud=cloud, max_tokens=4))
    assert cloud.asked[1].prompt_token_ids == (*PROMPT, 301)


async def test_a_leg_that_is_lost_before_its_first_token_asks_again(session, fake_engine, fake_cloud):
    later = [[list(range(301, 307)), 60]]
    cloud = fake_cloud([CloudLost("cut")], later, refinement=refined())
    _, outcome = await collect(session(engine=fake_engine(seconds=0.2), cloud=cloud))
    assert [opt_in.refine_ratio for opt_in in cloud.opt_ins] == [0.5, 0.5]
    assert outcome.refinement.kept_tokens == len(KEPT)

"""What a cloud tells inside the stream: the refined prompt without another request, and no other tokens."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import anyio
import pytest
from example_count import examples
from hostile_documents import WEIRD, every_change
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from still_time import StillTimeLoop

from pdd_core.errors import CloudLost, PDDError
from pdd_core.handoff import INLINE_UPDATES, Refinement
from pdd_core.patience import Patience
from pdd_core.refinement.guard import Guard
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.cloud.cloud_event import read_event
from pdd_llamacpp_adapter.cloud.cloud_stream import CloudEnd
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.session.answer_session import AnswerSession
from pdd_llamacpp_adapter.session.leg_updates import LegUpdates

pytestmark = pytest.mark.anyio

PROMPT = list(range(1, 301))
ANSWER = list(range(301, 321))
KEPT = [*range(10), *range(100, 120), *range(170, 300)]
KNOWS = ("decode_budget", "budget_policies", INLINE_UPDATES)
RUNNING = {"request_id": "cmpl-1", "status": "running"}
FIRST = {**RUNNING, "decode_budget": {"tokens": 8, "set_by": "load"}}


def refined(kept=KEPT, **changes):
    fields = {"kind": "refined", "method": "attention", "ratio": 0.5, "protected": [], "window": 16, "layers": [3]}
    ids = [PROMPT[index] for index in kept]
    return {**RUNNING, "refinement": {**fields, "kept_indices": kept, "kept_token_ids": ids, **changes}}


def why_not(reason):
    return {**RUNNING, "refinement": {"kind": "none", "reason": reason, "message": reason}}


@pytest.fixture
def session(policies):
    def make(engine, cloud, *, ratio=0.5, patience=None, **options):
        request = AnswerRequest(prompt_token_ids=PROMPT, max_tokens=20, decode_budget=64, refine_ratio=ratio)
        waits = Patience(**{"retry_delay_s": 0.01, "late_s": 0.05, **(patience or {})})
        fields = {"policies": policies, "rate": math.inf, "guard": Guard(1.0, 4, 32), "patience": waits}
        return AnswerSession(request, engine=engine, cloud=cloud, **{**fields, **options})

    return make


async def collect(session):
    with anyio.fail_after(600):
        async with session as answer:
            tokens = [token async for token in answer]
    assert [token.token_id for token in tokens] == ANSWER
    return answer.outcome


def decided(outcome, words):
    return [one.what for one in outcome.decisions if words in one.what]


def later(engine, seconds):
    """Have the device's first batch last so long."""
    extend = engine.extend

    async def extending(ids, **options):
        if not engine.calls:
            await anyio.sleep(seconds)
        return await extend(ids, **options)

    engine.extend = extending
    return engine


async def test_the_refined_prompt_comes_inside_the_stream(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[301], FIRST, [302, 303], refined(), [304, 305, 306], 60], features=KNOWS)
    outcome = await collect(session(later(fake_engine(), 1), cloud))
    assert cloud.opt_in.inline
    assert cloud.opt_in.refine_ratio == 0.5
    assert cloud.looks == [], "another request"
    report = outcome.refinement
    assert (report.kept_tokens, report.reason, report.guard) == (len(KEPT), None, "agreed")
    assert report.saved_tokens > 0
    assert decided(outcome, "the cloud decodes 8 tokens at most, set by load")
    assert decided(outcome, "refined the prompt to 160 of 300 prompt tokens (attention)")
    assert cloud.cancelled == [cloud.opt_in.handoff_id]


async def test_an_older_cloud_is_asked_for_it(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[301], FIRST, refined(), 60], refinement=Refinement(**refined()["refinement"]))
    await collect(session(later(fake_engine(), 1), cloud))
    assert not cloud.opt_in.inline
    assert cloud.looks == [(cloud.opt_in.handoff_id, 10.0)]


async def test_it_may_come_behind_the_last_token(session, fake_engine, fake_cloud):
    script = [list(range(301, 307)), CloudEnd.BUDGET, 0.3, refined(), 60]
    cloud = fake_cloud(script, features=KNOWS)
    outcome = await collect(session(later(fake_engine(), 1), cloud, patience={"late_s": 5}))
    assert outcome.refinement.saved_tokens > 0
    assert outcome.extensions == 0


async def test_nobody_waits_for_it_but_the_device(session, fake_engine, fake_cloud):
    """A cloud that makes the whole answer and then holds the stream's end back."""
    cloud = fake_cloud([(ANSWER, CloudEnd.LENGTH), 3600], features=KNOWS)

    async def timed():
        begun = anyio.current_time()
        await collect(session(later(fake_engine(), 1000), cloud))
        return anyio.current_time() - begun

    assert await timed() < 1
    assert cloud.closed


async def test_a_cancel_is_waited_for_though_the_stream_has_ended(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[301, 999], 0.005, CloudEnd.STOP, 3600], features=KNOWS)
    with anyio.fail_after(600):
        async with session(later(fake_engine(), 1000), cloud) as answer:
            assert [token.token_id async for token in answer] == [301, 999]
            await anyio.sleep(1)
    assert answer.outcome.cancel_confirmed is True
    assert answer.outcome.refinement.reason is None


async def test_a_late_device_is_helped_out_meanwhile(session, fake_engine, fake_cloud):
    first = [(ANSWER[:4], CloudEnd.BUDGET), 3600]
    cloud = fake_cloud(first, later=[[(ANSWER[4:], CloudEnd.LENGTH)]], features=KNOWS)
    outcome = await collect(session(later(fake_engine(), 5), cloud, patience={"max_extensions": 1}))
    assert outcome.extensions == 1
    assert outcome.timeline.count(Source.CLOUD) == len(ANSWER)


@pytest.mark.parametrize(
    ("updates", "reason"),
    [
        ([], "unavailable"),
        ([FIRST], "unavailable"),
        ([why_not("pending")], "unavailable"),
        ([why_not("too_long")], "too_long"),
        ([why_not("not_captured"), refined()], "not_captured"),
        ([refined(KEPT[1:])], "invalid"),
        ([refined(kept_token_ids=[5] * len(KEPT))], "invalid"),
        ([{**refined(), "handoff_id": "another"}], "invalid"),
        ([{**refined(), "schema_version": "3.0"}], "invalid"),
        ([{"raw": "no object"}], "invalid"),
        ([{"raw": {}}, refined()], "invalid"),
    ],
)
async def test_without_a_right_one_the_device_reads_it_all(session, fake_engine, fake_cloud, updates, reason):
    cloud = fake_cloud([[301], *updates, [302], CloudEnd.BUDGET], features=KNOWS)
    outcome = await collect(session(later(fake_engine(), 1), cloud))
    assert (outcome.refinement.reason, outcome.refinement.saved_tokens) == (reason, 0)
    assert cloud.looks == []


async def test_a_stream_that_breaks_off_brings_none(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[301], CloudLost("cut")], features=KNOWS)
    outcome = await collect(session(later(fake_engine(), 1), cloud, patience={"cloud_retries": 0}))
    assert outcome.refinement.reason == "unavailable"


async def test_one_that_breaks_off_before_its_first_token_may_be_asked_again(session, fake_engine, fake_cloud):
    cloud = fake_cloud([CloudLost("cut")], later=[[[301], refined(), [302], 60]], features=KNOWS)
    outcome = await collect(session(later(fake_engine(), 5), cloud))
    assert [opt_in.refine_ratio for opt_in in cloud.opt_ins] == [0.5, 0.5]
    assert outcome.refinement.saved_tokens > 0


async def test_a_cloud_that_refines_nothing_still_tells_its_budget(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[301], FIRST, [302], 60], features=KNOWS, refines="off")
    outcome = await collect(session(fake_engine(), cloud))
    assert cloud.opt_in.inline
    assert cloud.opt_in.refine_ratio is None
    assert decided(outcome, "set by load")


async def test_the_forecast_knows_the_budget_that_the_cloud_told(session, fake_engine, fake_cloud):
    told = anyio.Event()
    cloud = fake_cloud([[301], FIRST, [302], told, 60], features=KNOWS)
    made = session(later(fake_engine(), 5), cloud)
    async with made as answer:
        assert [(await anext(answer)).token_id for _ in range(2)] == [301, 302]
        assert made._conductor.cloud_left() == 6
        told.set()


async def test_a_cloud_that_changes_its_mind_without_end_fills_no_log(session, fake_engine, fake_cloud):
    budgets = [{**RUNNING, "decode_budget": {"tokens": n, "set_by": "load"}} for n in range(1, 500)]
    cloud = fake_cloud([[301], *budgets, [302], 60], features=KNOWS)
    assert len(decided(await collect(session(fake_engine(), cloud)), "set by load")) == 8


class Live:
    """An answer that nothing is known of."""

    def changed(self):
        pass

    def decided(self, what):
        assert what.isprintable()


class Fetch:
    """Takes whatever comes."""

    settled = False

    def expect(self):
        pass

    def told(self, refinement):
        pass

    def give_up(self, reason, message):
        assert reason == "invalid"
        assert message.isprintable()
        assert len(message) < 500


def test_no_wrong_value_anywhere_in_an_update_gets_through():
    document = {"choices": [], "pdd": {"handoff_id": "h", **FIRST, "refinement": refined()["refinement"]}}
    document["pdd"]["refinement"]["kept_indices"] = document["pdd"]["refinement"]["kept_token_ids"] = [1, 2]
    updates, read = LegUpdates(Live(), "h", Fetch()), 0
    for _, body in every_change(document):
        try:
            event = read_event(body)
        except PDDError:
            continue
        updates.take(event.pdd)
        read += 1
    assert read > 400


UPDATES = st.one_of(
    st.sampled_from([FIRST, refined(), refined(KEPT[1:]), why_not("pending"), why_not("failed")]),
    st.builds(
        lambda tokens, by: {**RUNNING, "decode_budget": {"tokens": tokens, "set_by": by}},
        st.integers(0, 2**31 - 1),
        st.text(max_size=20),
    ),
    st.sampled_from([{"raw": value} for value in WEIRD]),
    st.sampled_from([0.01, 0.5, 20]),
)
SCRIPTS = st.tuples(
    st.lists(st.integers(1, 20), max_size=6),
    st.lists(st.tuples(st.integers(0, 8), UPDATES), max_size=8),
    st.sampled_from(["budget", "cut", "silent"]),
)


def scripted(cuts, updates, end):
    """The answer's tokens in pieces, with updates between them; behind its end, too."""
    bounds = sorted({0, 20, *cuts})
    steps = [ANSWER[start:stop] for start, stop in itertools.pairwise(bounds)]
    if end != "silent":
        steps = [*steps[:-1], {"budget": CloudEnd.BUDGET, "cut": CloudLost("cut")}[end]]
    for place, update in updates:
        steps.insert(min(place, len(steps)), update)
    return [*steps, 60]


@examples(150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=SCRIPTS, ready=st.sampled_from([0, 0.02, 1, 30]))
def test_whatever_is_told_and_when_the_tokens_are_the_answers(session, fake_engine, fake_cloud, script, ready):
    async def main():
        cloud = fake_cloud(scripted(*script), later=[["goes on"]] * 9, features=KNOWS)
        await collect(session(later(fake_engine(), ready), cloud))

    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(monotonic=anyio.current_time)
        patch.setattr("pdd_llamacpp_adapter.session.live_answer.time", clock)
        anyio.run(main, backend_options={"loop_factory": StillTimeLoop})

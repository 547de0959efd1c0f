"""Answers that were given to one side: made by it alone, and by the other one where it fails."""

from __future__ import annotations

import math

import anyio
import pytest

from pdd_core.errors import CloudLost, CloudRefused, CloudUnreachable, DeviceEngineFailed
from pdd_core.patience import Patience
from pdd_core.planner.types import Plan, Verdict, Why
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.cloud.cloud_stream import CloudEnd
from pdd_llamacpp_adapter.engine.speed import DeviceSpeed
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.session.answer_session import AnswerSession
from pdd_llamacpp_adapter.session.outcome import AnswerPlan

pytestmark = pytest.mark.anyio

PROMPT = list(range(1, 101))


@pytest.fixture
def session(policies):
    def make(verdict, *, prompt=PROMPT, max_tokens=10, rate=math.inf, patience=None, **options):
        request = AnswerRequest(prompt_token_ids=prompt, max_tokens=max_tokens, decode_budget=4)
        times = Patience(**{"retry_delay_s": 0.01, "late_s": 0.05, **(patience or {})})
        return AnswerSession(request, verdict=verdict, policies=policies, rate=rate, patience=times, **options)

    return make


async def collect(session):
    async with session as answer:
        ids = [token.token_id async for token in answer]
    return ids, answer.outcome


WHOLE = list(range(101, 111))


async def test_the_cloud_alone_leaves_the_device_idle(session, fake_engine, fake_cloud):
    engine, cloud = fake_engine(), fake_cloud([[101], 0.05, (WHOLE[1:], CloudEnd.LENGTH)])
    ids, outcome = await collect(session(Verdict.CLOUD_ONLY, engine=engine, cloud=cloud))
    assert ids == WHOLE
    assert outcome.mode == "cloud_only"
    assert outcome.timeline.count(Source.CLOUD) == 10
    assert engine.calls == []
    assert cloud.opt_ins == [None], "a plain request, without a budget"
    assert (outcome.decode_budget, outcome.handoff_id, outcome.took_over_at) == (None, None, None)


@pytest.mark.parametrize(
    "loss", [CloudLost("the stream broke off"), CloudUnreachable("no connection"), CloudRefused("no", status=400)]
)
async def test_a_cloud_that_is_lost_wakes_the_device(session, fake_engine, fake_cloud, loss):
    engine, cloud = fake_engine(), fake_cloud([[101], [102], loss])
    ids, outcome = await collect(
        session(Verdict.CLOUD_ONLY, engine=engine, cloud=cloud, patience={"cloud_retries": 0})
    )
    assert ids == WHOLE
    assert [outcome.timeline.count(source) for source in Source] == [2, 8]
    assert outcome.took_over_at is not None
    assert "the device took over" in [decision.what for decision in outcome.decisions]


async def test_one_that_cannot_be_reached_is_none(session, fake_engine, fake_cloud):
    cloud = fake_cloud([], connect_error=CloudUnreachable("no"))
    ids, outcome = await collect(
        session(Verdict.CLOUD_ONLY, engine=fake_engine(), cloud=cloud, patience={"cloud_retries": 0})
    )
    assert ids == WHOLE
    assert outcome.timeline.count(Source.DEVICE) == 10


async def test_a_cloud_that_comes_back_helps_a_slow_device(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], CloudLost("broke off")], later=[["goes on"]])
    engine = fake_engine(seconds=0.4)
    ids, outcome = await collect(session(Verdict.CLOUD_ONLY, engine=engine, cloud=cloud))
    assert ids == WHOLE
    assert outcome.cloud_retries == 1
    assert cloud.opt_ins[0] is None
    assert cloud.opt_ins[1] is not None, "from now on there is a handoff to prepare"


def said(outcome):
    return [decision.what for decision in outcome.decisions]


@pytest.mark.parametrize("first", [[], [[101]], [[101], 0.5, [102]]], ids=["no token", "one token", "two tokens"])
async def test_a_device_that_keeps_pace_steps_in_once_it_is_ready(session, fake_engine, fake_cloud, first):
    cloud, engine = fake_cloud([*first, 60]), fake_engine(seconds=0.05)
    patience = {"standby_s": 1.0, "first_token_s": 20.0}
    quick = DeviceSpeed()
    quick.measured(1, 0.05)
    answer = session(Verdict.CLOUD_ONLY, engine=engine, cloud=cloud, patience=patience, rate=12.0, speed=quick)
    ids, outcome = await collect(answer)
    assert ids == WHOLE
    assert "the device gets ready: no token of the cloud's within 1 s" in said(outcome)
    silent_since = 0.5 * (len(first) == 3)
    assert silent_since + 1.0 <= outcome.took_over_at < silent_since + 2.0
    assert outcome.timeline.count(Source.CLOUD) == sum(isinstance(step, list) for step in first)
    assert cloud.closed


async def test_a_device_that_does_not_keep_pace_waits_longer_for_the_cloud(session, fake_engine, fake_cloud):
    cloud, engine = fake_cloud([[101], 60]), fake_engine(seconds=0.05)
    slow = DeviceSpeed()
    slow.measured(1, 1.0)
    patience = {"standby_s": 1.0, "first_token_s": 5.0}
    answer = session(Verdict.CLOUD_ONLY, engine=engine, cloud=cloud, patience=patience, rate=12.0, speed=slow)
    ids, outcome = await collect(answer)
    assert ids == WHOLE
    assert 5.0 <= outcome.took_over_at < 6.0
    assert outcome.cloud_error == "CloudLost: no token within 5 s"


async def test_a_cloud_that_speaks_again_keeps_the_answer(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], 1.5, [102], 1.5, (WHOLE[2:], CloudEnd.LENGTH)])
    engine = fake_engine(seconds=0.4)
    ids, outcome = await collect(
        session(Verdict.CLOUD_ONLY, engine=engine, cloud=cloud, patience={"standby_s": 1.0}, rate=12.0)
    )
    assert ids == WHOLE
    assert outcome.timeline.count(Source.CLOUD) == 10
    assert said(outcome).count("the device gets ready: no token of the cloud's within 1 s") == 2
    assert (outcome.took_over_at, outcome.cloud_error) == (None, None)


async def test_a_device_in_reserve_is_free_for_others_while_the_cloud_speaks(session, fake_engine, fake_cloud):
    tokens = [step for token in WHOLE[1:-1] for step in ([token], 0.5)]
    cloud, engine = fake_cloud([[101], 1.5, *tokens, ([110], CloudEnd.LENGTH)]), fake_engine(seconds=0.2)
    made = session(Verdict.CLOUD_ONLY, engine=engine, cloud=cloud, patience={"standby_s": 1.0})
    async with made as answer:
        left = {token.token_id: made.work_left() async for token in answer}
    assert engine.calls, "it got ready"
    assert [token for token, work in left.items() if work is not None] == []
    assert answer.outcome.timeline.count(Source.CLOUD) == 10


async def test_leaving_while_the_cloud_is_at_work_alone(session, fake_engine, fake_cloud):
    engine, cloud = fake_engine(), fake_cloud([[101], 60])
    async with session(Verdict.CLOUD_ONLY, engine=engine, cloud=cloud) as answer:
        async for _ in answer:
            break
    assert cloud.closed
    assert engine.calls == []
    assert answer.outcome.finish_reason == "cancelled"


async def test_the_device_alone_asks_the_cloud_for_nothing(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[555]])
    ids, outcome = await collect(
        session(Verdict.DEVICE_ONLY, engine=fake_engine(seconds=0.15), cloud=cloud, rate=50.0)
    )
    assert ids == WHOLE
    assert outcome.mode == "device_only"
    assert outcome.timeline.count(Source.DEVICE) == 10
    assert cloud.asked == []
    assert (outcome.extensions, outcome.took_over_at, outcome.handoff_id) == (0, None, None)


NEXT_TURN = [*PROMPT, *WHOLE, *range(301, 321)]


async def test_the_device_alone_goes_on_from_its_last_answer(session, fake_engine, fake_cloud):
    engine = fake_engine()
    _, first = await collect(session(Verdict.DEVICE_ONLY, engine=engine, cloud=fake_cloud([])))
    read = len(engine.calls)
    ids, second = await collect(session(Verdict.DEVICE_ONLY, prompt=NEXT_TURN, engine=engine, cloud=None))
    assert ids == list(range(321, 331))
    assert (first.reused_tokens, second.reused_tokens) == (0, 109), "all but the answer's last token was processed"
    assert engine.calls[read] == NEXT_TURN[109:]
    assert engine.held == [*NEXT_TURN, *ids[:-1]]


async def test_an_answer_of_the_clouds_leaves_the_device_what_it_holds(session, fake_engine, fake_cloud):
    engine = fake_engine()
    await collect(session(Verdict.DEVICE_ONLY, engine=engine, cloud=fake_cloud([])))
    held, elsewhere = list(engine.held), list(range(500, 600))
    _, outcome = await collect(
        session(Verdict.CLOUD_ONLY, prompt=elsewhere, engine=engine, cloud=fake_cloud(["goes on"]))
    )
    assert (engine.held, outcome.reused_tokens) == (held, 0)
    lost = fake_cloud([CloudLost("broke off")])
    ids, outcome = await collect(
        session(Verdict.CLOUD_ONLY, prompt=NEXT_TURN, engine=engine, cloud=lost, patience={"cloud_retries": 0})
    )
    assert ids == list(range(321, 331))
    assert outcome.reused_tokens == 109


@pytest.mark.parametrize("fails_at", [0, 1, 3, 6])
async def test_a_device_that_fails_is_replaced_by_the_cloud(session, fake_engine, fake_cloud, fails_at):
    cloud = fake_cloud(["goes on"])
    engine = fake_engine(fails_at=fails_at)
    ids, outcome = await collect(session(Verdict.DEVICE_ONLY, engine=engine, cloud=cloud))
    assert ids == WHOLE
    assert outcome.timeline.count(Source.CLOUD) > 0
    assert len(cloud.asked) == 1


async def test_where_both_are_lost_it_is_an_error(session, fake_engine, fake_cloud):
    cloud = fake_cloud([], connect_error=CloudUnreachable("no"))
    failing = session(Verdict.DEVICE_ONLY, engine=fake_engine(fails_at=0), cloud=cloud)
    with pytest.raises((CloudUnreachable, DeviceEngineFailed)):
        await collect(failing)


async def test_the_plan_is_told_and_the_end_reported_once(session, fake_engine, fake_cloud):
    plan = Plan(Verdict.DEVICE_ONLY, why=Why("so", {"rate": math.inf}))
    ended = []
    made = session(
        Verdict.DEVICE_ONLY,
        engine=fake_engine(),
        cloud=fake_cloud([]),
        plan=AnswerPlan(plan, "mine"),
        on_ended=ended.append,
    )
    assert made.work_left() is None
    async with made as answer:
        left = [answer.work_left() async for _ in answer]
        assert [work.made for work in left[:-1]] == list(range(1, 10))
        assert {work.prompt_tokens for work in left[:-1]} == {len(PROMPT)}
        assert left[-1] is None
        assert ended == []
    assert ended == [answer]
    assert made.work_left() is None
    told = answer.outcome.summary()["plan"]
    assert told == {
        "verdict": "device only",
        "decode_budget": None,
        "refine_ratio": None,
        "kv": False,
        "by": "mine",
        "reason": "so",
        "inputs": {"rate": None},
        "alternatives": [],
    }


async def test_the_end_is_reported_of_an_answer_that_is_cancelled(session, fake_engine, fake_cloud):
    ended = []
    with anyio.move_on_after(0.05):
        async with session(
            Verdict.CLOUD_ONLY, engine=fake_engine(), cloud=fake_cloud([[101], 60]), on_ended=ended.append
        ) as answer:
            async for _ in answer:
                pass
    assert ended == [answer]


async def test_a_cloud_is_closed_once_what_is_at_hand_lasts(session, fake_engine, fake_cloud):
    # 1 s of buffer from the first event on; the device needs 2 x 0.15 s, and knows after the first half
    cloud = fake_cloud([list(range(101, 121)), *[step for i in range(121, 160) for step in (0.05, [i])]])
    engine = fake_engine(seconds=0.15)
    ids, outcome = await collect(session(Verdict.HANDOFF, engine=engine, cloud=cloud, rate=20.0, max_tokens=60))
    assert ids == list(range(101, 161))
    what = [decision.what for decision in outcome.decisions]
    assert "the cloud was closed: what is at hand lasts until the device is ready" in what
    assert outcome.timeline.count(Source.CLOUD) < 30
    assert outcome.extensions == 0
    assert cloud.cancelled

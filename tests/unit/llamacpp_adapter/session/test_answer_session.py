from __future__ import annotations

import math

import anyio
import pytest

from pdd_core.errors import (
    CloudLost,
    CloudRefused,
    CloudUnreachable,
    ConfigurationError,
    ContextOverflow,
    DeviceEngineFailed,
    InvalidGrammar,
    TokenizerMismatch,
)
from pdd_core.hookspecs import hookimpl
from pdd_core.patience import Patience
from pdd_core.plugins import Policies
from pdd_core.policies.pacing import AdaptivePacing, FixedRatePacing
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.cloud.cloud_stream import CloudEnd
from pdd_llamacpp_adapter.request import AnswerRequest, Grammar, GrammarKind
from pdd_llamacpp_adapter.session.answer_session import AnswerSession

pytestmark = pytest.mark.anyio

EOS = 999
PROMPT = list(range(1, 101))
SHORT = {"late_s": 0.05}
"""What is late, in tests of lateness. In others the device is waited for, however busy this machine."""


@pytest.fixture
def session(policies):
    def make(*, rate=math.inf, max_tokens=10, decode_budget=64, **options):
        fields = {"prompt_token_ids": PROMPT, "max_tokens": max_tokens, "decode_budget": decode_budget}
        request = AnswerRequest(**fields | options.pop("fields", {}))
        patience = Patience(**{"retry_delay_s": 0.01, "late_s": math.inf, **options.pop("patience", {})})
        return AnswerSession(request, **{"policies": policies, "rate": rate, "patience": patience, **options})

    return make


async def collect(session):
    async with session as answer:
        tokens = [token async for token in answer]
    assert [token.index for token in tokens] == list(range(len(tokens)))
    assert all(token.shown_at >= token.received_at for token in tokens)
    assert answer.outcome.timeline.tokens == tokens
    return [token.token_id for token in tokens], answer.outcome


async def test_the_device_goes_on_where_the_clouds_budget_ended(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], [102, 103], CloudEnd.BUDGET])
    ids, outcome = await collect(session(engine=fake_engine(seconds=0.02), cloud=cloud))
    assert ids == list(range(101, 111))
    assert (outcome.mode, outcome.finish_reason) == ("handoff", "length")
    assert outcome.timeline.count(Source.CLOUD) == 3
    assert [t.source for t in outcome.timeline.tokens[3:]] == [Source.DEVICE] * 7
    assert outcome.timeline.text == "".join(f"<{i}>" for i in ids)
    assert 0 < outcome.caught_up_at <= outcome.took_over_at
    assert (outcome.cloud_error, outcome.cancel_confirmed) == (None, None)
    assert cloud.cancelled == [], "there was nothing left to cancel"


async def test_the_device_takes_over_from_a_cloud_that_still_streams_and_cancels_it(
    session, fake_engine, fake_cloud
):
    cloud = fake_cloud([[101], *[step for i in range(102, 160) for step in (0.01, [i])], 60, CloudEnd.BUDGET])
    ids, outcome = await collect(session(engine=fake_engine(seconds=0.002), cloud=cloud, max_tokens=40))
    assert ids == list(range(101, 141))
    assert 1 <= outcome.timeline.count(Source.CLOUD) < 40
    assert outcome.cancel_confirmed is True
    assert cloud.cancelled == [outcome.handoff_id]
    assert cloud.used == [outcome.timeline.count(Source.CLOUD)]
    assert cloud.closed


async def test_a_cancel_is_confirmed_though_the_stream_ends_before_its_answer(session, fake_engine, fake_cloud):
    cancelling = anyio.Event()
    cloud = fake_cloud([[101], cancelling])

    async def slow(handoff_id, *, used=None):
        cancelling.set()
        await anyio.sleep(0.05)
        return True

    cloud.cancel = slow
    _, outcome = await collect(session(engine=fake_engine(seconds=0.002), cloud=cloud, max_tokens=40, rate=400.0))
    assert outcome.cancel_confirmed is True


async def test_tokens_that_arrive_until_the_cancel_is_through_are_in_vain(session, fake_engine, fake_cloud):
    sent = [101, *range(700, 900, 2)]
    cloud = fake_cloud([[101], *[step for i in sent[1:] for step in (0.004, [i])]])
    ids, outcome = await collect(session(engine=fake_engine(seconds=0.001), cloud=cloud))
    used = outcome.timeline.count(Source.CLOUD)
    assert 0 < used < 10
    assert ids[:used] == sent[:used]
    assert ids[used:] == [ids[used - 1] + 1 + i for i in range(10 - used)], "the rest is the device's"
    assert outcome.cloud_tokens_in_vain > 0


async def test_received_tokens_are_processed_in_batches(session, fake_engine, fake_cloud):
    engine = fake_engine(seconds=0.1)
    cloud = fake_cloud([[i] for i in range(101, 131)] + [CloudEnd.BUDGET])
    await collect(session(engine=engine, cloud=cloud, max_tokens=32))
    assert [len(call) for call in engine.calls[:2]] == [64, 66], (
        "the rest of the prompt and 30 tokens of the cloud"
    )


async def test_the_answer_goes_on_without_a_cloud_that_dies_in_mid_stream(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], [102], CloudLost("the stream broke off")])
    ids, outcome = await collect(session(engine=fake_engine(), cloud=cloud))
    assert ids == list(range(101, 111))
    assert outcome.cloud_error == "CloudLost: the stream broke off"


@pytest.mark.parametrize("error", [CloudUnreachable("no"), TokenizerMismatch("token 3"), CloudRefused("no")])
async def test_the_device_answers_alone_when_the_cloud_has_no_part(session, fake_engine, fake_cloud, error):
    cloud = fake_cloud([[555]], connect_error=error)
    ids, outcome = await collect(session(engine=fake_engine(ends_at=104), cloud=cloud))
    assert ids == [101, 102, 103, 104, EOS]
    assert outcome.finish_reason == "stop"
    assert outcome.cloud_error == f"{type(error).__name__}: {error}"
    assert cloud.opt_in is None, "nothing was sent"


async def test_a_silent_cloud_is_given_up(session, fake_engine, fake_cloud):
    cloud = fake_cloud([60])
    ids, outcome = await collect(session(engine=fake_engine(), cloud=cloud, patience={"first_token_s": 0.05}))
    assert ids == list(range(101, 111))
    assert outcome.cloud_error.startswith("CloudLost: no first token")
    assert cloud.cancelled == [outcome.handoff_id]


async def test_an_answer_that_ends_in_the_cloud_stops_the_device(session, fake_engine, fake_cloud):
    engine = fake_engine(seconds=30)
    cloud = fake_cloud([[101], ([102, EOS], CloudEnd.STOP)])
    with anyio.fail_after(5):
        ids, outcome = await collect(session(engine=engine, cloud=cloud))
    assert ids == [101, 102, EOS]
    assert (outcome.finish_reason, outcome.took_over_at) == ("stop", None)
    assert outcome.timeline.text == "<101><102>"
    assert engine.aborted
    assert cloud.cancelled == []


async def test_the_clouds_ids_end_the_devices_part(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], CloudEnd.BUDGET], eos_ids=(105,))
    ids, outcome = await collect(session(engine=fake_engine(), cloud=cloud))
    assert ids == [101, 102, 103, 104, 105]
    assert outcome.finish_reason == "stop"


async def test_a_late_device_is_helped_out_with_a_further_budget(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], [102], CloudEnd.BUDGET], [[[103], 9, [104], CloudEnd.BUDGET]])
    ids, outcome = await collect(
        session(engine=fake_engine(seconds=0.3), cloud=cloud, max_tokens=6, patience=SHORT)
    )
    assert ids == list(range(101, 107))
    assert outcome.timeline.count(Source.CLOUD) == 3
    assert outcome.extensions == 1
    assert cloud.asked[1].prompt_token_ids == (*PROMPT, 101, 102)
    assert cloud.asked[1].max_tokens == 4
    assert cloud.asked[1].decode_budget >= 4
    assert outcome.handoff_id == cloud.opt_in.handoff_id, "the latest"
    assert any("the device is late" in decision.what for decision in outcome.decisions)


async def test_a_device_that_stays_late_leaves_the_answer_to_the_cloud(session, fake_engine, fake_cloud):
    legs = [[[102 + i], CloudEnd.BUDGET] for i in range(3)] + [[[105, 106, EOS], CloudEnd.STOP]]
    cloud = fake_cloud([[101], CloudEnd.BUDGET], legs)
    ids, outcome = await collect(
        session(
            engine=fake_engine(seconds=30), cloud=cloud, max_tokens=50, patience={"max_extensions": 3, **SHORT}
        )
    )
    assert ids == [101, 102, 103, 104, 105, 106, EOS]
    assert outcome.extensions == 3
    assert cloud.asked[-1].decode_budget == 50 - 4, "uncapped"
    assert outcome.took_over_at is None


async def test_a_budget_is_not_extended_while_what_is_at_hand_lasts(session, fake_engine, fake_cloud):
    cloud = fake_cloud([list(range(101, 121)), CloudEnd.BUDGET])
    ids, outcome = await collect(
        session(
            engine=fake_engine(seconds=0.1),
            cloud=cloud,
            max_tokens=22,
            rate=20.0,
            decode_budget=20,
            patience=SHORT,
        )
    )
    assert ids == list(range(101, 123))
    assert (outcome.extensions, len(cloud.asked)) == (0, 1)


async def test_the_cloud_is_asked_again_when_a_device_is_far_from_ready(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], CloudLost("cut")], [[CloudRefused("busy", status=429)], [[102], CloudEnd.BUDGET]])
    ids, outcome = await collect(
        session(engine=fake_engine(seconds=0.3), cloud=cloud, max_tokens=4, patience=SHORT)
    )
    assert ids == [101, 102, 103, 104]
    assert outcome.cloud_retries == 2
    assert outcome.timeline.count(Source.CLOUD) == 2


async def test_a_retry_is_no_extension(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], CloudLost("cut")], [["goes on"]])
    patience = {**SHORT, "max_extensions": 0}
    making = session(
        engine=fake_engine(seconds=0.5), cloud=cloud, max_tokens=90, decode_budget=2, patience=patience
    )
    ids, outcome = await collect(making)
    assert ids == list(range(101, 191))
    assert (outcome.cloud_retries, outcome.extensions) == (1, 0)
    assert cloud.asked[1].decode_budget < 89, "the budget of a device that is late, not the rest of the answer"
    assert all("may finish" not in decision.what for decision in outcome.decisions)


BUSY = CloudRefused("busy", status=429, retry_after=3.0)


async def test_a_cloud_that_says_when_to_come_back_is_asked_then(session, fake_cloud):
    cloud = fake_cloud([BUSY], [["goes on"]])
    posted = []
    stream = cloud.stream

    def noted(*args, **options):
        posted.append(anyio.current_time())
        return stream(*args, **options)

    cloud.stream = noted
    ids, _ = await collect(session(cloud=cloud, max_tokens=3, patience=SHORT))
    assert len(ids) == 3
    assert posted[1] - posted[0] == pytest.approx(3.0, abs=0.2)


@pytest.mark.parametrize("engine", [True, False])
async def test_a_cloud_that_says_to_come_back_in_an_hour_is_not_asked_again(
    session, fake_engine, fake_cloud, engine
):
    cloud = fake_cloud([CloudRefused("busy", status=429, retry_after=3600.0)], [["goes on"]])
    making = session(
        engine=fake_engine(seconds=0.3) if engine else None, cloud=cloud, max_tokens=4, patience=SHORT
    )
    begun = anyio.current_time()
    if engine:
        ids, _ = await collect(making)
        assert ids == [101, 102, 103, 104]
    else:
        with pytest.raises(CloudRefused, match="busy"):
            await collect(making)
    assert len(cloud.asked) == 1
    assert anyio.current_time() - begun < 60


async def test_a_cloud_that_refuses_for_good_is_not_asked_again(session, fake_engine, fake_cloud):
    cloud = fake_cloud([CloudRefused("wrong key", status=401)], [[[999]]])
    ids, outcome = await collect(
        session(engine=fake_engine(seconds=0.2), cloud=cloud, max_tokens=4, patience=SHORT)
    )
    assert ids == [101, 102, 103, 104]
    assert (len(cloud.asked), outcome.cloud_retries) == (1, 0)
    assert outcome.cloud_error == "CloudRefused: wrong key"


async def test_the_cloud_finishes_behind_a_device_that_fails_after_its_take_over(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], CloudEnd.BUDGET], [[[106, 107], 0.01, ([108], CloudEnd.LENGTH)]])
    ids, outcome = await collect(
        session(engine=fake_engine(fails_at=6), cloud=cloud, max_tokens=8, decode_budget=1)
    )
    assert ids == list(range(101, 109))
    assert [str(t.source)[0] for t in outcome.timeline.tokens] == ["c", "d", "d", "d", "d", "c", "c", "c"]
    assert cloud.asked[1].prompt_token_ids == (*PROMPT, *range(101, 106))
    assert cloud.asked[1].decode_budget == 3
    assert outcome.finish_reason == "length"


async def test_a_device_that_hangs_after_its_take_over_is_given_up(session, fake_engine, fake_cloud):
    engine = fake_engine()
    extend = engine.extend

    async def hanging(ids, **options):
        if len(engine.calls) > 5:
            await anyio.sleep(60)
        return await extend(ids, **options)

    engine.extend = hanging
    cloud = fake_cloud([[101], CloudEnd.BUDGET], [["goes on"]])
    with anyio.fail_after(10):
        ids, outcome = await collect(
            session(engine=engine, cloud=cloud, max_tokens=10, patience={"device_step_s": 0.1})
        )
    assert ids == list(range(101, 111))
    assert outcome.timeline.count(Source.DEVICE) > 0
    assert any("did not come back within 0.1 s" in decision.what for decision in outcome.decisions)


@pytest.mark.parametrize("calls", [0, 5], ids=["in prefill", "after its take-over"])
async def test_the_cloud_does_not_wait_for_a_device_that_cannot_be_stopped(
    session, fake_engine, fake_cloud, calls
):
    engine = fake_engine()
    extend = engine.extend

    async def stuck(ids, **options):
        if len(engine.calls) >= calls:
            with anyio.CancelScope(shield=True):  # as llama.cpp's thread does while it computes
                await anyio.sleep(4)
        return await extend(ids, **options)

    engine.extend = stuck
    cloud = fake_cloud([[101], CloudEnd.BUDGET], [["goes on"]] * 3)
    async with session(engine=engine, cloud=cloud, max_tokens=10, patience={"device_step_s": 0.1}) as answer:
        ids = [token.token_id async for token in answer]
        assert ids == list(range(101, 111))
        assert answer.outcome.timeline.tokens[-1].shown_at < 3.5


async def test_where_the_output_counts_the_cloud_repeats_it_and_is_checked(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], [102], CloudEnd.BUDGET], [[[101, 102, 103], ([104], CloudEnd.LENGTH)]])
    ids, outcome = await collect(
        session(
            engine=fake_engine(fails_at=0),
            cloud=cloud,
            max_tokens=4,
            fields={"presence_penalty": 0.5},
            patience=SHORT,
        )
    )
    assert ids == [101, 102, 103, 104]
    assert cloud.asked[1].prompt_token_ids == tuple(PROMPT)
    assert outcome.cloud_tokens_in_vain == 2


async def test_where_it_does_not_repeat_itself_penalties_begin_anew(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], [102], CloudEnd.BUDGET], [[[101, 777, 103]], ["goes on"]])
    ids, outcome = await collect(
        session(
            engine=fake_engine(fails_at=0),
            cloud=cloud,
            max_tokens=4,
            fields={"presence_penalty": 0.5},
            patience=SHORT,
        )
    )
    assert ids == [101, 102, 103, 104]
    assert cloud.asked[2].prompt_token_ids == (*PROMPT, 101, 102)
    assert outcome.cloud_retries == 1


async def test_where_it_does_not_repeat_itself_a_late_device_is_waited_for(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], [102], CloudEnd.BUDGET], [[[101, 777, 103]], ["goes on"]])
    ids, outcome = await collect(
        session(
            engine=fake_engine(seconds=0.3),
            cloud=cloud,
            max_tokens=4,
            fields={"presence_penalty": 0.5},
            patience=SHORT,
        )
    )
    assert ids == [101, 102, 103, 104]
    assert [str(t.source)[0] for t in outcome.timeline.tokens] == ["c", "c", "d", "d"]
    assert len(cloud.asked) == 2


async def test_where_it_does_not_repeat_itself_a_grammar_has_it_try_again(session, fake_cloud):
    again = [[101, 102, 103], ([104], CloudEnd.LENGTH)]
    cloud = fake_cloud([[101, 102], CloudLost("cut")], [[[101, 777]], again])
    fields = {"grammar": Grammar(GrammarKind.JSON_OBJECT)}
    ids, outcome = await collect(session(cloud=cloud, max_tokens=4, fields=fields))
    assert ids == [101, 102, 103, 104]
    assert cloud.asked[2].prompt_token_ids == tuple(PROMPT)
    assert outcome.cloud_retries == 2


async def test_a_cloud_that_never_repeats_itself_cannot_go_on_in_a_grammar(session, fake_cloud):
    cloud = fake_cloud([[101, 102], CloudLost("cut")], [[[101, 777, 103]]] * 2)
    answer = session(cloud=cloud, max_tokens=4, fields={"grammar": Grammar(GrammarKind.JSON_OBJECT)})
    with pytest.raises(CloudRefused, match="did not repeat the answer: token 1"):
        await collect(answer)
    assert [token.token_id for token in answer.outcome.timeline.tokens] == [101, 102]


async def test_a_cloud_that_grants_nothing_is_not_asked_forever(session, fake_cloud, fake_engine):
    cloud = fake_cloud([[101], CloudEnd.BUDGET], [[CloudEnd.BUDGET] for _ in range(99)])
    answer = session(engine=fake_engine(fails_at=0), cloud=cloud)
    with pytest.raises(CloudLost, match="without a token"):
        await collect(answer)
    assert len(cloud.asked) == 4, "the first leg, the one to finish, and two retries"


async def test_a_silent_stream_is_lost_and_asked_for_again(session, fake_cloud):
    cloud = fake_cloud([[101], 60], [[[102], CloudEnd.LENGTH]])
    with anyio.fail_after(10):
        ids, outcome = await collect(session(cloud=cloud, patience={"cloud_silence_s": 0.05}))
    assert ids == [101, 102]
    assert outcome.cloud_retries == 1


async def test_a_cloud_that_does_not_even_say_what_it_is_is_given_up(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101]])

    async def silent(vocab):
        await anyio.sleep_forever()

    cloud.connected = silent
    answer = session(
        cloud=cloud, vocab=fake_engine().vocab, patience={"cloud_prefill_s": 0.05, "cloud_retries": 1}
    )
    with anyio.fail_after(10), pytest.raises(CloudLost, match=r"no word from the cloud within 0\.05 s"):
        await collect(answer)
    assert answer.outcome.cloud_retries == 1
    assert cloud.asked == []


async def test_a_cloud_faster_than_the_devices_steps_is_closed_on_the_last_lap(session, fake_engine, fake_cloud):
    fast = [step for i in range(101, 160) for step in ([i], 0.004)]
    cloud = fake_cloud([*fast, CloudEnd.BUDGET])
    ids, outcome = await collect(session(engine=fake_engine(seconds=0.02), cloud=cloud, max_tokens=60, rate=50.0))
    assert ids == list(range(101, 161))
    assert any("was closed" in decision.what for decision in outcome.decisions)
    assert outcome.cancel_confirmed is True
    assert outcome.timeline.count(Source.DEVICE) > 5


async def test_the_cloud_alone_answers_without_opting_in(session, fake_cloud):
    cloud = fake_cloud([[101], [102, 103], CloudEnd.LENGTH])
    ids, outcome = await collect(session(cloud=cloud))
    assert ids == [101, 102, 103]
    assert (outcome.mode, outcome.finish_reason, outcome.handoff_id) == ("cloud_only", "length", None)
    assert cloud.opt_in is None
    assert [t.text for t in outcome.timeline.tokens] == ["[101]", "", "[102][103]"]


async def test_a_grammar_that_could_end_a_process_is_not_sent_to_the_cloud_either(session, fake_cloud):
    cloud = fake_cloud([[101], CloudEnd.LENGTH])
    fields = {"grammar": Grammar(GrammarKind.JSON, '{"type": "integer", "const": -1e30}')}
    with pytest.raises(InvalidGrammar):
        await collect(session(cloud=cloud, fields=fields))
    assert cloud.asked == []


async def test_a_lost_cloud_without_a_device_is_an_error_after_its_last_token(session, fake_cloud):
    answer = session(cloud=fake_cloud([[101, 102], CloudLost("broke off")]), patience={"cloud_retries": 0})
    with pytest.raises(CloudLost, match="broke off"):
        await collect(answer)
    assert [token.token_id for token in answer.outcome.timeline.tokens] == [101, 102]
    assert answer.outcome.finish_reason == "error"


async def test_the_device_alone(session, fake_engine):
    progress = []
    ids, outcome = await collect(session(engine=fake_engine(), on_progress=lambda *p: progress.append(p)))
    assert ids == list(range(101, 111))
    assert (outcome.mode, outcome.took_over_at, outcome.cloud_error) == ("device_only", None, None)
    assert progress == [(64, 100, "prefill"), (100, 100, "prefill")]


async def test_a_failed_device_leaves_the_answer_to_the_cloud(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], 0.01, ([102, EOS], CloudEnd.STOP)])
    ids, outcome = await collect(session(engine=fake_engine(fails_at=0), cloud=cloud))
    assert ids == [101, 102, EOS]
    assert outcome.finish_reason == "stop"


async def test_a_device_that_computes_no_numbers_leaves_the_answer_to_the_cloud(session, fake_engine, fake_cloud):
    engine = fake_engine()
    extend = engine.extend

    async def broken(ids, **options):
        logits = await extend(ids, **options)
        if len(engine.calls) > 4 and logits is not None:
            logits[:] = math.nan
        return logits

    engine.extend = broken
    cloud = fake_cloud([[101], CloudEnd.BUDGET], [["goes on"]])
    ids, outcome = await collect(session(engine=engine, cloud=cloud))
    assert ids == list(range(101, 111))
    assert 0 < outcome.timeline.count(Source.DEVICE) < 9
    assert any("not numbers" in decision.what for decision in outcome.decisions)


@pytest.mark.parametrize("error", [MemoryError(), ValueError("a mistake")])
@pytest.mark.parametrize("calls", [0, 5], ids=["in prefill", "after its take-over"])
async def test_a_device_that_fails_as_it_should_not_is_one_that_fails(
    session, fake_engine, fake_cloud, error, calls, caplog
):
    engine = fake_engine()
    extend = engine.extend

    async def broken(ids, **options):
        if len(engine.calls) >= calls:
            raise error
        return await extend(ids, **options)

    engine.extend = broken
    ids, outcome = await collect(
        session(engine=engine, cloud=fake_cloud([[101], CloudEnd.BUDGET], [["goes on"]] * 2))
    )
    assert ids == list(range(101, 111))
    assert f"the device failed: {type(error).__name__}" in str(outcome.decisions)
    assert "failed as it should not" in caplog.text


async def test_both_engines_lost_is_an_error_after_everything_received(session, fake_engine, fake_cloud):
    answer = session(engine=fake_engine(fails_at=1), cloud=fake_cloud([[101, 102], CloudEnd.BUDGET]))
    with pytest.raises(CloudUnreachable):
        await collect(answer)
    assert answer.outcome.cloud_retries == 2


async def test_a_failed_device_without_a_cloud_is_an_error(session, fake_engine):
    answer = session(engine=fake_engine(fails_at=3))
    with pytest.raises(DeviceEngineFailed, match="-3"):
        await collect(answer)
    assert [token.token_id for token in answer.outcome.timeline.tokens] == [101, 102]
    assert answer.outcome.finish_reason == "error"


async def test_an_error_of_the_consumer_stays_what_it_is(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], 60])

    async def consume():
        async with session(engine=fake_engine(seconds=30), cloud=cloud) as answer:
            raise KeyError((await anext(answer)).token_id)

    with pytest.raises(KeyError, match="101"):
        await consume()
    assert cloud.closed


async def test_a_consumer_that_leaves_stops_both_engines(session, fake_engine, fake_cloud):
    engine = fake_engine(seconds=30)
    cloud = fake_cloud([[101], [102], 60])
    with anyio.fail_after(20):
        async with session(engine=engine, cloud=cloud) as answer:
            async for _ in answer:
                break
    assert answer.outcome.finish_reason == "cancelled"
    assert len(answer.outcome.timeline.tokens) == 1
    assert engine.aborted
    assert cloud.closed
    assert cloud.cancelled == [answer.outcome.handoff_id]
    assert answer.outcome.cancel_confirmed is True


async def test_a_cancelled_consumer_stops_both_engines(session, fake_engine, fake_cloud):
    engine = fake_engine(seconds=30)
    cloud = fake_cloud([[101], 60])
    with anyio.move_on_after(0.1) as scope:
        await collect(session(engine=engine, cloud=cloud))
    assert scope.cancelled_caught
    assert engine.aborted
    assert len(cloud.cancelled) == 1


async def test_a_cloud_that_does_not_answer_the_cancel_does_not_hold_the_session(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], 60], cancel_timeout=0.05)

    async def never(handoff_id, **_):
        await anyio.sleep(60)

    cloud.cancel = never
    with anyio.fail_after(5):
        ids, outcome = await collect(session(engine=fake_engine(), cloud=cloud))
    assert len(ids) == 10
    assert outcome.cancel_confirmed is None
    assert cloud.closed


@pytest.mark.parametrize("when", ["in mid-stream", "after the take-over"])
async def test_nor_does_it_hold_a_consumer_that_leaves(session, fake_engine, fake_cloud, monkeypatch, when):
    monkeypatch.setattr("pdd_llamacpp_adapter.session.cloud_leg._LEAVING_S", 0.05)
    cloud = fake_cloud([[101], 60], cancel_timeout=300.0)
    asked = []

    async def never(handoff_id, **_):
        asked.append(handoff_id)
        await anyio.sleep_forever()

    cloud.cancel = never
    engine = fake_engine(seconds=30 if when == "in mid-stream" else 0)
    with anyio.fail_after(20):
        async with session(engine=engine, cloud=cloud, max_tokens=400) as answer:
            await anext(answer)
            if when == "after the take-over":
                while answer.outcome.took_over_at is None or not asked:
                    await anyio.sleep(0.01)
    assert asked == [answer.outcome.handoff_id]
    assert cloud.closed


async def test_a_cancel_that_fails_does_not_touch_the_answer(session, fake_engine, fake_cloud):
    cloud = fake_cloud([[101], 60], cancel_error=CloudUnreachable("gone"))
    ids, outcome = await collect(session(engine=fake_engine(), cloud=cloud))
    assert len(ids) == 10
    assert (outcome.cancel_confirmed, outcome.cloud_error) == (None, None)


async def test_no_token_is_shown_before_it_is_due(session, fake_engine, fake_cloud):
    due_at = {}

    def due(now, *, shown, shown_at, **_):
        due_at[shown] = shown_at + 0.01
        return due_at[shown]

    policies = Policies({"builtin": FixedRatePacing(), "probe": Pacers(due)}, allow=())
    cloud = fake_cloud([list(range(101, 106)), CloudEnd.BUDGET])
    _, outcome = await collect(session(engine=fake_engine(), cloud=cloud, policies=policies))
    assert sorted(due_at) == list(range(1, 10)), "the first one is shown on arrival"
    assert all(token.shown_at >= due_at[token.index] for token in outcome.timeline.tokens[1:])


@pytest.mark.parametrize(("flush_within", "rate"), [(0.1, 0.5), (math.inf, 10.0)])
async def test_a_finished_answer_is_flushed_or_keeps_its_rate(fake_cloud, session, flush_within, rate):
    cloud = fake_cloud([list(range(101, 111)), CloudEnd.LENGTH])
    policies = Policies({"adaptive": AdaptivePacing()}, allow=())
    _, outcome = await collect(session(cloud=cloud, rate=rate, policies=policies, flush_within=flush_within))
    tokens = outcome.timeline.tokens
    took, at_its_rate = tokens[-1].shown_at - tokens[0].shown_at, 9 / rate
    assert took < at_its_rate / 2 if flush_within < 1 else took >= 0.99 * at_its_rate


async def test_a_token_that_waits_is_asked_about_again_when_the_answer_changes(session, fake_cloud):
    def due(now, *, complete, **_):
        return now if complete else now + 60

    policies = Policies({"builtin": FixedRatePacing(), "patient": Pacers(due)}, allow=())
    cloud = fake_cloud([[101, 102, 103], 0.1, CloudEnd.LENGTH])
    with anyio.fail_after(10):
        ids, _ = await collect(session(cloud=cloud, policies=policies))
    assert ids == [101, 102, 103]


class Pacers:
    """A policy plugin whose pacer is `due`."""

    def __init__(self, due):
        self.due = due

    @hookimpl
    def pdd_pace(self):
        return self


async def test_a_pacer_learns_what_it_needs(session, fake_engine, fake_cloud):
    seen = []

    engine, asked = fake_engine(seconds=0.02), anyio.Event()
    extend = engine.extend

    async def extending(ids, **options):
        await asked.wait()
        return await extend(ids, **options)

    def due(now, **known):
        seen.append(known)
        asked.set()
        return now

    engine.extend = extending
    policies = Policies({"builtin": FixedRatePacing(), "probe": Pacers(due)}, allow=())
    cloud = fake_cloud([[101, 102], 0.03, [103], CloudEnd.BUDGET])
    await collect(session(engine=engine, cloud=cloud, policies=policies, max_tokens=6, decode_budget=3))
    first, last = seen[0], seen[-1]
    assert (first["shown"], first["buffered"], first["complete"], first["cloud_left"]) == (1, 1, False, 1)
    assert first["ready_in"] is None, "no estimate before the first chunk"
    assert not first["cloud_step"]
    assert first["device_step"] is None
    assert [known["cloud_left"] for known in seen if known["shown"] == 3] == [0]
    assert (last["complete"], last["ready_in"]) == (True, 0.0)
    assert last["cloud_step"] > 0.01
    assert last["device_step"] > 0.01
    assert all(known["idle"] >= 0 for known in seen)


@pytest.mark.parametrize("value", [math.nan, math.inf, "soon", ValueError("boom")])
async def test_a_failing_pacer_costs_the_pacing_not_the_answer(session, fake_engine, caplog, value):
    def due(now, **_):
        if isinstance(value, Exception):
            raise value
        return value

    policies = Policies({"builtin": FixedRatePacing(), "broken": Pacers(due)}, allow=())
    with anyio.fail_after(5):
        ids, _ = await collect(session(engine=fake_engine(), policies=policies))
    assert ids == list(range(101, 111))
    assert [record.message for record in caplog.records if "'broken'" in record.message] != []


async def test_a_token_survives_a_consumer_that_was_interrupted_while_it_waited(session, fake_engine):
    ids = []
    async with session(engine=fake_engine(), rate=20.0, max_tokens=5) as answer:
        while len(ids) < 5:
            with anyio.move_on_after(0.03):
                ids.append((await anext(answer)).token_id)
    assert ids == [101, 102, 103, 104, 105]


async def test_an_answer_that_does_not_fit_is_refused_before_any_work(session, fake_engine, fake_cloud):
    engine, cloud = fake_engine(n_ctx=105), fake_cloud([[101]])
    with pytest.raises(ContextOverflow, match="maximum context length is 105 tokens"):
        async with session(engine=engine, cloud=cloud):
            pass
    assert engine.calls == []
    assert cloud.opt_in is None


async def test_a_session_needs_an_engine():
    with pytest.raises(ConfigurationError):
        AnswerSession(AnswerRequest(prompt_token_ids=[1], max_tokens=1))


async def test_a_session_makes_one_answer(session, fake_engine):
    used = session(engine=fake_engine())
    await collect(used)
    with pytest.raises(ConfigurationError, match="one answer"):
        await collect(used)


@pytest.mark.parametrize("features", [("decode_budget", "budget_policies"), ("decode_budget",)])
async def test_a_cloud_is_told_only_what_it_knows(session, fake_engine, fake_cloud, features):
    cloud = fake_cloud([[101], [102], CloudLost("gone")], later=[["goes on"]], features=features)
    made = session(engine=fake_engine(fails_at=0), cloud=cloud, fields={"decode_budget": 9, "least_budget": 5})
    await collect(made)
    first, *others = cloud.opt_ins
    knows = "budget_policies" in features
    assert (first.decode_budget, first.least_budget, first.extends) == (9, 5 if knows else None, None)
    assert others
    assert {(one.least_budget, one.extends) for one in others} == {(None, first.handoff_id if knows else None)}

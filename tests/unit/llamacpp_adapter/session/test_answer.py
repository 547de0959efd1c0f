from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import CloudLost, DeviceEngineFailed
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.cloud.cloud_stream import CloudEnd
from pdd_llamacpp_adapter.session.answer import Answer
from pdd_llamacpp_adapter.session.answer_text import AnswerText

EOS = 7
PROMPT = (1, 2, 3)

events = st.lists(
    st.one_of(
        st.tuples(st.just("sent"), st.lists(st.integers(8, 99) | st.just(EOS), max_size=4)),
        st.tuples(st.just("ended"), st.sampled_from(list(CloudEnd))),
        st.tuples(st.just("lost"), st.none()),
        st.tuples(st.just("processed"), st.integers(1, 6)),
        st.tuples(st.just("take_over"), st.none()),
        st.tuples(st.just("made"), st.integers(8, 99) | st.just(EOS)),
        st.tuples(st.just("failed"), st.none()),
        st.tuples(st.just("closed"), st.none()),
        st.tuples(st.just("resumes"), st.none()),
        st.tuples(st.just("gives up"), st.none()),
    ),
    max_size=40,
)


def play(answer, event, value):
    """Feed one event, as the parts of a session would."""
    match event:
        case "sent":
            answer.cloud_sent(value)
        case "ended":
            answer.cloud_ended(value)
        case "lost":
            answer.cloud_lost(CloudLost("gone"))
        case "processed":
            answer.device_processed(len(answer.pending(value)))
        case "take_over":
            answer.take_over()
        case "made":
            if answer.owner is Source.DEVICE and not answer.finished and answer.device_error is None:
                answer.device_made(value)
        case "failed":
            answer.device_failed(DeviceEngineFailed("broken"))
        case "closed":
            answer.cloud_closed()
        case "resumes":
            if (
                not answer.cloud_running and not answer.finished and answer.owner is Source.CLOUD
            ) or answer.stranded:
                answer.cloud_resumes()
        case "gives up":
            answer.give_up()


@given(events, st.booleans(), st.booleans(), st.integers(1, 12))
def test_no_order_of_events_loses_repeats_or_retracts_a_token(history, cloud, device, max_tokens):
    answer = Answer(PROMPT, max_tokens=max_tokens, stop_ids=(EOS,), cloud=cloud, device=device)
    sent = 0
    shown: list[int] = []
    for event, value in history:
        owner, finished, reason = answer.owner, answer.finished, answer.finish_reason
        if event == "sent":
            sent += len(value)
        play(answer, event, value)

        ids = answer.ids
        assert ids[: len(shown)] == shown, "what was there stays"
        assert [answer[i] for i in range(len(answer))] == ids
        fresh = answer.sources[len(shown) :]
        assert len(answer.sources) == len(answer.texts) == len(answer.logprobs) == len(ids)
        if fresh:
            assert not finished
            assert set(fresh) == {owner}, "only the owner's tokens count"
        shown = ids
        from_cloud = answer.sources.count(Source.CLOUD)
        assert from_cloud + answer.in_vain == sent, "every token of the cloud's is used or counted"
        assert len(ids) <= max_tokens
        assert EOS not in ids[:-1]
        assert answer.processed <= len(PROMPT) + len(ids)
        assert not (finished and answer.finish_reason != reason), "an end is final"
        if owner is Source.DEVICE and answer.owner is Source.CLOUD:
            assert event == "resumes", "the answer goes back only to a cloud that was asked to go on"
        assert not (answer.owner is Source.DEVICE and answer.cloud_running)
        if answer.finish_reason == "error":
            assert answer.error is not None


@given(events, st.integers(1, 12))
def test_the_device_takes_over_only_what_it_has_processed(history, max_tokens):
    answer = Answer(PROMPT, max_tokens=max_tokens, stop_ids=(EOS,), cloud=True, device=True)
    for event, value in history:
        allowed = answer.may_take_over
        before, running = answer.owner, answer.cloud_running
        play(answer, event, value)
        if before is Source.CLOUD and answer.owner is Source.DEVICE:
            assert allowed
            assert event == "take_over"
            assert answer.behind == 0
            assert len(answer) or not running


@given(events)
def test_an_answer_with_an_able_device_can_always_be_finished(history):
    answer = Answer(PROMPT, max_tokens=20, stop_ids=(EOS,), cloud=True, device=True)
    for event, value in history:
        if event != "failed":
            play(answer, event, value)
    answer.cloud_lost(CloudLost("gone"))
    if answer.owner is Source.CLOUD:
        answer.device_processed(answer.behind)
        answer.take_over()
    if not answer.finished:
        answer.device_made(EOS)
    assert answer.finish_reason in ("stop", "length")


def test_a_device_that_is_ready_first_waits_for_the_clouds_first_token():
    answer = Answer(PROMPT, max_tokens=8, cloud=True, device=True)
    answer.device_processed(3)
    assert not answer.take_over()
    answer.cloud_sent([50])
    assert not answer.take_over(), "the new token is not processed yet"
    answer.device_processed(1)
    assert answer.take_over()


def test_tokens_after_the_take_over_are_counted_and_dropped():
    answer = Answer(PROMPT, max_tokens=8, cloud=True, device=True)
    answer.cloud_sent([50])
    answer.device_processed(4)
    answer.take_over()
    answer.cloud_sent([51, 52])
    answer.device_made(60)
    answer.cloud_ended(CloudEnd.STOP)
    assert answer.ids == [50, 60]
    assert answer.in_vain == 2
    assert not answer.finished


def test_a_spent_budget_leaves_the_answer_to_the_device():
    answer = Answer(PROMPT, max_tokens=8, cloud=True, device=True)
    answer.cloud_sent([50])
    answer.cloud_ended(CloudEnd.BUDGET)
    assert not answer.finished
    answer.device_processed(4)
    assert answer.take_over()


def test_the_cloud_finishes_an_answer_whose_device_failed():
    answer = Answer(PROMPT, max_tokens=8, cloud=True, device=True)
    answer.device_failed(DeviceEngineFailed("broken"))
    answer.cloud_sent([50])
    answer.cloud_ended(CloudEnd.STOP)
    assert (answer.finish_reason, answer.error) == ("stop", None)


@pytest.mark.parametrize("last_word", ["budget", "lost", "device"])
def test_an_answer_that_nobody_works_on_is_stranded_until_the_cloud_resumes_or_it_is_given_up(last_word):
    answer = Answer(PROMPT, max_tokens=8, cloud=True, device=True)
    answer.cloud_sent([50])
    if last_word != "device":
        answer.device_failed(DeviceEngineFailed("broken"))
    assert not answer.stranded
    if last_word == "budget":
        answer.cloud_ended(CloudEnd.BUDGET)
    else:
        answer.cloud_lost(CloudLost("gone"))
    if last_word == "device":
        answer.device_failed(DeviceEngineFailed("broken"))
    assert answer.stranded
    answer.cloud_resumes()
    answer.give_up()
    assert not answer.finished, "the cloud is at work"
    answer.cloud_sent([51])
    answer.cloud_ended(CloudEnd.BUDGET)
    answer.give_up()
    assert answer.finish_reason == "error"
    assert answer.error is (answer.cloud_error or answer.device_error)
    assert answer.ids == [50, 51]


def test_the_cloud_goes_on_behind_a_device_that_failed():
    answer = Answer(PROMPT, max_tokens=4, cloud=True, device=True)
    answer.cloud_sent([50])
    answer.device_processed(4)
    assert answer.take_over()
    answer.device_made(51)
    answer.device_failed(DeviceEngineFailed("broken"))
    answer.cloud_resumes()
    answer.cloud_sent([52, 53, 54])
    assert answer.ids == [50, 51, 52, 53]
    assert [str(source) for source in answer.sources] == ["cloud", "device", "cloud", "cloud"]
    assert (answer.finish_reason, answer.in_vain) == ("length", 1)


def test_a_stop_string_ends_the_answer_and_is_not_part_of_its_text():
    pieces = {50: b"one ", 51: b"ST", 52: b"OP two"}
    answer = Answer(PROMPT, max_tokens=9, cloud=True, device=True, text=AnswerText(pieces.get, stop=["STOP"]))
    answer.cloud_sent([50, 51])
    assert answer.texts == ["one ", ""], "ST may be the beginning of STOP"
    answer.device_processed(5)
    answer.take_over()
    answer.device_made(52)
    assert "".join(answer.texts) + answer.tail == "one "
    assert (answer.finish_reason, answer.stop_reason) == ("stop", "STOP")


def test_withheld_text_is_not_lost_when_the_answer_ends_without_a_further_token():
    answer = Answer(
        PROMPT, max_tokens=9, cloud=True, device=False, text=AnswerText(lambda _: b"ST", stop=["STOP"])
    )
    answer.cloud_sent([50])
    answer.cloud_ended(CloudEnd.LENGTH)
    assert (answer.texts, answer.tail) == ([""], "ST")


def test_only_a_stop_token_of_the_request_is_a_stop_reason():
    for stop_token_ids, reason in (((), None), ((EOS,), EOS)):
        answer = Answer(
            PROMPT, max_tokens=9, stop_ids=(EOS,), stop_token_ids=stop_token_ids, cloud=True, device=True
        )
        answer.cloud_sent([EOS])
        assert (answer.finish_reason, answer.stop_reason) == ("stop", reason)


def test_a_device_cannot_write_into_the_clouds_answer():
    answer = Answer(PROMPT, max_tokens=8, cloud=True, device=True)
    with pytest.raises(DeviceEngineFailed):
        answer.device_made(50)


@pytest.mark.parametrize("keeps_stop", [False, True])
def test_the_text_of_a_stop_token_is_shown_where_that_is_asked_for(keeps_stop):
    text = AnswerText(lambda token: b"." if token == 9 else b"a", keeps_stop=keeps_stop)
    answer = Answer([1], max_tokens=9, stop_ids=[9], stop_token_ids=[9], text=text, cloud=True, device=False)
    answer.cloud_sent([7, 9])
    assert (answer.texts, answer.stop_reason) == (["a", "." if keeps_stop else ""], 9)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import CloudLost, DeviceEngineFailed
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.answer import Answer, CloudEnd

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
    ),
    max_size=40,
)


def play(answer, event, value):
    """Feed one event, as the parts of a session would. Returns the tokens that were offered."""
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


@given(events, st.booleans(), st.booleans(), st.integers(1, 12))
def test_no_order_of_events_loses_repeats_or_retracts_a_token(history, cloud, device, max_tokens):
    answer = Answer(PROMPT, max_tokens=max_tokens, stop_ids=(EOS,), cloud=cloud, device=device)
    sent: list[int] = []
    shown: list[int] = []
    for event, value in history:
        owner, finished, reason = answer.owner, answer.finished, answer.finish_reason
        if event == "sent":
            sent += value
        play(answer, event, value)

        ids = answer.ids
        assert ids[: len(shown)] == shown, "what was there stays"
        assert [answer[i] for i in range(len(answer))] == ids
        if len(ids) > len(shown):
            assert not finished
            assert owner is (Source.CLOUD if event == "sent" else Source.DEVICE)
        shown = ids
        assert shown[: answer.cloud_tokens] == sent[: answer.cloud_tokens], (
            "the cloud's part is its stream's prefix"
        )
        assert answer.cloud_tokens + answer.in_vain == len(sent), "every token is used or counted"
        assert answer.owner is Source.DEVICE or len(ids) == answer.cloud_tokens
        assert len(ids) <= max_tokens
        assert EOS not in ids[:-1]
        assert answer.processed <= len(PROMPT) + len(ids)
        assert not (finished and answer.finish_reason != reason), "an end is final"
        if owner is Source.DEVICE:
            assert answer.owner is Source.DEVICE
        if answer.finish_reason == "error":
            assert answer.error is not None


@given(events, st.integers(1, 12))
def test_the_device_takes_over_only_what_it_has_processed(history, max_tokens):
    answer = Answer(PROMPT, max_tokens=max_tokens, stop_ids=(EOS,), cloud=True, device=True)
    for event, value in history:
        allowed = answer.may_take_over
        before = answer.owner
        play(answer, event, value)
        if before is Source.CLOUD and answer.owner is Source.DEVICE:
            assert allowed
            assert event == "take_over"
            assert answer.behind == 0
            assert answer.cloud_tokens or not answer.cloud_running


@given(events)
def test_an_answer_with_an_able_device_can_always_be_finished(history):
    answer = Answer(PROMPT, max_tokens=20, stop_ids=(EOS,), cloud=True, device=True)
    for event, value in history:
        if event != "failed":
            play(answer, event, value)
    answer.cloud_lost(CloudLost("gone"))
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
def test_an_answer_that_nobody_can_go_on_with_ends_in_an_error(last_word):
    answer = Answer(PROMPT, max_tokens=8, cloud=True, device=True)
    answer.cloud_sent([50])
    if last_word != "device":
        answer.device_failed(DeviceEngineFailed("broken"))
    if last_word == "budget":
        answer.cloud_ended(CloudEnd.BUDGET)
    else:
        answer.cloud_lost(CloudLost("gone"))
    if last_word == "device":
        answer.device_failed(DeviceEngineFailed("broken"))
    assert answer.finish_reason == "error"
    assert isinstance(answer.error, DeviceEngineFailed)
    assert answer.ids == [50]


def test_a_device_cannot_write_into_the_clouds_answer():
    answer = Answer(PROMPT, max_tokens=8, cloud=True, device=True)
    with pytest.raises(DeviceEngineFailed):
        answer.device_made(50)

from __future__ import annotations

import re

import pytest

from pdd_cli.demo.verdict import verdict
from pdd_cli.demo.ways import Way
from pdd_llamacpp_adapter.session.outcome import KVReport, Mode


@pytest.fixture
def sentence(facts, outcome):
    def make(
        handoff: dict, device_only: dict | None = None, cloud_only: dict | None = None, kv: dict | None = None
    ) -> str:
        outcomes = {
            Way.HANDOFF: outcome(Mode.HANDOFF, **{"cloud": 156, "device": 244, **handoff}),
            Way.DEVICE_ONLY: outcome(Mode.DEVICE_ONLY, **{"ttft": 15.0, "device": 400, **(device_only or {})}),
            Way.CLOUD_ONLY: outcome(Mode.CLOUD_ONLY, **{"cloud": 400, **(cloud_only or {})}),
        }
        if kv is not None:
            outcomes[Way.KV_HANDOFF] = outcome(
                Mode.HANDOFF, **{"cloud": 20, "device": 380, "took_over": 6.0, **kv}
            )
        return verdict(facts, outcomes)

    return make


def test_a_win_is_told_with_its_figures(sentence) -> None:
    assert sentence({}) == (
        "The handoff paid: its answer began after 5.0 s, 67 % sooner than on the device alone (15.0 s), "
        "it never stalled (longest gap 125 ms), and the device made 244 of its 400 tokens (61 %); "
        "all three answers are the same, token for token."
    )


def test_a_stall_makes_it_a_partial_win(sentence) -> None:
    told = sentence({"longest": 2.0})
    assert told.startswith("The handoff paid only in part:")
    assert "it stalled (longest gap 2000 ms where 125 ms were asked for)" in told


def test_no_sooner_than_the_device_is_no_win(sentence) -> None:
    told = sentence({"ttft": 5.0}, {"ttft": 4.0})
    assert told.startswith("The handoff did not pay here:")
    assert "25 % later than on the device alone" in told


def test_a_device_that_never_caught_up_is_said_so(sentence) -> None:
    told = sentence({"cloud": 400, "device": 0})
    assert told.startswith("The handoff paid only in part:")
    assert "the cloud made all 400 tokens because the answer ended before the device had caught up" in told


def test_a_failed_cloud_shows_nothing(sentence) -> None:
    assert "CloudLost: gone" in sentence({"cloud_error": "CloudLost: gone"})


def test_the_first_difference_between_answers_is_counted(sentence) -> None:
    ids = [100 + index for index in range(400)]
    assert "the same for 7 tokens and then differ" in sentence({"ids": [*ids[:7], 1, *ids[8:]]})


def test_an_answer_cut_short_is_a_difference(sentence) -> None:
    assert "the same for 300 tokens and then differ" in sentence({}, cloud_only={"cloud": 300})


@pytest.mark.parametrize("handoff", [{}, {"longest": 3.0}, {"ttft": 20.0}, {"cloud": 400, "device": 0}])
def test_it_is_one_sentence(sentence, handoff) -> None:
    assert len(re.findall(r"\.(\s|$)", sentence(handoff))) == 1


def test_an_empty_answer_is_not_compared(sentence) -> None:
    assert "nothing to compare" in sentence({"cloud": 0, "device": 0})


CELLS = KVReport(cells=1000, prefilled=746, bytes=9_410_000, seconds=2.0)


def test_what_the_kv_cache_brought_is_told_beside_the_handoff(sentence) -> None:
    first, second = sentence({}), sentence({}, kv={"kv": CELLS})
    assert second == first + (
        " With 1,000 of 1,746 cells from the cloud (9.4 MB), the device took over after 6.0 s instead of 15.1 s, "
        "the cloud's part was 20 tokens instead of 156, it never stalled (longest gap 125 ms), and the answer is "
        "that of the handoff, token for token."
    )


def test_a_kv_cache_that_changes_the_answer_is_said_so(sentence) -> None:
    ids = [100 + index for index in range(400)]
    told = sentence({"ids": ids}, kv={"kv": CELLS, "ids": [*ids[:50], 1, *ids[51:]]})
    assert "that of the handoff for 50 tokens and then differs" in told
    assert "all three answers are the same" in told


@pytest.mark.parametrize(
    ("kv", "says"),
    [
        ({"kv": KVReport(reason="no_room")}, "did not reach the device (no_room), which read the prompt itself"),
        ({"kv": None}, "did not reach the device, which"),
        ({"kv": CELLS, "cloud_error": "CloudLost: gone"}, "The cloud failed in the handoff with the KV cache"),
        ({"kv": CELLS, "cloud": 400, "device": 0}, "still did not take over"),
    ],
)
def test_a_kv_cache_that_did_not_pay_is_said_so(sentence, kv: dict, says: str) -> None:
    assert says in sentence({}, kv=kv)

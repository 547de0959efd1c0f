from __future__ import annotations

import math

import pytest

from pdd_cli.plots.style import STALL, figure
from pdd_cli.plots.timeline import PlottedAnswer, draw_answer, draw_timeline
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.session.outcome import Mode

CLOUD, DEVICE = Source.CLOUD, Source.DEVICE


def answer(**changes) -> PlottedAnswer:
    fields = {
        "title": "Handoff",
        "received_at": [1.0, 1.1, 2.0, 2.1],
        "shown_at": [1.0, 1.5, 2.0, 4.0],
        "source": [CLOUD, CLOUD, DEVICE, DEVICE],
        "rate": 2.0,
        "caught_up_at": 1.8,
        "took_over_at": 1.9,
    }
    return PlottedAnswer(**{**fields, **changes})


def words(axes) -> str:
    labels = axes.get_legend_handles_labels()[1]
    return "\n".join([axes.get_title(loc="left"), *(text.get_text() for text in axes.texts), *labels])


def axes_of(plotted: PlottedAnswer):
    _, [axes] = figure()
    draw_answer(axes, plotted)
    return axes


def test_only_a_gap_that_a_reader_notices_is_a_stall() -> None:
    assert answer().stalls() == [3]
    assert answer(shown_at=[1.0, 1.5, 2.0, 2.75]).stalls() == []  # 1.5 gaps are within
    assert answer(rate=math.inf).stalls() == []


def test_what_a_stranger_needs_is_in_the_picture() -> None:
    text = words(axes_of(answer()))
    for wanted in (
        "Handoff: 4 tokens, 2 by the cloud, 2 by the device",
        "first token\n1.00 s",
        "device takes over\n1.90 s",
        "2.00 s",  # the longest stall
        "device reads the prompt",
        "received, or made on the device",
        "shown, made by the cloud",
        "shown, made by the device",
        "gap above 1.5 x 500 ms, the target",
    ):
        assert wanted in text, wanted


def test_the_stall_stands_where_the_user_waited() -> None:
    [line] = [line for line in axes_of(answer()).lines if line.get_color() == STALL]
    assert list(line.get_xdata()) == [2.0, 4.0]
    assert list(line.get_ydata()) == [3, 3]


def test_a_device_that_never_took_over_was_ready_all_the_same() -> None:
    text = words(axes_of(answer(took_over_at=None, source=[CLOUD] * 4)))
    assert "device ready\n1.80 s" in text
    assert "takes over" not in text
    assert "Handoff: 4 tokens by the cloud" in text


def test_an_answer_without_a_token_says_so() -> None:
    axes = axes_of(answer(received_at=[], shown_at=[], source=[], caught_up_at=None, took_over_at=None))
    assert words(axes) == "Handoff: no token"


def test_without_times_of_receipt_only_what_was_shown_is_drawn() -> None:
    text = words(axes_of(answer(received_at=[])))
    assert "received" not in text
    assert "shown, made by the device" in text


def test_answers_are_drawn_over_the_same_seconds(tmp_path, outcome) -> None:
    made = [
        PlottedAnswer.of(outcome(Mode.HANDOFF, cloud=2, device=3), title="Handoff", rate=8.0),
        PlottedAnswer.of(outcome(Mode.DEVICE_ONLY, device=5, ttft=15.0), title="Device alone", rate=8.0),
    ]
    paths = draw_timeline(made, tmp_path / "answers.png", title="Two ways")
    assert all(path.is_file() for path in paths)


@pytest.mark.parametrize("count", [1, 3])
def test_the_same_answers_make_the_same_picture(tmp_path, count: int) -> None:
    first, second = (draw_timeline([answer()] * count, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]

import pytest

from pdd_core.timeline import ShownToken, Source, Timeline


def test_figures_follow_the_literature():
    timeline = Timeline(
        [
            ShownToken(0, 11, "He", Source.CLOUD, 0.4, 0.5),
            ShownToken(1, 12, "llo", Source.CLOUD, 0.5, 0.6),
            ShownToken(2, 13, "!", Source.DEVICE, 0.8, 0.9),
        ]
    )
    assert timeline.ttft == 0.5
    assert timeline.tpot_mean == pytest.approx(0.2)
    assert timeline.tpot_max == pytest.approx(0.3)
    assert timeline.text == "Hello!"
    assert (timeline.count(Source.CLOUD), timeline.count(Source.DEVICE)) == (2, 1)


def test_an_empty_timeline_has_no_figures():
    timeline = Timeline()
    assert (timeline.ttft, timeline.tpot_mean, timeline.tpot_max, timeline.text) == (None, None, None, "")

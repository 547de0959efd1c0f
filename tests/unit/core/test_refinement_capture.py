"""Which layers the capture's depths mean."""

import pytest

from pdd_core.refinement.capture import CAPTURE_DEPTHS, CAPTURE_HEADS, HEADS, choose_layers


@pytest.mark.parametrize(
    ("depths", "usable", "total", "chosen"),
    [
        ((0.4, 0.47, 0.53, 0.6), range(30), 30, (12, 14, 15, 18)),
        ((0.4, 0.6), (5, 11, 17, 23), 26, (11, 17)),  # every sixth layer attends to all, as in Gemma 3
        ((0.0, 0.99), range(2), 2, (0, 1)),
        ((0.5, 0.51), range(4), 4, (2,)),
    ],
)
def test_the_layers_nearest_to_the_depths_are_chosen(depths, usable, total, chosen):
    assert choose_layers(depths, list(usable), total) == chosen


@pytest.mark.parametrize("total", [1, 2, 12, 30, 80])
def test_the_defaults_mean_layers_of_every_model(total):
    chosen = choose_layers(CAPTURE_DEPTHS, range(total), total)
    assert 1 <= len(chosen) <= len(CAPTURE_DEPTHS)
    assert set(chosen) <= set(range(total))
    assert CAPTURE_HEADS in HEADS

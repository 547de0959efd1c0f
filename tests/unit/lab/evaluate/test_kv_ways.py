from __future__ import annotations

import numpy as np
import pytest

from pdd_core.errors import ModelError
from pdd_core.refinement.prompt import RefinePrompt
from pdd_lab.evaluate.kv_ways import END, SINKS, TYPES, best_cells, cells_geometry, sent


@pytest.mark.parametrize(
    ("way", "expected"),
    [("f16", 23_040), ("q8_0", 12_240), ("k8v4", 9_360), ("q4_0", 6_480), ("selected", 23_040)],
)
def test_the_bytes_of_a_cell_are_those_of_the_demo_models(way, expected):
    assert cells_geometry(way, layers=30, heads=3, head_size=64).cell_bytes == expected


@pytest.fixture
def cells():
    drawn = np.random.default_rng(1)
    keys, values = drawn.standard_normal((2, 3, 20, 2, 64), dtype=np.float32)
    keys[..., 5] *= 20  # keys have outliers
    return keys, values


def lost(cells, way):
    """The error of keys and of values, of what they are."""
    pairs = zip(cells, sent(*cells, way), strict=True)
    return [float(np.linalg.norm(got - had) / np.linalg.norm(had)) for had, got in pairs]


def test_fewer_bits_lose_more(cells):
    f16, q8, q4, mixed = (lost(cells, way) for way in ("f16", "q8_0", "q4_0", "k8v4"))
    for which in (0, 1):
        assert 0 < f16[which] < 5e-4 < q8[which] < 1e-2 < q4[which] < 0.15
    assert mixed == [q8[0], q4[1]]


@pytest.mark.parametrize("way", TYPES)
def test_each_way_keeps_shape_and_place(cells, way):
    for had, got in zip(cells, sent(*cells, way), strict=True):
        assert got.shape == had.shape
        assert np.abs(got - had).max() < np.abs(had).max() / 6


def test_heads_that_are_no_blocks_can_only_be_sent_in_f16():
    assert cells_geometry("f16", layers=1, heads=1, head_size=80).cell_bytes == 320
    with pytest.raises(ModelError, match="heads of 80 elements cannot be packed as k8v4"):
        cells_geometry("k8v4", layers=1, heads=1, head_size=80)


def prompt(length, protected=()):
    return RefinePrompt(tuple(range(length)), ("a",) * length, frozenset(), protected)


def test_a_selection_has_its_share_with_both_ends_and_what_is_protected():
    scores = np.full(200, 0.001, dtype=np.float32)
    scores[100] = 1.0
    kept = best_cells(scores, prompt(200, protected=((50, 53),)), 0.25)
    assert len(kept) == 50
    assert kept == sorted(set(kept))
    assert {*range(SINKS), *range(200 - END, 200), 50, 51, 52, *range(97, 104)} <= set(kept)


def test_a_selection_may_be_all():
    assert best_cells(np.ones(30, dtype=np.float32), prompt(30), 1.0) == list(range(30))

from __future__ import annotations

import numpy as np
import pytest

from pdd_llamacpp_adapter.engine.kv.comparison import likeness
from pdd_llamacpp_adapter.engine.kv.sequence_state import Cells


def random(seed):
    return np.random.default_rng(seed).standard_normal((3, 5, 2, 32), dtype=np.float32)


def test_the_worst_layer_counts_of_keys_or_of_values():
    keys, values = random(0), random(1)
    own = Cells(np.arange(5), keys, values)
    assert likeness(own, keys, values * 2) == pytest.approx(1.0)
    other = values.copy()
    other[1] *= -1
    assert likeness(own, keys, other) == pytest.approx(-1.0)
    assert abs(likeness(own, random(2), values)) < 0.3


def test_nothing_is_like_a_layer_without_numbers():
    keys = random(0)
    assert likeness(Cells(np.arange(5), keys, keys), keys, np.zeros_like(keys)) == 0.0

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.engine.kv.key_order import KEY_ORDER, KeyOrder, in_halves, in_pairs


def test_an_element_and_its_partner_become_neighbours():
    assert in_pairs(np.arange(8)).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@given(st.integers(1, 3), st.sampled_from([2, 4, 64, 96]))
def test_either_order_is_made_of_the_other(heads, size):
    keys = np.random.default_rng(0).standard_normal((heads, size))
    assert np.array_equal(in_halves(in_pairs(keys)), keys)


def test_llama_has_pairs_and_qwen_does_not():
    assert KEY_ORDER["llama"] is KeyOrder.PAIRS
    assert KEY_ORDER["qwen2"] is KEY_ORDER["qwen3"] is KEY_ORDER["gemma"] is KeyOrder.HALVES

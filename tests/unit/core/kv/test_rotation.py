import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pdd_core.kv.rotation import hadamard, rotated, rotation_size


@pytest.mark.parametrize("size", [1, 2, 64, 256])
def test_the_matrix_is_orthonormal_and_symmetric(size):
    matrix = hadamard(size)
    assert np.array_equal(matrix, matrix.T)
    assert np.allclose(matrix @ matrix, np.eye(size), atol=1e-6)


@given(arrays(np.float32, (2, 3, 192), elements=st.floats(-100, 100, width=32)), st.sampled_from([1, 2, 16, 64]))
def test_twice_is_the_identity_and_once_keeps_lengths(values, size):
    once = rotated(values, size)
    assert once.shape == values.shape
    assert np.allclose(rotated(once, size), values, atol=1e-3)
    assert np.allclose(np.linalg.norm(once, axis=-1), np.linalg.norm(values, axis=-1), rtol=1e-4, atol=1e-3)


def test_an_outlier_is_spread_over_its_own_piece():
    values = np.zeros((1, 128), dtype=np.float32)
    values[0, 5] = 8.0
    turned = rotated(values, 64)
    assert np.allclose(np.abs(turned[0, :64]), 1.0)
    assert not turned[0, 64:].any()


@pytest.mark.parametrize(
    ("head_size", "keys", "values"),
    [(32, 1, 1), (48, 1, 1), (64, 64, 64), (96, 1, 1), (128, 128, 64), (192, 64, 64)],
)
def test_only_heads_of_a_multiple_of_64_are_rotated(head_size, keys, values):
    assert rotation_size(head_size, values=False) == keys
    assert rotation_size(head_size, values=True) == values


@given(st.integers(1, 5), st.sampled_from([2, 64, 128]), st.integers(0, 2**31))
def test_it_is_the_product_with_the_matrix_of_signs(rows, size, seed):
    values = np.random.default_rng(seed).standard_normal((rows, size), dtype=np.float32)
    before = values.copy()
    signs = np.array([[(-1) ** (row & column).bit_count() for column in range(size)] for row in range(size)])
    assert np.allclose(rotated(values, size), values @ signs / np.sqrt(size), atol=1e-4)
    assert np.array_equal(values, before)

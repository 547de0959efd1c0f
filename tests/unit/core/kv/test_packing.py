import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pdd_core.kv.cell_types import BLOCK, CellType
from pdd_core.kv.packing import pack, unpack

FINITE = st.floats(-1e4, 1e4, width=32)
ROWS = arrays(np.float32, st.tuples(st.integers(1, 3), st.sampled_from([BLOCK, 2 * BLOCK])), elements=FINITE)
STEPS = {CellType.Q8_0: 127, CellType.Q4_0: 8}


@given(ROWS, st.sampled_from(CellType))
def test_a_packed_row_has_the_bytes_that_are_said(rows, kind):
    packed = pack(rows, kind)
    assert packed.dtype == np.uint8
    assert packed.shape == (rows.shape[0], kind.row_bytes(rows.shape[1]))


@given(ROWS, st.sampled_from(sorted(STEPS)))
def test_a_number_comes_back_within_half_a_step_of_its_blocks_largest(rows, kind):
    back = unpack(pack(rows, kind), kind)
    largest = np.abs(rows.reshape(-1, BLOCK)).max(axis=-1, keepdims=True)
    # A step of q4_0 is an eighth, and its last step beyond zero (8 of -8 .. 7) is missing. The scale is a float16.
    step = largest / STEPS[kind]
    bound = (step if kind is CellType.Q4_0 else step / 2) + largest * 2.0**-10 + 2.0**-17
    assert (np.abs(back - rows).reshape(-1, BLOCK) <= bound).all()


@given(arrays(np.float32, (2, 48), elements=st.floats(-6e4, 6e4, width=32)))
def test_f16_is_numpys_own_rounding_and_needs_no_whole_blocks(rows):
    assert np.array_equal(
        unpack(pack(rows, CellType.F16), CellType.F16), rows.astype(np.float16).astype(np.float32)
    )


@pytest.mark.parametrize("kind", CellType)
def test_zeros_stay_zeros(kind):
    zeros = np.zeros((2, BLOCK), dtype=np.float32)
    assert not unpack(pack(zeros, kind), kind).any()


@pytest.mark.parametrize("kind", CellType)
def test_leading_axes_are_kept_and_order_in_memory_does_not_matter(kind):
    rows = np.random.default_rng(0).standard_normal((3, 4, 64), dtype=np.float32)
    packed = pack(rows.transpose(1, 0, 2), kind)
    assert packed.shape == (4, 3, kind.row_bytes(64))
    assert np.array_equal(packed, pack(rows, kind).transpose(1, 0, 2))
    assert np.array_equal(unpack(packed, kind), unpack(pack(rows, kind), kind).transpose(1, 0, 2))


def test_the_layout_is_ggmls():
    """By ggml-quants.c: a scale, then the numbers; of q4_0 element i and i + 16 share a byte."""
    row = np.arange(-16, 16, dtype=np.float32)[None]
    q8 = pack(row, CellType.Q8_0)[0]
    assert q8[:2].view(np.float16)[0] == np.float16(16 / 127)
    assert q8[2:].view(np.int8).tolist() == [round(value * 127 / 16) for value in range(-16, 16)]
    q4 = pack(row, CellType.Q4_0)[0]
    assert q4[:2].view(np.float16)[0] == np.float16(2)
    assert (q4[2] & 15, q4[2] >> 4) == (0, 8)  # -16 is -8 steps of 2, and 0 none
    assert (q4[17] & 15, q4[17] >> 4) == (8, 15)  # -1 / 2 + 8.5 = 8; 15 / 2 + 8.5 = 16, of which 15 is left

"""States are what they were made of, in every type and order; and what is no cells is refused before llama.cpp."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import InvalidCells
from pdd_core.kv.cell_types import CellType
from pdd_llamacpp_adapter.engine.kv.key_order import KeyOrder
from pdd_llamacpp_adapter.engine.kv.kv_support import KVShape
from pdd_llamacpp_adapter.engine.kv.sequence_state import CellLayout, read, written

ROOM = 64


def layout_of(layers=2, heads=2, size=64, *, kind=CellType.F16, transposed=False, order=KeyOrder.HALVES):
    shape = KVShape(layers, heads, size, 10_000.0, size, "default", 1.0, order)
    return CellLayout(shape, kind, transposed, ROOM)


def arrays(layout, cells, seed=0):
    shape = layout.shape
    random = np.random.default_rng(seed)
    wanted = (shape.num_layers, cells, shape.num_kv_heads, shape.head_size)
    return [random.standard_normal(wanted, dtype=np.float32) for _ in range(2)]


STORED = [(CellType.F16, False), (CellType.F16, True), (CellType.Q8_0, False), (CellType.Q4_0, False)]
LOSS = {CellType.F16: 1e-3, CellType.Q8_0: 0.02, CellType.Q4_0: 0.2}


@examples(200)
@given(
    st.sampled_from(STORED),
    st.sampled_from(KeyOrder),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([32, 64, 96, 128, 192]),
    st.integers(0, 20),
    st.integers(1, 40),
)
def test_a_state_is_read_as_it_was_written(stored, order, layers, heads, size, start, cells):
    layout = layout_of(layers, heads, size, kind=stored[0], transposed=stored[1], order=order)
    keys, values = arrays(layout, cells)
    state = written(layout, start, keys, values)
    found = read(layout, state)
    assert found.positions.tolist() == list(range(start, start + cells))
    for ours, theirs in ((keys, found.keys), (values, found.values)):
        assert np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(ours**2)) < LOSS[layout.kind]
    assert (
        np.array_equal(written(layout, start, found.keys, found.values), state) or layout.kind is not CellType.F16
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_the_bytes_are_those_of_llama(transposed):
    """Written out by hand from llama_kv_cache::state_write_meta and state_write_data."""
    layout = layout_of(2, 1, 4, transposed=transposed, order=KeyOrder.PAIRS)
    keys = np.arange(16, dtype=np.float32).reshape(2, 2, 1, 4)
    values = keys + 100
    expected = struct.pack("<IiII", 0xAF143CD8, 0, 1, 2)
    expected += struct.pack("<iIi", 7, 1, 0) + struct.pack("<iIi", 8, 1, 0) + struct.pack("<II", transposed, 2)
    for layer in (0, 8):
        rows = [layer + element for element in (0, 2, 1, 3, 4, 6, 5, 7)]
        expected += struct.pack("<iQ", 1, 8) + np.array(rows, "<f2").tobytes()
    for layer in (100, 108):
        if transposed:
            columns = [layer + element for element in (0, 4, 1, 5, 2, 6, 3, 7)]
            expected += struct.pack("<iII", 1, 2, 4) + np.array(columns, "<f2").tobytes()
        else:
            expected += struct.pack("<iQ", 1, 8) + np.arange(layer, layer + 8).astype("<f2").tobytes()
    assert written(layout, 7, keys, values).tobytes() == expected


def test_cells_that_lie_in_another_order_are_read_by_position():
    layout = layout_of()
    keys, values = arrays(layout, 2)
    state = written(layout, 0, keys, values)
    state[16:40].view("<i4")[[0, 3]] = 9, 4
    found = read(layout, state)
    assert found.positions.tolist() == [4, 9]
    np.testing.assert_array_equal(found.keys, keys[:, ::-1].astype(np.float16).astype(np.float32))


@examples(300)
@given(st.sampled_from(STORED), st.data())
def test_a_state_of_another_form_is_not_read(stored, data):
    layout = layout_of(kind=stored[0], transposed=stored[1])
    state = written(layout, 3, *arrays(layout, 4))
    change = data.draw(st.sampled_from(["cut", "longer", "field"]))
    if change == "cut":
        state = state[: data.draw(st.integers(0, state.size - 1))].copy()
    elif change == "longer":
        state = np.concatenate([state, np.zeros(data.draw(st.integers(1, 9)), np.uint8)])
    else:
        block = 12 + 4 * layout.row_bytes
        heads = [16 + 12 * 4 + 8 + block * number for number in range(4)]
        begin = data.draw(st.sampled_from([0, 8, 12, 20, 16 + 12 * 4, 16 + 12 * 4 + 4, *heads]))
        before = state[begin : begin + 4].view("<u4")
        before[0] = data.draw(st.integers(0, 2**32 - 1).filter(lambda new: new != before[0]))
    with pytest.raises(InvalidCells):
        read(layout, state)


WRONG_NUMBERS = [np.nan, np.inf, -np.inf, 65_520.0, -1e6, 3e38]


@st.composite
def wrong_cells(draw):
    """Arguments for `written` that differ in one thing from good ones."""
    stored = draw(st.sampled_from(STORED))
    layout = layout_of(kind=stored[0], transposed=stored[1], order=draw(st.sampled_from(KeyOrder)))
    start, cells = draw(st.integers(0, 20)), draw(st.integers(1, 6))
    both = arrays(layout, cells)
    which = draw(st.integers(0, 1))
    match draw(st.sampled_from(["position", "room", "none", "shape", "axes", "type", "object", "number"])):
        case "position":
            start = draw(st.one_of(st.integers(max_value=-1), st.floats(), st.booleans(), st.none(), st.text()))
        case "room":
            start = draw(st.one_of(st.integers(ROOM - cells + 1, ROOM + 9), st.integers(2**31, 2**70)))
        case "none":
            both = [array[:, :0] for array in both]
        case "shape":
            shape, axis = list(both[which].shape), draw(st.integers(0, 3))
            shape[axis] = draw(st.integers(0, 130).filter(lambda length: length != shape[axis]))
            both[which] = np.zeros(shape, np.float32)
        case "axes":
            axes = draw(st.lists(st.integers(0, 4), max_size=6).filter(lambda shape: len(shape) != 4))
            both[which] = np.zeros(axes, np.float32)
        case "type":
            kind = draw(st.sampled_from(["f2", "f8", "i4", "u1", ">f4", "c8", "?", "O", "U4"]))
            both[which] = np.zeros(both[which].shape, kind)
        case "object":
            both[which] = draw(st.sampled_from([None, 1.0, [], b"", both[which].tolist()]))
        case "number":
            # beyond what the type holds: a quantised one reaches further
            numbers = WRONG_NUMBERS if layout.kind is CellType.F16 else [np.nan, np.inf, -np.inf, -1e6, 3e38]
            at = draw(st.integers(0, both[which].size - 1))
            both[which].reshape(-1)[at] = draw(st.sampled_from(numbers))
    return layout, start, *both


@examples(2500)
@given(wrong_cells())
def test_what_is_no_cells_is_refused_by_type(wrong):
    layout, start, keys, values = wrong
    with pytest.raises(InvalidCells):
        written(layout, start, keys, values)


@pytest.mark.parametrize(("kind", "size"), [(kind, size) for kind in CellType for size in (32, 64, 128, 256)])
def test_the_largest_number_that_is_taken_stays_finite(kind, size):
    layout = layout_of(size=size, kind=kind)
    keys, values = arrays(layout, 2)
    for what, array in (("keys", keys), ("values", values)):
        array[...] = 1e9
        with pytest.raises(InvalidCells, match=what) as refused:
            written(layout, 0, keys, values)
        array[...] = float(str(refused.value).rsplit(" ", 1)[1]) - 1
    found = read(layout, written(layout, 0, keys, values))
    assert np.isfinite(found.keys).all()
    assert np.isfinite(found.values).all()

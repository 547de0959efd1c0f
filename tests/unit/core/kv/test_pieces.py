import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kv_cells import BY_HEADS, BY_LAYERS, WHOLE, cells, geometry, payload

from pdd_core.errors import InvalidCells
from pdd_core.kv.geometry import PIECE_TOKENS
from pdd_core.kv.pieces import Piece, pieces_between, unpacked_part

spans = st.tuples(st.integers(0, 1000), st.integers(0, 1000)).map(sorted)


@given(spans)
def test_pieces_follow_each_other_from_the_back_and_begin_at_multiples(span):
    start, end = span
    pieces = list(pieces_between(start, end))
    assert [position for piece in reversed(pieces) for position in range(piece.start, piece.end)] == list(
        range(start, end)
    )
    for piece in pieces:
        assert piece.start == start or piece.start % PIECE_TOKENS == 0
        assert piece.start // PIECE_TOKENS == (piece.end - 1) // PIECE_TOKENS


@pytest.mark.parametrize("parts", [WHOLE, BY_HEADS, BY_LAYERS])
@pytest.mark.parametrize(("head_size", "rotation"), [(32, 1), (64, 64)])
def test_the_parts_together_are_the_cells(parts, head_size, rotation):
    of = geometry(
        parts, head_size=head_size, key_type="f16", value_type="q8_0", key_rotation=rotation,
        value_rotation=rotation,
    )  # fmt: skip
    keys, values = cells(7, of)
    got_keys, got_values = np.zeros_like(keys), np.zeros_like(values)
    for number, part in enumerate(of.parts):
        packed = memoryview(payload(keys, values, Piece(0, 7), number, of))
        assert len(packed) == 7 * of.part_bytes(number)
        where = slice(*part.layers), slice(None), slice(*part.heads)
        got_keys[where], got_values[where] = unpacked_part(packed, 7, number, of)
    assert np.allclose(got_keys, keys, atol=0.01)
    assert np.allclose(got_values, values, atol=0.05)


def test_a_payload_of_another_size_is_refused():
    of = geometry()
    packed = payload(*cells(3, of), Piece(0, 3), 0, of)
    for wrong in (packed[:-1], packed + b"\0", b""):
        with pytest.raises(InvalidCells, match="are not 3 cells of part 0"):
            unpacked_part(memoryview(wrong), 3, 0, of)


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan])
def test_a_number_that_is_not_finite_is_refused(kind, scale):
    of = geometry(key_type=kind, value_type=kind)
    packed = bytearray(payload(*cells(2, of), Piece(0, 2), 0, of))
    last = len(packed) - of.value_type.row_bytes(32)  # the last row's first scale, or element
    packed[last : last + 2] = np.float16(scale).tobytes()
    with pytest.raises(InvalidCells, match="not a finite number"):
        unpacked_part(memoryview(packed), 2, 0, of)

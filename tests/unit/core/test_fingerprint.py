from hypothesis import given
from hypothesis import strategies as st

from pdd_core.fingerprint import PIECE, fingerprint, first_differing_piece, hash_pieces, literal_bytes, quoted

TABLE = [b"t%d" % i for i in range(2 * PIECE + 7)]


def of(table):
    return fingerprint(table, special_ids=[0, 1], eos_ids=[2])


def test_equal_tables_have_equal_digests():
    assert of(TABLE).digest == of(list(TABLE)).digest
    assert first_differing_piece(of(TABLE), TABLE) is None


def test_special_and_eos_ids_are_part_of_the_digest():
    assert of(TABLE).digest != fingerprint(TABLE, special_ids=[0], eos_ids=[2]).digest
    assert of(TABLE).digest != fingerprint(TABLE, special_ids=[0, 1], eos_ids=[3]).digest


def test_a_padded_device_table_still_matches():
    assert first_differing_piece(of(TABLE), [*TABLE, b"[PAD1]", b"[PAD2]"]) is None


def test_what_fills_a_hole_on_the_device_does_not_count():
    cloud = [*TABLE]
    cloud[5] = None
    device = [*TABLE]
    device[5] = b"[PAD5]"
    assert first_differing_piece(of(cloud), device) is None


def test_a_shorter_device_table_differs():
    assert first_differing_piece(of(TABLE), TABLE[: PIECE + 3]) == 1


@given(st.integers(0, len(TABLE) - 1))
def test_the_first_difference_is_found_in_its_piece(index):
    device = [*TABLE]
    device[index] = b"other"
    assert first_differing_piece(of(TABLE), device) == index // PIECE


@given(
    st.lists(st.binary(max_size=3) | st.none(), max_size=6),
    st.lists(st.binary(max_size=3) | st.none(), max_size=6),
)
def test_tables_have_one_hash_only_if_they_are_equal(one, other):
    """Also where the bytes of one token look like how two others are written."""
    assert (list(hash_pieces(one)) == list(hash_pieces(other))) is (one == other)


def test_a_blank_is_a_blank_however_it_is_spelt():
    assert literal_bytes("▁▁") == literal_bytes("  ") == b"  "


def test_a_token_is_shown_as_text_where_it_is_text():
    assert (quoted("▁ü\n".encode()), quoted(b"\xc3")) == ("'▁ü\\n'", "b'\\xc3'")

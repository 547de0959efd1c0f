import fcntl
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import InvalidCells
from pdd_core.kv.frames import END, FrameReader
from pdd_core.kv.geometry import KVGeometry, NoKV
from pdd_core.kv.pieces import Piece, packed_part, pieces_between, unpacked_part
from pdd_vllm_plugin.kv.shelf_file import CELLS, GONE, NONE, ShelfFile, file_bytes

ID = "h" * 32
GEOMETRY = KVGeometry(
    num_layers=2, num_kv_heads=2, head_size=32, key_type="q8_0", value_type="q4_0", key_rotation=1,
    value_rotation=1, rope={"theta": 1e4, "rotary_dim": 32},
    parts=[{"layers": (0, 2), "heads": (0, 1)}, {"layers": (0, 2), "heads": (1, 2)}],
)  # fmt: skip
CELL_BYTES = GEOMETRY.part_bytes(0)
NO_ROOM = NoKV(reason="no_room", message="the shelf is full")


def arrays(tokens):
    # (layers, tokens, heads, head size)
    return np.random.default_rng(tokens).standard_normal((2, 2, tokens, 1, 32), dtype=np.float32)


def payloads(tokens):
    keys, values = arrays(tokens)
    for piece in pieces_between(0, tokens):
        cells = slice(piece.start, piece.end)
        yield piece, packed_part(keys[:, cells], values[:, cells], GEOMETRY)


def written(folder, tokens):
    file = ShelfFile(folder, ID)
    file.write(tokens, CELL_BYTES, payloads(tokens))
    return file


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1), st.integers(1, n))))
def test_any_range_is_read_as_it_was_written(tmp_path_factory, case):
    tokens, start, end = case
    file = written(tmp_path_factory.mktemp("shelf"), tokens)
    reader, positions = FrameReader(GEOMETRY.model_copy(update={"parts": GEOMETRY.parts[:1]}), start, end), []
    keys, values = (unpacked(side, tokens) for side in (0, 1))
    with file.open(GEOMETRY, 0) as cells:
        assert cells.tokens == tokens
        for piece in pieces_between(start, end):
            for frame in reader.feed(b"".join(cells.frame(piece))):
                got_keys, got_values = unpacked_part(frame.payload, frame.tokens, 0, GEOMETRY)
                assert np.array_equal(got_keys, keys[:, piece.start : piece.end])
                assert np.array_equal(got_values, values[:, piece.start : piece.end])
                positions += range(piece.start, piece.end)
    assert next(iter(reader.feed(END))).last
    assert sorted(positions) == list(range(start, end))


def unpacked(side, tokens):
    whole = packed_part(*arrays(tokens), GEOMETRY)
    return unpacked_part(memoryview(whole), tokens, 0, GEOMETRY)[side]


def test_the_size_that_is_told_is_the_file_s(tmp_path):
    assert written(tmp_path, 300).path(CELLS).stat().st_size == file_bytes(300, CELL_BYTES)


def test_a_piece_that_is_none_is_refused(tmp_path):
    with written(tmp_path, 200).open(GEOMETRY, 0) as cells:
        for start, end in ((0, 129), (100, 130), (128, 201), (5, 5), (256, 260)):
            with pytest.raises(InvalidCells):
                cells.frame(Piece(start, end))


def test_nothing_is_found_before_it_is_whole(tmp_path):
    file = ShelfFile(tmp_path, ID)

    def watched():
        for payload in payloads(200):
            assert file.open(GEOMETRY, 0) is None
            yield payload

    file.write(200, CELL_BYTES, watched())
    file.open(GEOMETRY, 0).close()


def test_what_fails_leaves_nothing_behind(tmp_path):
    def failing():
        yield next(payloads(200))
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        ShelfFile(tmp_path, ID).write(200, CELL_BYTES, failing())
    assert list(tmp_path.iterdir()) == []


def test_the_last_that_was_written_counts(tmp_path):
    file = written(tmp_path, 200)
    file.write_none(NO_ROOM)
    assert file.open(GEOMETRY, 0) == NO_ROOM
    file.write(10, CELL_BYTES, payloads(10))
    with file.open(GEOMETRY, 0) as cells:
        assert cells.tokens == 10


def test_what_was_dropped_is_read_to_its_end_and_found_no_more(tmp_path):
    file = written(tmp_path, 200)
    with file.open(GEOMETRY, 0) as cells:
        file.drop()
        file.drop()
        assert file.open(GEOMETRY, 0) is None
        assert len(cells.frame(Piece(0, 128))[1]) == 128 * CELL_BYTES
    assert file.path(GONE).exists()
    file.write_none(NO_ROOM)
    file.drop()
    assert file.open(GEOMETRY, 0) is None


def test_the_writer_sees_that_a_file_is_read(tmp_path):
    file = written(tmp_path, 200)
    fd = os.open(file.path(CELLS), os.O_RDONLY)
    with file.open(GEOMETRY, 0), pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert file.open(GEOMETRY, 0) is None  # it is just being removed
    os.close(fd)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:3], lambda data: bytes(8) + data[8:]]
)
def test_a_file_of_another_form_is_refused(tmp_path, damage):
    path = written(tmp_path, 200).path(CELLS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InvalidCells):
        ShelfFile(tmp_path, ID).open(GEOMETRY, 0)
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)  # nothing was left locked


def test_a_reason_of_another_form_is_refused(tmp_path):
    file = ShelfFile(tmp_path, ID)
    file.path(NONE).write_bytes(b"{}")
    with pytest.raises(InvalidCells):
        file.open(GEOMETRY, 0)


def test_names_do_not_tell_the_handoff_id(tmp_path):
    file = written(tmp_path, 3)
    assert ID not in str(file.path(CELLS))
    assert file.path(CELLS).stat().st_mode & 0o077 == 0

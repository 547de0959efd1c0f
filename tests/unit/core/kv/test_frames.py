import random
import tracemalloc
import zlib
from itertools import pairwise

import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st
from kv_cells import BY_HEADS, BY_LAYERS, WHOLE, frames, geometry

from pdd_core.errors import InvalidCells
from pdd_core.kv.frames import END, HEADER_BYTES, FrameReader, header

TOKENS = 300
GEOMETRIES = [geometry(parts) for parts in (WHOLE, BY_HEADS, BY_LAYERS)]
STREAMS = [frames(TOKENS, of) for of in GEOMETRIES]


def read(of, chunks, start=0, end=TOKENS):
    reader = FrameReader(of, start, end)
    got = [(one.part, one.start, one.tokens, bytes(one.payload)) for chunk in chunks for one in reader.feed(chunk)]
    return reader, got


def told(stream):
    return [
        (int.from_bytes(one[4:6], "little"), *(int.from_bytes(one[at : at + 4], "little") for at in (8, 12)),
         one[HEADER_BYTES:])
        for one in stream
    ]  # fmt: skip


def test_frames_come_out_as_they_were_sent_wherever_the_stream_is_cut_in_two():
    of = geometry((((0, 1), (0, 1)), ((0, 1), (1, 2))), num_layers=1)
    stream = frames(130, of)
    whole = b"".join(stream)
    for cut in range(len(whole) + 1):
        reader, got = read(of, [whole[:cut], whole[cut:]], end=130)
        assert reader.ended
        assert got == told(stream)


@given(st.sampled_from(range(len(GEOMETRIES))), st.lists(st.integers(0, 70_000), max_size=20))
def test_any_chunks_are_the_same_stream(number, cuts):
    of, whole = GEOMETRIES[number], b"".join(STREAMS[number])
    bounds = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    reader, got = read(of, [whole[a:b] for a, b in pairwise(bounds)])
    assert reader.ended
    assert got == told(STREAMS[number])


@pytest.mark.parametrize("cut", range(len(STREAMS[1])))
def test_a_stream_that_breaks_off_is_not_ended_and_goes_on_from_its_last_whole_piece(cut):
    of, stream = GEOMETRIES[1], STREAMS[1]
    reader, got = read(of, [b"".join(stream[:cut]) + stream[cut][:-1]])
    assert not reader.ended
    whole = [start for part, start, tokens, _ in got if part == 1 and tokens]
    end = min(whole, default=TOKENS)
    resumed, rest = read(of, [b"".join(frames(TOKENS, of, 0, end))], 0, end)
    assert resumed.ended
    assert [one for one in got if one[1] >= end] + rest == told(stream)


@given(st.tuples(st.integers(0, TOKENS), st.integers(0, TOKENS)).map(sorted))
def test_any_span_can_be_asked_for(span):
    reader, got = read(GEOMETRIES[2], [b"".join(frames(TOKENS, GEOMETRIES[2], *span))], *span)
    assert reader.ended
    assert sum(tokens for part, _, tokens, _ in got if part == 0) == span[1] - span[0]


@pytest.mark.parametrize(
    ("first", "problem"),
    [
        (b"HTTP" + bytes(16), "no frame of cells begins here"),
        (header(0, 256, 44, 0)[:6] + b"\1\0" + bytes(12), "no frame of cells begins here"),
        (header(1, 256, 44, 0), "part 1 of a piece follows where part 0 has to"),
        (header(0, 255, 45, 0), "45 cells from 255 on do not follow those from 300 on"),
        (header(0, 256, 43, 0), "43 cells from 256 on"),
        (header(0, 128, 128, 0), "128 cells from 128 on"),
        (header(0, 256, 2**32 - 1, 0), "4294967295 cells from 256 on"),
        (STREAMS[1][0][:-1] + b"\0", "the checksum of the cells from 256 on is wrong"),
        (END + b"x" * HEADER_BYTES, "bytes follow behind the last frame"),
    ],
)
def test_what_is_no_stream_of_cells_is_refused(first, problem):
    with pytest.raises(InvalidCells, match=problem):
        read(GEOMETRIES[1], [first])


def test_a_piece_is_not_left_half():
    with pytest.raises(InvalidCells, match="part 0 of a piece follows where part 1 has to"):
        read(GEOMETRIES[1], [STREAMS[1][0], END])


def test_no_frame_follows_behind_the_front():
    of = GEOMETRIES[0]
    more = header(0, 0, 128, zlib.crc32(b""))
    with pytest.raises(InvalidCells, match="do not follow those from 0 on"):
        read(of, [b"".join(STREAMS[0][:-1]), more])


@examples(125)
@given(st.integers(0, 2**32), st.sampled_from(range(len(GEOMETRIES))))
def test_any_stream_is_read_as_it_was_sent_or_refused_by_type(seed, number):
    """Forty damaged frames with each seed: 5,000 in a usual run."""
    chance, of, stream = random.Random(seed), GEOMETRIES[number], STREAMS[number]
    for _ in range(40):
        sent = list(stream)
        at = chance.randrange(len(sent))
        frame = bytearray(sent[at])
        damage = chance.randint(0, 5)
        if damage == 0:
            frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)
        elif damage == 1:
            frame[chance.randrange(HEADER_BYTES)] = chance.randrange(256)
        elif damage == 2:
            del frame[chance.randrange(len(frame)) :]
        elif damage == 3:
            frame[chance.randrange(len(frame)) : 0] = chance.randbytes(chance.randint(1, 64))
        sent[at] = bytes(frame)
        if damage == 4:
            sent.insert(chance.randrange(len(sent)), sent[at])
        elif damage == 5:
            other = chance.randrange(len(sent))
            sent[at], sent[other] = sent[other], sent[at]
        try:
            _, got = read(of, [b"".join(sent)])
        except InvalidCells:
            continue
        got = [one for one in got if one[2]]
        assert got == told(stream)[: len(got)]


def test_a_reader_holds_no_more_than_one_frame():
    of = GEOMETRIES[0]
    largest = 128 * of.part_bytes(0)
    reader = FrameReader(of, 0, 128 * 2_000)
    tracemalloc.start()
    try:
        for start in range(128 * 1_999, -1, -128):
            packed = bytes(largest)
            for chunk in (header(0, start, 128, zlib.crc32(packed)), packed[:1000], packed[1000:]):
                list(reader.feed(chunk))
        assert tracemalloc.get_traced_memory()[1] < 8 * largest
    finally:
        tracemalloc.stop()

from __future__ import annotations

from itertools import pairwise

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import CloudLost
from pdd_llamacpp_adapter.cloud.event_data import event_data

MARK = b"\xef\xbb\xbf"


def events(*pieces, limit=1000):
    """What comes of these pieces of a stream."""

    async def read():
        async def stream():
            for piece in pieces:
                yield piece

        return [data async for data in event_data(stream(), limit=limit)]

    return anyio.run(read)


def cut(stream, places):
    """`stream` in pieces."""
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=6).map(str.encode)
OTHER = st.sampled_from([b": keep-alive", b"event: x", b"id: 7", b"retry: 5", b"data", b"x" + MARK + b"data: y"])


@given(
    told=st.lists(st.tuples(st.lists(OTHER, max_size=2), st.lists(LINE, min_size=1, max_size=3)), max_size=4),
    end=st.sampled_from([b"\n", b"\r", b"\r\n"]),
    mark=st.booleans(),
    places=st.lists(st.integers(0, 200), max_size=6),
)
def test_however_a_stream_is_cut_its_events_are_the_same(told, end, mark, places):
    stream = MARK if mark else b""
    for others, lines in told:
        stream += b"".join(line + end for line in [*others, *(b"data: " + line for line in lines), b""])
    assert events(*cut(stream, places)) == [b"\n".join(lines) for _, lines in told]
    assert events(*(stream[at : at + 1] for at in range(len(stream)))) == [b"\n".join(lines) for _, lines in told]


def test_an_event_that_the_end_cuts_off_is_none():
    assert events(b"data: 1\n\ndata: 2\n") == [b"1"]
    assert events(b"data: 1\n\ndata: 2") == [b"1"]


@pytest.mark.parametrize("place", [1, 2])
def test_a_mark_is_skipped_before_the_first_line_only(place):
    lines = [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]
    lines[place] = MARK + lines[place]
    assert events(*lines) == [data for number, data in enumerate([b"1", b"2", b"3"]) if number != place]


@pytest.mark.parametrize(
    "pieces",
    [[b"data: "] + [b"x"] * 100, [b"x" * 101 + b"\n"], [b"data: xx\n"] * 20, [b"data: " + b"x" * 95 + b"\n\n"]],
    ids=["line without end", "line", "lines of one event", "event"],
)
def test_what_is_too_long_is_a_loss(pieces):
    with pytest.raises(CloudLost, match="more than 100 bytes"):
        events(*pieces, limit=100)


def test_what_is_long_but_in_bounds_is_no_loss():
    assert len(events(*[b"data: " + b"x" * 80 + b"\n\n"] * 50, limit=100)) == 50

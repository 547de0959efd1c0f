import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.server.wire.json_body import has_more_marks, parse

TEXT = st.text(st.sampled_from('",[{\\}]: aé'), max_size=6)
VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def marks(value):
    """What of a value's JSON is counted: an opening bracket each, and the commas between entries."""
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(0, len(value) - 1) + sum(map(marks, inner))


@given(VALUES, st.integers(0, 30), st.booleans())
def test_commas_and_brackets_are_counted_outside_of_strings(value, most, escaped):
    data = json.dumps(value, ensure_ascii=escaped).encode()
    assert has_more_marks(data, most) == (marks(value) > most)


@given(st.binary(max_size=60) | st.text(st.sampled_from('"\\,[{'), max_size=30).map(str.encode), st.integers(0, 9))
def test_what_is_no_json_is_counted_too(data, most):
    if has_more_marks(data, most):
        assert sum(map(data.count, (b",", b"[", b"{"))) > most


@pytest.mark.parametrize(
    ("data", "more"),
    [
        (b'"' + b'\\"' * 50_000 + b"," * 20, False),
        (b'"' * 4_000_000 + b"," * 20, True),
        (b"[" * 4_000_000, True),
        (b'["",' * 1_000_000, True),
    ],
    ids=["a string without an end", "strings", "brackets", "both"],
)
def test_no_body_is_read_twice(data, more):
    """With a pattern that would begin anew at each quote, the first of these takes seconds."""
    begun = time.thread_time()
    assert has_more_marks(data, 10) is more
    assert time.thread_time() - begun < 1  # a few milliseconds, and only of this thread's own


def test_a_body_of_too_many_values_is_not_read():
    body = b"[" + b"0," * 10 + b"0]"
    assert parse(body, most=11) == [0] * 11
    with pytest.raises(InvalidRequest, match="more than 10 values") as refused:
        parse(body, most=10)
    assert refused.value.code == "too_many_values"

"""JSON as no honest cloud sends it: a right document with one thing wrong, as text."""

from __future__ import annotations

import copy
import json
import math

from hypothesis import strategies as st

_DEEP = "@deep@"
_DIGITS = "@digits@"
_NESTED = 20_000
WEIRD = (
    *(None, True, -1, 1.5, 2**31, 2**63, 10**30, _DIGITS),
    *(math.nan, -math.inf, 1e308),
    *("", "\ud800", "\n\x1b[2J", "x" * 5000, "5", "\u2028", "\0"),
    *([], {}, [[]], [None], _DEEP, [math.nan], [2**31]),
)

JUNK = [b"\xef\xbb\xbf", b"\xff", b"\n\n", b"\r", b"}", b"[" * 3000]


def dumped(document) -> bytes:
    """`document` as JSON, the markers in it as what they stand for."""
    text = json.dumps(document)
    text = text.replace(f'"{_DEEP}"', "[" * _NESTED + "]" * _NESTED)
    return text.replace(f'"{_DIGITS}"', "9" * 5000).encode()


def places(document, path=()):
    """The path of every value in `document`."""
    yield path
    entries = document.items() if isinstance(document, dict) else ()
    entries = enumerate(document) if isinstance(document, list) else entries
    for key, value in entries:
        yield from places(value, (*path, key))


def replaced(document, path, value):
    """`document` with another value at `path`."""
    if not path:
        return value
    changed = copy.deepcopy(document)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def every_change(document):
    """Each value of `document` replaced by each weird one."""
    for path in places(document):
        for value in WEIRD:
            yield path, dumped(replaced(document, path, value))


@st.composite
def hostile(draw, document) -> bytes:
    """`document`, one to three of its values replaced, or some of its bytes."""
    for _ in range(draw(st.integers(0, 3))):
        if not isinstance(document, dict | list):
            break
        path = draw(st.sampled_from(list(places(document))))
        document = replaced(document, path, draw(st.sampled_from(WEIRD)))
    text = dumped(document)
    if draw(st.booleans()):
        return text
    at = draw(st.integers(0, len(text)))
    junk = draw(st.binary(max_size=8) | st.sampled_from(JUNK))
    return text[:at] + junk + text[at + draw(st.integers(0, 8)) :]

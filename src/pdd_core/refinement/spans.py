"""Spans of tokens: merged, of indices, and the words and lines of a text."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

Span = tuple[int, int]
"""Half-open range of token positions."""
Unit = Literal["token", "word", "line"]
UNITS: tuple[Unit, ...] = ("token", "word", "line")

LONGEST_WORD = 32
"""Tokens. Scripts without blanks would else be one word from stop to stop."""
LONGEST_LINE = 64
"""Tokens. Longer lines, such as whole paragraphs, are cut after their sentences, and these if need be."""
SENTENCE_ENDS = tuple(".!?。！？")  # noqa: RUF001 - the full-width ones end sentences too

_WRAPPED = 8
"""Tokens of the shortest line behind which a sentence may go on with a capital: shorter ones may be titles."""
_CLOSING = "\"'”’»)]}」』）】"  # noqa: RUF001 - as above
"""May follow the end of a sentence."""
_LEAD_IN = (":", "：")  # noqa: RUF001 - as above

_STARTS_BLANK, _ENDS_BLANK, _BLANK, _NEWLINE, _SENTENCE, _BLANK_LINE, _SMALL, _CAPITAL, _STOP = map(
    (1).__lshift__, range(9)
)


def merge_spans(spans: Iterable[Span], length: int) -> tuple[Span, ...]:
    """Return `spans` cut to a prompt of `length` tokens, sorted; those that touch are one, empty ones are gone."""
    merged: list[Span] = []
    for start, end in sorted((max(0, start), min(end, length)) for start, end in spans):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


def spans_of(indices: Iterable[int]) -> tuple[Span, ...]:
    """Return the runs of consecutive numbers in `indices`, which may be in any order."""
    runs: list[Span] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][1]:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return tuple(runs)


def words(pieces: Sequence[str]) -> list[Span]:
    """Return the words of a text, each with the blanks before it; together they are all tokens."""
    return _spans(unit_starts(pieces, "word"), len(pieces))


def lines(pieces: Sequence[str]) -> list[Span]:
    """Return the lines of a text, each with its newlines, long ones cut; together they are all tokens."""
    return _spans(unit_starts(pieces, "line"), len(pieces))


def unit_starts(pieces: Sequence[str], unit: Unit) -> np.ndarray:
    """Return where the tokens, words or lines of a text begin: increasing, from 0 on; empty for no text.

    Raises:
        ValueError: `unit` is none of `UNITS`.
    """
    import numpy as np

    if unit == "token":
        return np.arange(len(pieces))
    kinds = {piece: _kind(piece) for piece in set(pieces)}
    kind = np.fromiter(map(kinds.__getitem__, pieces), dtype=np.uint16, count=len(pieces))
    before, here = kind[:-1], kind[1:]
    starts = np.ones(len(kind), dtype=bool)
    if unit == "word":
        after_text = (before & _BLANK) == 0
        starts[1:] = after_text & (((here & _STARTS_BLANK) | (before & _ENDS_BLANK)) != 0)
        return _cut(np.flatnonzero(starts), len(kind), LONGEST_WORD)
    if unit != "line":
        raise ValueError(f"unit must be one of {', '.join(UNITS)}, not {unit!r}")
    begins = (here & (_BLANK | _NEWLINE)) != (_BLANK | _NEWLINE)
    starts[1:] = ((before & _NEWLINE) != 0) & begins
    every_line = starts.copy()
    starts[_run_on(np.flatnonzero(starts), kind)] = False
    sentences = np.zeros(len(kind), dtype=bool)
    sentences[1:] = ((before & _SENTENCE) != 0) & ((here & _STARTS_BLANK) != 0) & begins
    for further in (sentences, every_line):
        starts |= _too_long(starts) & further
    return _cut(np.flatnonzero(starts), len(kind), LONGEST_LINE)


def _run_on(starts: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Return those of the lines' `starts` at which a sentence goes on that the line before has not ended.

    A small letter goes on with it. A capital does behind a long line, so that titles stay alone.
    """
    import numpy as np

    text = np.flatnonzero((kind & _BLANK) == 0)
    at = np.searchsorted(text, starts)
    inner = np.flatnonzero((at > 0) & (at < len(text)))
    starts, long = starts[inner], np.diff(starts, prepend=0)[inner] >= _WRAPPED
    last, first = text[at[inner] - 1], text[at[inner]]
    newlines = np.cumsum(((kind & _NEWLINE) != 0).astype(np.intp) + ((kind & _BLANK_LINE) != 0))
    together = newlines[starts - 1] - newlines[last] + ((kind[last] & _NEWLINE) != 0) == 1
    together &= (kind[last] & _BLANK_LINE) == 0
    begun = ((kind[first] & _SMALL) != 0) | (((kind[first] & _CAPITAL) != 0) & long)
    going_on: np.ndarray = starts[together & ((kind[last] & _STOP) == 0) & begun]
    return going_on


def _too_long(starts: np.ndarray) -> np.ndarray:
    """Return which tokens are in a unit of more than `LONGEST_LINE`."""
    import numpy as np

    unit = np.cumsum(starts) - 1
    sizes = np.bincount(unit)
    long: np.ndarray = sizes[unit] > LONGEST_LINE
    return long


def _kind(piece: str) -> int:
    stripped = piece.strip()
    if not stripped:
        # An empty piece is a part of a character, and belongs to the unit around it.
        blank = _STARTS_BLANK | _ENDS_BLANK | _BLANK if piece else 0
        return blank | _newlines(piece)
    return (
        (_STARTS_BLANK if piece[0].isspace() else 0)
        | (_ENDS_BLANK if piece[-1].isspace() else 0)
        | _newlines(piece[len(piece.rstrip()) :])
        | (_SENTENCE if stripped.endswith(SENTENCE_ENDS) else 0)
        | (_STOP if (stripped.rstrip(_CLOSING) or stripped).endswith((*SENTENCE_ENDS, *_LEAD_IN)) else 0)
        | (_SMALL if stripped[0].islower() else _CAPITAL if stripped[0].isalpha() else 0)
    )


def _newlines(blanks: str) -> int:
    return (_NEWLINE if "\n" in blanks else 0) | (_BLANK_LINE if blanks.count("\n") > 1 else 0)


def _cut(starts: np.ndarray, length: int, longest: int) -> np.ndarray:
    """Add starts, so that no unit has more than `longest` tokens."""
    import numpy as np

    sizes = np.diff(starts, append=length)
    if not len(sizes) or sizes.max() <= longest:
        return starts
    within = np.arange(length) - np.repeat(starts, sizes)
    return np.flatnonzero(within % longest == 0)


def _spans(starts: np.ndarray, length: int) -> list[Span]:
    return list(pairwise([*starts.tolist(), length])) if length else []

"""Tool definitions in a user turn, where Llama 3.1's template puts them unless it is told otherwise."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_core.refinement.spans import Span

_PREFACE = re.compile(r"\s*Given the following functions, please respond with a JSON for a function call\b")
_FIRST = re.compile(r"\n\n(?=\{)")
_DECODER = json.JSONDecoder(strict=False)
"""A token that is part of a character may be any text, a control character too."""


def tool_definitions(pieces: Sequence[str], content: Span) -> Span:
    """Return the span of a turn's tools, with the words before them; an empty span where there are none.

    Args:
        pieces: the text of each token of the prompt.
        content: of the turn.
    """
    start, end = content
    if not _PREFACE.match("".join(pieces[start : min(end, start + 64)])):
        return start, start
    text = "".join(pieces[start:end])
    first = _FIRST.search(text)
    last = 0
    at = first.end() if first else len(text)
    while text.startswith("{", at):
        try:
            found, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        if "function" not in found and "name" not in found:
            break  # the user's own JSON
        last = at
        at += len(text[at:]) - len(text[at:].lstrip())
    if not last:
        return start, start
    ends = list(accumulate(map(len, pieces[start:end])))
    return start, start + bisect_right(ends, last - 1) + 1

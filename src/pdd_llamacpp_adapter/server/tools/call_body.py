"""Steps by which a parser follows a tool call's text while it arrives, to where the call ends.

A step is asked with all the text there is, and where its part begins. It says where the part ends, or None while
that is not known. Whatever pieces the text arrives in, the answer is the same; and no long text is read twice.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Protocol

from pdd_llamacpp_adapter.server.tools.call_json import may_be_call
from pdd_llamacpp_adapter.server.tools.json_extent import JsonExtent, NotJson

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SPACE = re.compile(r"\s*")
_MOST_SPACE = 256
"""Characters of white space that may stand before a part; what follows more is no call."""
_MOST_HEAD = 160
"""Characters from a tool's name to its arguments, the name among them."""
_TELLS = 256
"""Characters of a call's beginning that show whether it may be one: a long one is not read again and again."""


class NoCall(Exception):
    """The text is no call. Never leaves the parsers."""


class Step(Protocol):
    """Follows one part of a call. Made for one call."""

    def end(self, text: str, at: int) -> int | None:
        """Return where in `text` the part ends that begins at `at`; None if more text is needed.

        Raises:
            NoCall: the text is none of these.
        """


class Body:
    """Follows a whole call: one step after the other."""

    def __init__(self, steps: Iterable[Step], at: int) -> None:
        self._steps = deque(steps)
        self._at = at

    def end(self, text: str) -> int | None:
        """Return where in `text` the call ends; None if more text is needed.

        Raises:
            NoCall: it is none.
        """
        while self._steps:
            end = self._steps[0].end(text, self._at)
            if end is None:
                return None
            self._at = end
            self._steps.popleft()
        return self._at


class Space:
    """White space, and any of the texts `dropped`; perhaps none."""

    def __init__(self, *dropped: str) -> None:
        self._dropped = dropped

    def end(self, text: str, at: int) -> int | None:
        """Return where something else begins."""
        while True:
            begins, at = at, _SPACE.match(text, at, at + _MOST_SPACE + 1).end()  # type: ignore[union-attr]
            if at - begins > _MOST_SPACE:
                raise NoCall
            known = next((word for word in self._dropped if text.startswith(word, at)), None)
            if known is None:
                break
            at += len(known)
        return None if at == len(text) or _may_become(text, at, self._dropped) else at


class Word:
    """One of `words`; `ahead` leaves it to the next step."""

    def __init__(self, *words: str, ahead: bool = False) -> None:
        self._words = words
        self._ahead = ahead

    def end(self, text: str, at: int) -> int | None:
        """Return where the longest one ends."""
        if _may_become(text, at, self._words):
            return None
        found = max((len(word) for word in self._words if text.startswith(word, at)), default=None)
        if found is None:
            raise NoCall
        return at if self._ahead else at + found


class Head:
    """What names the tool, up to the brace at which its arguments begin."""

    def __init__(self, beginnings: Iterable[str], behind: str, *, partly: str) -> None:
        """Describe the head.

        Args:
            beginnings: how it may begin, with the tool's name.
            behind: what may follow that up to the brace, as a regular expression.
            partly: the same for every beginning of such a text. It may allow for more.
        """
        self._beginnings = sorted(beginnings, key=len, reverse=True)
        self._behind, self._partly = re.compile(behind), re.compile(partly)

    def end(self, text: str, at: int) -> int | None:
        """Return where the brace is."""
        brace = text.find("{", at, at + _MOST_HEAD)
        if brace >= 0:
            if any(self._fits(self._behind, text[at:brace], begins) for begins in self._beginnings):
                return brace
            raise NoCall
        head = text[at : at + _MOST_HEAD]
        may_be = any(
            begins.startswith(head) or self._fits(self._partly, head, begins) for begins in self._beginnings
        )
        if may_be and len(head) < _MOST_HEAD:
            return None
        raise NoCall

    @staticmethod
    def _fits(pattern: re.Pattern[str], head: str, begins: str) -> bool:
        return head.startswith(begins) and pattern.fullmatch(head, len(begins)) is not None


class Json:
    """An object, or a list, that `opens`. Only one with a call's keys, if it is to be a whole `call`."""

    def __init__(self, opens: str, *, call: bool) -> None:
        self._opens = opens
        self._call = call
        self._extent = JsonExtent()
        self._scanned = -1

    def end(self, text: str, at: int) -> int | None:
        """Return where the value ends."""
        begins = text[at : at + _TELLS]
        if not (may_be_call(begins, self._opens) if self._call else begins[:1] in ("", self._opens)):
            raise NoCall
        self._scanned = max(self._scanned, at)
        try:
            end = self._extent.feed(text[self._scanned :])
        except NotJson:
            raise NoCall from None
        if end is None:
            self._scanned = len(text)
            return None
        return self._scanned + end


class Until:
    """Anything, up to and with `mark`."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._looked = 0

    def end(self, text: str, at: int) -> int | None:
        """Return where the first mark ends."""
        found = text.find(self._mark, max(at, self._looked))
        if found < 0:
            self._looked = len(text) - len(self._mark) + 1
            return None
        return found + len(self._mark)


class Repeated:
    """Items that begin and end with the `marks`, with white space between them, up to and with `last`."""

    def __init__(self, marks: Sequence[str], last: str) -> None:
        self._marks = tuple(marks)
        self._last = last
        self._steps: deque[Step] = deque()
        self._at = -1

    def end(self, text: str, at: int) -> int | None:
        """Return where `last` ends."""
        self._at = max(self._at, at)
        while True:
            if not self._steps:
                self._steps.extend((Space(), Word(self._last, self._marks[0])))
            end = self._steps[0].end(text, self._at)
            if end is None:
                return None
            step = self._steps.popleft()
            if isinstance(step, Word):
                if text[self._at : end] == self._last:
                    return end
                self._steps.extend(map(Until, self._marks[1:]))
            self._at = end


def _may_become(text: str, at: int, words: Sequence[str]) -> bool:
    """Return whether all of `text` from `at` is the beginning of one of `words`, and not all of it."""
    longest = max(map(len, words), default=0)
    if len(text) - at >= longest:
        return False
    rest = text[at:]
    return any(word.startswith(rest) and word != rest for word in words)

"""Where a JSON value ends, found while its text arrives."""

from __future__ import annotations

_CLOSERS = {"{": "}", "[": "]"}
_BETWEEN = frozenset(" \t\r\n,:-+.0123456789eEtrufalsn")
"""What may be outside of strings: white space, punctuation, numbers, true, false and null."""


class NotJson(Exception):
    """The text is not JSON. Never leaves the parsers."""


class JsonExtent:
    """Follows one object or array from its first character. Checks brackets and strings, not the grammar."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int | None:
        """Return how many characters of `text` belong to the value if it ends there, else None.

        Raises:
            NotJson: no JSON value can go on like this.
        """
        for position, char in enumerate(text):
            if self._in_string:
                self._feed_string(char)
            elif char == '"':
                self._in_string = True
            elif char in _CLOSERS:
                self._open.append(_CLOSERS[char])
            elif self._open and char == self._open[-1]:
                self._open.pop()
                if not self._open:
                    return position + 1
            elif char not in _BETWEEN:
                raise NotJson(char)
        return None

    def _feed_string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False

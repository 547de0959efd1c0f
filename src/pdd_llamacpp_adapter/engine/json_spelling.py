r"""What the cloud may write in a JSON string though llguidance does not, as llguidance would take it.

vLLM's xgrammar allows every escape of the standard, such as ``\/`` and ``\u00e9``, and the sign DEL as it is.
llguidance allows a sign to be escaped only where it has to be. A grammar is the same behind either spelling.
"""

from __future__ import annotations

_QUOTE, _BACKSLASH, _U, _DEL = 0x22, 0x5C, 0x75, 0x7F
_SURROGATES = 0xED
"""The first byte of half of a surrogate pair, which xgrammar takes for a character."""


class JsonSpelling:
    """Rewrites the text of one answer, piece by piece, to as many bytes."""

    def __init__(self) -> None:
        self._in_string = False
        self._escaped = False
        self._before = 0
        self._digits = 0
        """Of a ``\\uXXXX``, those that are missing."""

    def push(self, data: bytes) -> bytes:
        """Return `data`, the next piece, as llguidance would take it."""
        return bytes(map(self._next, data))

    def _next(self, byte: int) -> int:
        if not self._in_string:
            self._in_string = byte == _QUOTE
            return byte
        if self._digits:
            self._digits -= 1
            return ord("0")
        if self._escaped:
            self._escaped = False
            self._digits = 4 if byte == _U else 0
            return ord("n") if byte == ord("/") else byte
        before, self._before = self._before, byte
        if before == _SURROGATES and byte >= 0xA0:
            return byte & 0x9F
        self._in_string = byte != _QUOTE
        self._escaped = byte == _BACKSLASH
        return ord("x") if byte < 0x20 or byte == _DEL else byte

"""Prompt lookup: what is likely to follow, because it followed the same tokens before, in prompt or answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZES = (3, 2)
"""Tokens that have to be the same, the larger number first. Longer runs are followed, not looked up."""
_BITS = 21
"""Of an id in a key: three fit 63 bits, and no vocabulary has two million tokens."""
_ID = (1 << _BITS) - 1


class PromptLookup:
    """An index of a text that grows. Building it is linear in the text, each further token takes the same time."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = list(ids[:-1])
        self._newest = [_positions(self._ids, size) for size in SIZES]
        self._at = 0
        self.matched = 0
        """Tokens at the end of the text that stand in front of the draft as well; 0 where there is no draft."""
        for token in ids[-1:]:
            self.append(token)

    def append(self, token: int) -> bool | None:
        """Add the next token. Returns whether it was the first of the draft; None where there was none."""
        right = None if not self.matched else self._ids[self._at] == token
        self._ids.append(token)
        self.matched, self._at = (self.matched + 1, self._at + 1) if right else (0, 0)
        for size, newest in zip(SIZES, self._newest, strict=True):
            if len(self._ids) < size:
                continue
            key = _key(self._ids[-size:])
            before = newest.get(key)
            newest[key] = len(self._ids)
            if before is not None and self.matched <= size:  # a longer run goes on where it is
                self._at, self.matched = before, max(size, self.matched)
        return right

    def draft(self, most: int) -> list[int]:
        """Return what followed last time, `most` tokens; a text that repeats its end goes on repeating it."""
        if not self.matched:
            return []
        period = len(self._ids) - self._at
        return [self._ids[self._at + index % period] for index in range(most)]


def _positions(ids: Sequence[int], size: int) -> dict[int, int]:
    """Return the key of each `size` tokens in a row -> the position behind them, the newest."""
    import numpy as np  # here, so that importing the package does not load it

    array, count = np.array(ids, dtype=np.int64) & _ID, len(ids) - size + 1
    if count <= 0:
        return {}
    keys = np.zeros(count, dtype=np.int64)
    for offset in range(size):
        keys = keys << _BITS | array[offset : offset + count]
    return dict(zip(keys.tolist(), range(size, size + count), strict=True))


def _key(ids: Sequence[int]) -> int:
    key = 0
    for token in ids:
        key = key << _BITS | token & _ID
    return key

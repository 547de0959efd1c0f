"""How much memory a request's values take, as far as a client decides how many or how long they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping

SLOT = 8
"""Bytes of an entry in a list, beside what is in it."""
NUMBER = sys.getsizeof(2**20) + SLOT
"""Bytes of a number in a list."""
LOGPROB = sys.getsizeof(2**20) + sys.getsizeof(0.5)
"""Bytes of an id and its logprob, beside their entry in a dict."""
SPAN = sys.getsizeof((0, 1)) + 2 * sys.getsizeof(2**20) + SLOT
"""Bytes of a span in a list."""


def held_bytes(value: object) -> int:
    """Return the bytes that `value` takes: a number, a string, or a list, tuple or mapping of such."""
    size = sys.getsizeof(value)
    if isinstance(value, Mapping):
        return size + sum(held_bytes(key) + held_bytes(one) for key, one in value.items())
    return size + sum(map(held_bytes, value)) if isinstance(value, list | tuple) else size

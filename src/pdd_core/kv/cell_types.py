"""The types that keys and values are packed to: those of llama.cpp's caches."""

from __future__ import annotations

from enum import StrEnum

BLOCK = 32
"""Elements that share a scale."""


class CellType(StrEnum):
    """A type of packed keys or values; the value is ggml's name."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"

    def row_bytes(self, elements: int) -> int:
        """Return the bytes of a row of `elements`, which are whole blocks of a quantised type."""
        if self is CellType.F16:
            return 2 * elements
        return elements // BLOCK * (34 if self is CellType.Q8_0 else 18)

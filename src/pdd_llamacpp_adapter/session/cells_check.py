"""Whether a cloud's cells are what this device computes itself: checked once, when the two first meet.

A wrong order of the keys' elements, other frequencies or another model's weights make an answer without sense and
without an error. So the device compares the first cells that it has computed itself with the cloud's.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_core.kv.geometry import KVGeometry

logger = logging.getLogger(__name__)

CHECKED_CELLS = 64
"""The prompt's first cells are compared."""
LEAST_SIMILARITY = 0.85
"""Cosine similarity of the worst layer. SmolLM2-135M, cells as q8_0 and q4_0, four texts: at least 0.995 with a
device of F16 or Q4_1, and 0.965 of Q4_K_M; at most 0.78 with ten times the RoPE base, 0.70 with all cells one
position off, 0.07 with other heads, pairs of elements, or another text."""


class CellsChecks:
    """What was found out about clouds; lives as long as the device's engine. Shared by all sessions of one."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], bool] = {}

    def passed(self, cloud: str, geometry: KVGeometry) -> bool | None:
        """Return whether the cells of the cloud at this URL are right; None before that was checked."""
        return self._found.get((cloud, geometry.model_dump_json()))

    def compared(self, cloud: str, geometry: KVGeometry, similarity: float) -> bool:
        """Record how similar cloud's and device's cells are; return whether that is enough.

        Where it is not, the cloud is asked for no cells again. One line of the log says so.
        """
        passed = similarity >= LEAST_SIMILARITY  # not with NaN
        self._found[cloud, geometry.model_dump_json()] = passed
        if not passed:
            logger.warning(
                "the cells of %s are not those of this device's model (similarity %.3f): no KV cache is taken "
                "from there. Both ends need the same model, and releases of pdd-device that agree about its cells",
                cloud,
                similarity,
            )
        return passed

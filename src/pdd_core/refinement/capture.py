"""Whose attention counts: the defaults of the cloud's capture, and which layers they mean for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Heads = Literal["max", "mean"]
HEADS: tuple[Heads, ...] = ("max", "mean")
"""How a layer's heads are made one."""

CAPTURE_WINDOW = 64
"""At most so many of a prompt's last tokens say what matters: its question, and the template behind it."""
LEAST_WINDOW = 16
"""Tokens. So many at least are taken of a paragraph that is more than a question."""
LARGEST_WINDOW = 256
"""Tokens. The scores of a window are computed at once, outside the memory that an engine has planned."""
CAPTURE_DEPTHS = (0.47, 0.57)
"""Depths of the captured layers, as shares of the model's."""
CAPTURE_HEADS: Heads = "max"


def choose_layers(depths: Sequence[float], usable: Sequence[int], total: int) -> tuple[int, ...]:
    """Return the numbers of the layers nearest to `depths` among `usable`.

    Args:
        depths: shares of the model's depth, 0 to 1.
        usable: layers with full attention.
        total: layers of the whole model.
    """
    wanted = [min(total - 1, int(depth * total)) for depth in depths]
    return tuple(sorted({min(usable, key=lambda index: (abs(index - want), index)) for want in wanted}))

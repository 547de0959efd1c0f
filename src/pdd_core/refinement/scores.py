"""The attention that the end of a prompt pays to each of its tokens, as the cloud captured it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class PromptScores:
    """Softmax weights of the last `window` prompt tokens as queries, per layer."""

    values: np.ndarray
    """float32, shape (layers, prompt tokens): mean over the queries, reduced over the heads as `heads` says."""
    layers: tuple[int, ...]
    """Numbers of the layers, in the order of the rows."""
    window: int
    """Queries that were looked at: fewer than configured where the prompt is shorter."""
    heads: Literal["max", "mean"]
    """Whether a row is the largest or the mean weight of a layer's heads."""

    def over_layers(self) -> np.ndarray:
        """Return the mean over the layers: float32, shape (prompt tokens,)."""
        mean: np.ndarray = self.values.mean(axis=0, dtype="float32")
        return mean

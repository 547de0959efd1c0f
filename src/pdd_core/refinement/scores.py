"""The attention that the end of a prompt pays to each of its tokens, as the cloud captured it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from pdd_core.refinement.capture import Heads

    Attention = Mapping[int, np.ndarray]
    """Layer -> softmax weights, float32 of shape (heads, queries, prompt tokens)."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptScores:
    """Softmax weights of the last `window` prompt tokens as queries, per layer; `over_layers()` is their mean."""

    values: np.ndarray
    """float32, shape (layers, prompt tokens): mean over the queries, reduced over the heads as `heads` says. It
    cannot be written to: the refiners of a prompt are given the same one."""
    layers: tuple[int, ...]
    """Numbers of the layers, in the order of the rows."""
    window: int
    """Queries that were looked at: fewer than configured where the prompt is shorter."""
    heads: Heads
    """Whether a row is the largest or the mean weight of a layer's heads."""

    def __post_init__(self) -> None:
        view = self.values.view()  # the maker's own array stays as it is
        view.flags.writeable = False
        object.__setattr__(self, "values", view)

    def over_layers(self) -> np.ndarray:
        """Return the mean over the layers: float32, shape (prompt tokens,)."""
        mean: np.ndarray = self.values.mean(axis=0, dtype="float32")
        return mean


def prompt_scores(attention: Attention, *, heads: Heads, window: int | None = None) -> PromptScores:
    """Return the scores of a prompt: mean over the last `window` queries, reduced over the heads."""
    import numpy as np

    layers = tuple(sorted(attention))
    held = attention[layers[0]].shape[1]
    window = held if window is None else min(window, held)
    reduce = np.max if heads == "max" else np.mean
    rows = [reduce(attention[layer][:, held - window :].mean(axis=1), axis=0) for layer in layers]
    return PromptScores(np.stack(rows).astype(np.float32), layers, window, heads)

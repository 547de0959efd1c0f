"""Scores on their way from the worker to the API server: bounded in number and in time."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

KEEP_S = 60.0
"""Nobody fetches the scores of a request whose client left before its first token."""


@dataclass(frozen=True, slots=True)
class Scores:
    """One request's scores on one rank. The copy to the host may still be under way."""

    values: Tensor
    """float32 of shape (n_layers, L), on the host."""
    layers: tuple[int, ...]
    window: int
    ready: Any = None
    """A CUDA event behind the copy; None on a CPU."""

    def message(self) -> dict[str, Any]:
        """Return what goes over vLLM's RPC."""
        if self.ready is not None:
            self.ready.synchronize()
        return {"layers": list(self.layers), "window": self.window, "values": self.values.numpy().tobytes()}


@dataclass(frozen=True, slots=True)
class Missed:
    """Why a request has no scores on this rank."""

    reason: str

    def message(self) -> dict[str, Any]:
        """Return what goes over vLLM's RPC."""
        return {"missed": self.reason}


class Shelf:
    """Results by handoff id; each is given out once."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._results: OrderedDict[str, tuple[float, Scores | Missed]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._results)

    def put(self, handoff_id: str, result: Scores | Missed) -> None:
        """Keep `result` until it is taken, is too old, or too many have come after it."""
        now = self._clock()
        self._results.pop(handoff_id, None)
        self._results[handoff_id] = (now, result)
        while len(self._results) > self._most or now - next(iter(self._results.values()))[0] > KEEP_S:
            self._results.popitem(last=False)

    def take(self, handoff_id: str) -> dict[str, Any] | None:
        """Return a result as a message, and forget it; None if there is none."""
        kept = self._results.pop(handoff_id, None)
        return None if kept is None else kept[1].message()

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
"""After its request's end. Nobody fetches the scores of one whose client left before its first token."""


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


class ScoreStore:
    """Results by handoff id; each is given out once.

    What belongs to a running request stays. When the request has ended, it ages.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._running: OrderedDict[str, Scores | Missed] = OrderedDict()
        self._ended: OrderedDict[str, tuple[float, Scores | Missed]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._running) + len(self._ended)

    def put(self, handoff_id: str, result: Scores | Missed) -> None:
        """Keep `result` of a running request until it is taken, is too old, or too many have come after it."""
        self._pop(handoff_id)
        self._running[handoff_id] = result
        self._make_room()

    def ended(self, handoff_id: str) -> None:
        """Begin to count the age of a result: its request has ended."""
        if handoff_id in self._running:
            self._ended[handoff_id] = self._clock(), self._running.pop(handoff_id)
            self._make_room()

    def take(self, handoff_id: str) -> dict[str, Any] | None:
        """Return a result as a message, and forget it; None if there is none."""
        kept = self._pop(handoff_id)
        return None if kept is None else kept.message()

    def _pop(self, handoff_id: str) -> Scores | Missed | None:
        if handoff_id in self._ended:
            return self._ended.pop(handoff_id)[1]
        return self._running.pop(handoff_id, None)

    def _make_room(self) -> None:
        oldest = self._clock() - KEEP_S
        while self._ended and (len(self) > self._most or next(iter(self._ended.values()))[0] < oldest):
            self._ended.popitem(last=False)
        while len(self) > self._most:
            self._running.popitem(last=False)

"""Answers that can be read again by their id, for a while: the running ones, and the newest of the others."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.failures import DELETED

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_llamacpp_adapter.server.answering import RunningAnswer
    from pdd_llamacpp_adapter.server.turn import Json


class StoredAnswers:
    """Answers by id, bounded in number and age. Memory only: nothing outlives the process.

    Args:
        count: how many ended answers are kept. Running ones are kept besides, until their end.
        ttl: for how many seconds after its end an answer is kept.
        clock: seconds.
    """

    def __init__(self, count: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._ttl = ttl
        self._clock = clock
        self._running: dict[str, RunningAnswer] = {}
        self._ended: OrderedDict[str, tuple[float, Json]] = OrderedDict()

    def begun(self, answer: RunningAnswer) -> None:
        """Keep `answer`, if it is of a kind that can be retrieved."""
        if answer.described is not None:
            self._running[answer.call.answer_id] = answer

    def ended(self, answer: RunningAnswer) -> None:
        """Keep what `answer` has become, unless it was removed. Its engines' objects are let go."""
        if self._running.pop(answer.call.answer_id, None) is not None and answer.described is not None:
            self._ended[answer.call.answer_id] = (self._clock(), answer.described(answer))
        self._drop_old()

    def get(self, answer_id: str) -> Json | None:
        """Return the answer's JSON as it is now, or None when it is unknown, dropped or removed."""
        self._drop_old()
        running = self._running.get(answer_id)
        if running is not None and running.described is not None:
            return running.described(running)
        return self._ended[answer_id][1] if answer_id in self._ended else None

    def remove(self, answer_id: str) -> bool:
        """Forget the answer, and stop it if it runs. Returns whether there was one."""
        self._drop_old()
        running = self._running.pop(answer_id, None)
        if running is not None:
            running.stop(DELETED)
        return running is not None or self._ended.pop(answer_id, None) is not None

    def __len__(self) -> int:
        return len(self._running) + len(self._ended)

    def _drop_old(self) -> None:
        oldest_allowed = self._clock() - self._ttl
        while self._ended:
            end, _ = next(iter(self._ended.values()))  # they stand in the order of their ends
            if len(self._ended) <= self._count and end >= oldest_allowed:
                return
            self._ended.popitem(last=False)

"""Answers that can be read again by their id, for a while: the running ones, and the newest of the others."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from pydantic_core import to_json

from pdd_llamacpp_adapter.server.wire.failures import DELETED

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_llamacpp_adapter.server.wire.failures import ErrorObject
    from pdd_llamacpp_adapter.server.wire.json_body import Json


class KeptAnswer(Protocol):
    """A `RunningAnswer`, as far as the books know it: who makes answers imports the books."""

    @property
    def answer_id(self) -> str:
        """Its id."""

    @property
    def is_retrievable(self) -> bool:
        """Whether it is of a kind that can be read by its id."""

    @property
    def is_known(self) -> bool:
        """Whether there is something to read, or somebody who may ask what became of it."""

    def described(self) -> Json:
        """Return the answer as it is now. Only for one that `is_retrievable`."""

    def stop(self, why: ErrorObject) -> None:
        """End it with the error `why`, unless it has ended."""


class StoredAnswers:
    """Answers by id, bounded in number, age and size. Memory only: nothing outlives the process.

    Args:
        count: how many ended answers are kept. Running ones are kept besides, until their end.
        ttl: for how many seconds after its end an answer is kept.
        size: bytes of JSON that ended answers may take, all together; a larger one is not kept.
        clock: seconds.
    """

    def __init__(self, count: int, ttl: float, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._ttl = ttl
        self._size = size
        self._clock = clock
        self._running: dict[str, KeptAnswer] = {}
        self._ended: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._used = 0
        """Bytes of all in `_ended`."""

    def begun(self, answer: KeptAnswer) -> None:
        """Keep `answer`, if it is of a kind that can be retrieved."""
        if answer.is_retrievable:
            self._running[answer.answer_id] = answer

    def ended(self, answer: KeptAnswer) -> None:
        """Keep what `answer` has become, unless it was removed, or refused before anyone knew of it.

        Its engines' objects are let go.
        """
        known = self._running.pop(answer.answer_id, None) is not None and answer.is_known
        if known and len(told := to_json(answer.described())) <= self._size:
            self._ended[answer.answer_id] = (self._clock(), told)
            self._used += len(told)
        self._drop_old()

    def get(self, answer_id: str) -> bytes | None:
        """Return the answer as it is now, in JSON, or None when it is unknown, dropped or removed."""
        self._drop_old()
        running = self._running.get(answer_id)
        if running is not None:
            return to_json(running.described())
        return self._ended[answer_id][1] if answer_id in self._ended else None

    def remove(self, answer_id: str) -> bool:
        """Forget the answer, and stop it if it runs. Returns whether there was one."""
        self._drop_old()
        running = self._running.pop(answer_id, None)
        if running is not None:
            running.stop(DELETED)
            return True
        return self._forget(answer_id)

    def __len__(self) -> int:
        return len(self._running) + len(self._ended)

    def _drop_old(self) -> None:
        oldest_allowed = self._clock() - self._ttl
        while self._ended:
            answer_id, (end, _) = next(iter(self._ended.items()))  # in the order of their ends
            if len(self._ended) <= self._count and self._used <= self._size and end >= oldest_allowed:
                return
            self._forget(answer_id)

    def _forget(self, answer_id: str) -> bool:
        _, told = self._ended.pop(answer_id, (0.0, None))
        self._used -= len(told or b"")
        return told is not None

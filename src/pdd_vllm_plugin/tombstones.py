"""Deleted ids, each remembered for a minute: a second DELETE finds them, and a late POST is refused.

Anyone may delete ids that nobody has, as fast as they like. So these have room of their own, and none makes way
for another one: else a DELETE that overtook its POST would be forgotten for a flood of others.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TOMBSTONE_TTL_S = 60.0
"""How long a deleted id refuses a POST that comes after its own DELETE."""
MAX_TOMBSTONES = 4096
"""Of deleted states, which have two names each; the oldest makes way."""
MAX_REFUSED = 32_768
"""Of ids that nobody had. It takes 500 DELETEs a second to fill it, and 10 MB."""


class Tombstones:
    """Used from one event loop only. Each call costs the same however many there are.

    Args:
        clock: monotonic seconds.
        forget: called with each name that is no longer remembered, and whether it is a completion's.
    """

    def __init__(self, clock: Callable[[], float], forget: Callable[[str, bool], object]) -> None:
        self._clock = clock
        self._forget = forget
        self._deleted: OrderedDict[str, tuple[float, bool]] = OrderedDict()
        """When, and whether the name is a completion's."""
        self._refused: OrderedDict[str, float] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._deleted or name in self._refused

    def had_state(self, name: str) -> bool:
        """Was there a state of this name?"""
        return name in self._deleted

    def has_room(self, name: str) -> bool:
        """Can this id be remembered, if nobody has it?"""
        self.purge()
        return name in self._refused or len(self._refused) < MAX_REFUSED

    def bury(self, name: str, *, of_completion: bool = False) -> None:
        """Remember a deleted state's name."""
        self._deleted[name] = self._clock(), of_completion
        self._deleted.move_to_end(name)
        while len(self._deleted) > MAX_TOMBSTONES:
            self._forget_deleted()

    def refuse(self, name: str) -> None:
        """Remember an id that nobody has and that `has_room`; once more for a minute if it is remembered."""
        self._refused[name] = self._clock()
        self._refused.move_to_end(name)

    def purge(self) -> None:
        """Forget those whose minute is over."""
        over = self._clock() - TOMBSTONE_TTL_S
        while self._deleted and next(iter(self._deleted.values()))[0] < over:
            self._forget_deleted()
        while self._refused and next(iter(self._refused.values())) < over:
            self._forget(self._refused.popitem(last=False)[0], False)

    def _forget_deleted(self) -> None:
        name, (_, of_completion) = self._deleted.popitem(last=False)
        self._forget(name, of_completion)

"""All handoff states of this process: bounded in number and in tokens, and gone when their time is up.

If a server has several API processes, the bounds and the ids in use are those of all of them together.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol, TypeVar

from pdd_core.errors import HandoffInUse
from pdd_core.handoff import Status
from pdd_core.optin import HANDOFF
from pdd_vllm_plugin.handoff_names import ALONE, Totals, names_a_state
from pdd_vllm_plugin.tombstones import Tombstones

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_vllm_plugin.config import PDDConfig
    from pdd_vllm_plugin.handoff_names import HandoffNames
    from pdd_vllm_plugin.handoff_record import HandoffRecord

T = TypeVar("T")

NOT_STARTED_TTL_S = 30.0
"""A request that vLLM registered but never began: another prompt of the same POST was refused."""
TAKEN = "is in use by a running request, or was deleted a moment ago"
"""What is known of an id that another process has."""


class StoreWatch(Protocol):
    """Is told what becomes of the records of a store: `SharedStore`."""

    def added(self, record: HandoffRecord) -> None:
        """It is kept from now on."""

    def ended(self, record: HandoffRecord) -> None:
        """It has ended; told again when its refined prompt is settled after that, and possibly more often."""

    def dropped(self, record: HandoffRecord, *, shared: bool) -> None:
        """It is not kept any more. `shared`: another one has the same completion's id."""

    def removed(self, record: HandoffRecord, *, deleted: bool) -> None:
        """It is not to be found any more, anywhere: it was deleted, or another request has its id now."""


class HandoffStore:
    """Records by handoff id. Used from one event loop only.

    Each call costs the same however many there are: they come and go by the hundred per second.
    """

    def __init__(
        self, config: PDDConfig, clock: Callable[[], float] = time.monotonic, names: HandoffNames = ALONE
    ) -> None:
        self._config = config
        self._clock = clock
        self._names = names
        self._records: dict[str, HandoffRecord] = {}
        self._sizes: dict[str, int] = {}
        """What each held when it was last looked at."""
        self._held = 0
        """The sum of these."""
        self._ended: OrderedDict[str, HandoffRecord] = OrderedDict()
        """Those whose time to live runs, as they ended."""
        self._not_begun: OrderedDict[str, HandoffRecord] = OrderedDict()
        """Those that may never begin, as they came; some have begun since."""
        self._by_completion: dict[str, list[str]] = {}
        self._tombstones = Tombstones(clock, self._unbury)
        self.watch: StoreWatch | None = None
        self.drop_cells: Callable[[str], object] | None = None
        """Is told the handoff id of each record that is dropped and whose cells workers were asked for."""

    def __len__(self) -> int:
        return len(self._records)

    @property
    def ttl_s(self) -> float:
        """Seconds for which an ended request's state is kept."""
        return self._config.ttl_s

    def check_free(self, handoff_id: str) -> None:
        """Check that a new request may use this id.

        Raises:
            HandoffInUse: a running request has it, or it was deleted within the last minute.
        """
        self._check_free_here(handoff_id)
        if self._names.is_taken(handoff_id):
            raise _in_use(TAKEN)

    def _check_free_here(self, handoff_id: str) -> None:
        self.purge()
        if handoff_id in self._tombstones:
            raise _in_use("was deleted a moment ago")
        record = self._records.get(handoff_id)
        if record is not None and record.status is Status.RUNNING:
            raise _in_use("is in use by a running request")

    def full_of_running(self) -> bool:
        """Is there no room for one more, because every state belongs to a running request?"""
        others = self._names.others()
        records = len(self._records) + others.records
        return records >= self._config.max_handoffs and not self._ended and not others.ended

    def add(self, record: HandoffRecord) -> None:
        """Keep `record`; an ended one of the same id makes way.

        Raises:
            HandoffInUse: see `check_free`.
        """
        handoff_id = record.opt_in.handoff_id
        self._check_free_here(handoff_id)
        if not self._names.claim(handoff_id):
            raise _in_use(TAKEN)
        if handoff_id in self._records:
            old = self._records[handoff_id]
            self._forget(handoff_id)
            self._removed(old, deleted=False)
        self._records[handoff_id] = record
        self._sizes[handoff_id] = 0
        same = self._by_completion.setdefault(record.completion_id, [])
        if not same:
            self._names.name_completion(record.completion_id)
        same.append(handoff_id)
        if not record.started:
            self._not_begun[handoff_id] = record
        if self.watch is not None:
            self.watch.added(record)
        self.note(record)

    def note(self, record: HandoffRecord) -> None:
        """Look at what has become of `record`: how much it holds, and whether it has ended. Then make room.

        To be called when it ends, and when it grows after that. One that is not kept any more is passed over.
        """
        handoff_id = record.opt_in.handoff_id
        if self._records.get(handoff_id) is not record:
            return
        size = record.size
        self._held += size - self._sizes[handoff_id]
        self._sizes[handoff_id] = size
        if record.status is not Status.RUNNING and handoff_id not in self._ended:
            record.touched = self._clock()
            self._ended[handoff_id] = record
            self._names.ended(handoff_id)
        if self.watch is not None and record.status is not Status.RUNNING:
            self.watch.ended(record)
        if size > self._config.max_state_tokens and handoff_id in self._ended:
            self._forget(handoff_id)  # it would have to go in the end: no other one makes way for it
        self.make_room()

    def get(self, handoff_id: str) -> HandoffRecord | None:
        """Return a record; None if it is unknown, expired or deleted."""
        self.purge()
        return self._records.get(handoff_id)

    def find(self, completion_or_handoff_id: str) -> list[HandoffRecord]:
        """Return the records that a completion's id, or a handoff id, names.

        More than one only if clients sent the same ``X-Request-Id``. A completion's id whose client-chosen part is
        shorter than a handoff id must be names nothing: it could be guessed.
        """
        self.purge()
        if completion_or_handoff_id in self._records:
            return [self._records[completion_or_handoff_id]]
        if not names_a_state(completion_or_handoff_id):
            return []
        return [self._records[handoff_id] for handoff_id in self._by_completion.get(completion_or_handoff_id, ())]

    def delete(self, handoff_id: str) -> None:
        """Drop a record. Its names are remembered for a minute."""
        record = self._records[handoff_id]
        completion = record.completion_id
        held = self._names.bury(handoff_id)
        self._drop(handoff_id)
        self._removed(record, deleted=True)
        if held:
            self._tombstones.bury(handoff_id)
        self._names.name_completion(completion, deleted=True)
        self._tombstones.bury(completion, of_completion=True)

    def refuse(self, handoff_id: str) -> bool:
        """Refuse an id that is not known yet for a minute: its DELETE may have overtaken its POST.

        Returns:
            False if another process has the id, or if there is no room for it: `can_refuse`.
        """
        if not self.can_refuse(handoff_id) or not self._names.claim(handoff_id):
            return False
        self._tombstones.refuse(handoff_id)
        return True

    def can_refuse(self, handoff_id: str) -> bool:
        """Is there room for one more id that is refused? It must not make others be forgotten."""
        return self._tombstones.has_room(handoff_id)

    def is_refused(self, handoff_id: str) -> bool:
        """Is this id refused for a minute since it was deleted?"""
        return handoff_id in self._tombstones

    def _unbury(self, name: str, of_completion: bool) -> None:
        if of_completion:
            self._names.unname_completion(name, deleted=True)
        else:
            self._names.free(name, ended=False)

    def was_deleted(self, completion_or_handoff_id: str) -> bool:
        """Was there a state of this name, and was it deleted within the last minute?"""
        self.purge()
        return self._tombstones.had_state(completion_or_handoff_id)

    def expires_in(self, record: HandoffRecord) -> float:
        """Seconds until `record` is dropped if nothing changes."""
        ends_at = self._clock() if record.status is Status.RUNNING else record.touched
        return ends_at + self._config.ttl_s - self._clock()

    def purge(self) -> None:
        """Drop what has expired."""
        now = self._clock()
        while self._ended and now - _first(self._ended).touched > self._config.ttl_s:
            self._forget(next(iter(self._ended)))
        while self._not_begun:
            record = _first(self._not_begun)
            if record.started:
                self._not_begun.popitem(last=False)
            elif now - record.touched > NOT_STARTED_TTL_S:
                self._forget(record.opt_in.handoff_id)
            else:
                break
        self._tombstones.purge()

    def make_room(self) -> None:
        """Drop what ended first until both bounds hold. Running ones stay: their DELETE must work.

        Of several processes, each drops its own first. If it has none, another one is asked.
        """
        others = self._names.others()
        most = self._config.max_handoffs - others.records
        most_held = self._config.max_state_tokens - others.held
        while self._ended and (len(self._records) > most or self._held > most_held):
            self._forget(next(iter(self._ended)))
        self._tell()
        if others.ended and (len(self._records) > most or self._held > most_held):
            self._names.ask_for_room()

    def _forget(self, handoff_id: str) -> None:
        """Drop a record. Its name is free."""
        self._names.free(handoff_id, ended=handoff_id in self._ended)
        self._drop(handoff_id)

    def _removed(self, record: HandoffRecord, *, deleted: bool) -> None:
        if self.watch is not None:
            self.watch.removed(record, deleted=deleted)

    def _drop(self, handoff_id: str) -> None:
        record = self._records.pop(handoff_id)
        self._held -= self._sizes.pop(handoff_id)
        self._ended.pop(handoff_id, None)
        self._not_begun.pop(handoff_id, None)
        same = self._by_completion[record.completion_id]
        same.remove(handoff_id)
        if not same:
            del self._by_completion[record.completion_id]
            self._names.unname_completion(record.completion_id)
        self._tell()
        if self.watch is not None:
            self.watch.dropped(record, shared=bool(same))
        if self.drop_cells is not None and record.kv_asked:
            self.drop_cells(handoff_id)

    def _tell(self) -> None:
        self._names.tell(Totals(len(self._records), len(self._ended), self._held))


def _in_use(why: str) -> HandoffInUse:
    return HandoffInUse(f"{HANDOFF} {why}; use a new id", param=f"vllm_xargs.{HANDOFF}")


def _first(ordered: OrderedDict[str, T]) -> T:
    return next(iter(ordered.values()))

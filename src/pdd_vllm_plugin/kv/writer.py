"""Writes cells to the shelf behind the engine's back: threads, and a queue in front of them that is bounded."""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pdd_core.kv.geometry import NoKV

if TYPE_CHECKING:
    from pdd_vllm_plugin.kv.packer import Taken
    from pdd_vllm_plugin.kv.shelf import Shelf

logger = logging.getLogger("vllm.pdd")

MOST_WAITING_BYTES = 1 << 30
"""Of memory that taken cells may hold while they wait. One prompt may always wait."""
MOST_WAITING = 1024
SWEEP_S = 5.0
"""How often files are looked through for those whose time is up, while there are any."""
FAILED = NoKV(reason="not_captured", message="the cells could not be packed: see the server's log")


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be written of a handoff."""

    handoff_id: str
    content: Taken | NoKV
    tokens: int = 0
    cell_bytes: int = 0
    since: float = 0.0

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        return 0 if isinstance(self.content, NoKV) else self.content.nbytes


class CellWriter:
    """Threads that write to `shelf` until `close`.

    They are as urgent as the engine's own: one that is not, and has Python's lock where cores are few, keeps the
    engine's step waiting until it is scheduled.
    """

    def __init__(self, shelf: Shelf, threads: int, most_bytes: int = MOST_WAITING_BYTES) -> None:
        self._shelf = shelf
        self._most_bytes = most_bytes
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._held = 0
        self._busy = 0
        self._closed = False
        self._warned = False
        self._counts = dict.fromkeys(("kept", "no_room", "none", "failed"), 0)
        for _ in range(threads):
            threading.Thread(target=self._run, name="pdd-kv", daemon=True).start()

    def has_room(self, nbytes: int) -> bool:
        """Whether another prompt, whose cells hold `nbytes`, may wait."""
        with self._changed:
            return len(self._jobs) < MOST_WAITING and (not self._held or self._held + nbytes <= self._most_bytes)

    def put(self, job: Job) -> None:
        """Queue `job`; the oldest that waits gives way if there are too many."""
        with self._changed:
            if len(self._jobs) >= MOST_WAITING:
                self._held -= self._jobs.popleft().nbytes
            self._jobs.append(job)
            self._held += job.nbytes
            self._changed.notify()

    def counts(self) -> dict[str, int]:
        """What was done since the start, and what waits."""
        with self._changed:
            waiting = {"waiting": len(self._jobs) + self._busy, "waiting_bytes": self._held}
            return {**self._counts, **waiting}

    def close(self) -> None:
        """End the threads, behind what they are at."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        stored = True
        while (job := self._next(SWEEP_S if stored else None)) is not None:
            if job is not _SWEEP:
                done = self._done(job)
                with self._changed:
                    self._counts[done] += 1
                    self._busy -= 1
                    self._held -= job.nbytes
                del job
            stored = self._shelf_holds()

    def _next(self, timeout: float | None) -> Job | None:
        """Wait for a job; None: there is an end to it."""
        with self._changed:
            while not self._jobs and not self._closed:
                if not self._changed.wait(timeout):
                    return _SWEEP
            if self._closed:
                return None
            self._busy += 1
            return self._jobs.popleft()

    def _done(self, job: Job) -> Literal["kept", "no_room", "none", "failed"]:
        try:
            if isinstance(job.content, NoKV):
                self._shelf.put_none(job.handoff_id, job.content)
                return "none"
            payloads = job.content.payloads()
            put = self._shelf.put(job.handoff_id, job.tokens, job.cell_bytes, payloads, since=job.since)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next prompt has its turn
            if not self._warned:
                self._warned = True
                logger.warning("pdd: a prompt's KV cache cannot be packed: %s: %s", type(error).__name__, error)
            with suppress(Exception):
                self._shelf.put_none(job.handoff_id, FAILED)
            return "failed"
        return "kept" if put else "no_room"

    def _shelf_holds(self) -> bool:
        with suppress(OSError):
            return self._shelf.sweep()
        return False


_SWEEP = Job("", FAILED)
"""Stands for: look for what is too old."""

"""What several answers want processed, put into one llama_decode: it reads the weights once for all of them."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pdd_core.errors import DeviceEngineFailed
from pdd_llamacpp_adapter.engine.abort_flag import DecodeAborted
from pdd_llamacpp_adapter.engine.speed import LARGE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from pdd_llamacpp_adapter.engine.context import LlamaContext
    from pdd_llamacpp_adapter.engine.engine_thread import EngineThread, Job
    from pdd_llamacpp_adapter.engine.sharing import Sharing
    from pdd_llamacpp_adapter.engine.tasks import Part


@dataclass(frozen=True, slots=True)
class Ran:
    """What a batch cost, for one of its parts."""

    seconds: float
    """That the batch took."""
    alone_s: float | None
    """Seconds that the part would have taken by itself, about; None where that cannot be said."""
    beside: int | None
    """Tokens of other parts; None where a large one was among all of them."""


class Task(Protocol):
    """What one answer wants processed, part after part. All but `future` is the engine's thread's."""

    part: Part
    """The next one."""
    future: Future[None]
    """Done when there is no next part, or the task failed."""
    cancelled: bool

    def processed(self, ran: Ran) -> bool:
        """Take the logits of `part`; return whether there is a next one."""


class Batcher:
    """Has `context` process tasks on `thread`. Tasks are added from any thread."""

    def __init__(self, context: LlamaContext, thread: EngineThread, sharing: Sharing) -> None:
        self._context = context
        self._thread = thread
        self._sharing = sharing
        self._lock = threading.Lock()
        self._waiting = deque[Task]()
        self._running: Sequence[Task] = ()
        self._job: Job | None = None
        """The one in progress, or the next; None while there is nothing to do."""
        self._closed = False

    @property
    def is_decoding(self) -> bool:
        """Whether answers are being decoded, whose tokens wait while a prompt is read."""
        with self._lock:
            return any(len(task.part.ids) < LARGE for task in (*self._running, *self._waiting))

    def add(self, task: Task) -> None:
        """Process `task`, with what else there is.

        Raises:
            DeviceEngineFailed: the batcher is closed.
        """
        with self._lock:
            if self._closed:
                raise DeviceEngineFailed("the engine is closed")
            self._waiting.append(task)
            if self._job is None:
                self._job = self._thread.post(self._work)

    def cancel(self, task: Task) -> None:
        """Process no more of `task`, and stop llama.cpp where it computes for nothing else."""
        with self._lock:
            task.cancelled = True
            if self._job is not None and self._running and all(one.cancelled for one in self._running):
                self._thread.cancel(self._job)

    def close(self) -> None:
        """Fail what there is to do, and what is added later. Stopping the thread comes after this."""
        with self._lock:
            self._closed = True
            if self._job is not None:
                self._thread.cancel(self._job)

    def _work(self, _: Job) -> None:
        """Process one batch. What else the thread has to do comes before the next."""
        with self._lock:
            self._running = [] if self._closed else self._taken()
        again = self._process(self._running) if self._running else []
        with self._lock:
            self._running = ()
            self._waiting.extend(again)
            if self._closed:
                for task in self._waiting:
                    task.future.set_exception(DeviceEngineFailed("the engine was closed while it was answering"))
                self._waiting.clear()
            self._job = self._thread.post(self._work) if self._waiting else None

    def _taken(self) -> list[Task]:
        """Take the next batch's tasks from those that wait: first come, first served.

        Of large parts, which take time, there is one in a batch: no answer waits for several.
        """
        taken, left = list[Task](), deque[Task]()
        tokens, outputs, large = 0, 0, False
        for task in self._waiting:
            if task.cancelled:
                task.future.set_exception(DecodeAborted())
                continue
            count, wanted = len(task.part.ids), len(task.part.outputs)
            fits = tokens + count <= self._context.n_batch and outputs + wanted <= self._context.most_outputs
            if (taken and not fits) or (large and count >= LARGE):
                left.append(task)
                continue
            taken.append(task)
            tokens, outputs, large = tokens + count, outputs + wanted, large or count >= LARGE
        self._waiting = left
        return taken

    def _process(self, tasks: Sequence[Task]) -> list[Task]:
        """Process the parts of `tasks` in one batch; return those that have another one."""
        begun = time.perf_counter()
        try:
            self._context.decode([task.part for task in tasks])
        except DecodeAborted as error:
            for task in tasks:
                task.future.set_exception(error)
            return []
        except Exception as error:  # noqa: BLE001 - whatever it is, its caller is told
            if len(tasks) == 1:
                tasks[0].future.set_exception(error)
                return []
            # one of them is to blame: the others must not fail with it
            return [task for one in tasks for task in self._process([one])]
        seconds = time.perf_counter() - begun
        counts = [len(task.part.ids) for task in tasks]
        return [task for task in tasks if self._goes_on(task, self._ran(seconds, len(task.part.ids), counts))]

    def _ran(self, seconds: float, count: int, counts: Sequence[int]) -> Ran:
        if count >= LARGE:
            return Ran(seconds, seconds * count / sum(counts), None)
        if max(counts) >= LARGE:
            return Ran(seconds, None, None)
        return Ran(seconds, seconds / self._sharing.slowdown(len(counts)), sum(counts) - count)

    def _goes_on(self, task: Task, ran: Ran) -> bool:
        try:
            if task.processed(ran) and not task.cancelled:
                return True
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this task's, and its caller's to tell
            task.future.set_exception(error)
        else:
            task.future.set_result(None)
        return False

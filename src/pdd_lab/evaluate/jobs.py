"""The cases of an evaluation, measured by one process or by several, and given back in their order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from pdd_core.errors import DeviceEngineFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from pdd_lab.evaluate.examination import MeasuredCase

    MeasureAll = Callable[[str, Iterable[int]], Iterator[MeasuredCase | None]]

AHEAD = 2
"""Cases that are given out for each process: one that it works on, and one that waits for it."""


class Worker(Protocol):
    """What measures cases."""

    def measure(self, task: str, number: int) -> MeasuredCase | None:
        """Return what is known of a case; None if there is no such case."""

    def close(self) -> None:
        """Free what it holds."""


@contextmanager
def workers(jobs: int, opened: Callable[..., Worker], *arguments: Any) -> Iterator[MeasureAll]:
    """Give a function that measures cases of a task, by their numbers, and yields what comes in that order.

    Args:
        jobs: processes; with one, it is this one.
        opened: makes what measures, once per process; has to be importable by name if there are several.
        arguments: what it is given; has to be picklable if there are several.

    Raises:
        DeviceEngineFailed: a process ended before its work was done.
    """
    if jobs == 1:
        worker = opened(*arguments)
        try:
            yield lambda task, numbers: (worker.measure(task, number) for number in numbers)
        finally:
            worker.close()
        return
    # spawned, not forked: llama.cpp's threads and locks do not live through a fork
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(opened, arguments))
    try:
        yield lambda task, numbers: _shared(pool, jobs, task, numbers)
    finally:
        # nobody waits for cases that are not needed any more: what is complete is in the store
        for process in multiprocessing.active_children():
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _shared(
    pool: ProcessPoolExecutor, jobs: int, task: str, numbers: Iterable[int]
) -> Iterator[MeasuredCase | None]:
    waiting: deque[Future[MeasuredCase | None]] = deque()
    left = iter(numbers)
    try:
        while True:
            while len(waiting) < AHEAD * jobs and (number := next(left, None)) is not None:
                waiting.append(pool.submit(_measure, task, number))
            if not waiting:
                return
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DeviceEngineFailed(
            "a process of the evaluation was ended: if memory ran out, choose fewer --jobs; the cases that were "
            "measured are kept"
        ) from None
    finally:
        for future in waiting:
            future.cancel()


_worker: list[Worker] = []
"""Of this process, where it is one of several."""


def _begin(opened: Callable[..., Worker], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.append(opened(*arguments))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _measure(task: str, number: int) -> MeasuredCase | None:
    return _worker[0].measure(task, number)

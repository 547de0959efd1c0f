"""The thread that computes: jobs one by one, each awaited from the event loop and stopped when it is cancelled."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import anyio

from pdd_core.errors import DeviceEngineFailed
from pdd_llamacpp_adapter.engine.abort_flag import AbortFlag, DecodeAborted

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass(slots=True)
class Job:
    """What the thread is doing, or will do."""

    cancelled: bool = False


class EngineThread:
    """One thread, made with the object and ended by `shut_down`."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llama")
        self._job = Job()
        self._changing = threading.Lock()
        self.abort = AbortFlag()
        """Raised while the job in progress is cancelled: for llama.cpp."""

    def run(self, work: Callable[[], T]) -> T:
        """Do `work` and return its result. Blocks."""
        return self._executor.submit(work).result()

    def stop(self, last: Callable[[], object]) -> None:
        """Cancel the job in progress, do `last`, and end the thread. Blocks."""
        self.cancel(self._job)
        self.run(last)
        self._executor.shutdown()

    def shut_down(self) -> None:
        """End the thread, which has nothing to do. Blocks."""
        self._executor.shutdown()

    def post(self, work: Callable[[Job], object]) -> Job:
        """Do `work` behind what there is to do. It has to see to its errors."""
        job = Job()
        self._executor.submit(self._do, job, work)
        return job

    async def call(self, work: Callable[[], T]) -> T:
        """Do `work`. On cancellation, abort it and wait until the thread is free again.

        Raises:
            DeviceEngineFailed: the engine was closed meanwhile.
        """
        job = Job()

        def checked(job: Job) -> T:
            if job.cancelled:
                raise DecodeAborted
            return work()

        return await awaited(self._executor.submit(self._do, job, checked), lambda: self.cancel(job))

    def _do(self, job: Job, work: Callable[[Job], T]) -> T:
        with self._changing:
            self._job = job
            self.abort.raised = job.cancelled
        try:
            return work(job)
        finally:
            with self._changing:
                self._job, self.abort.raised = Job(), False

    def cancel(self, job: Job) -> None:
        """Have `job` stop, or not begin."""
        with self._changing:
            job.cancelled = True
            if self._job is job:  # and not the next one, which nobody cancelled
                self.abort.raised = True


async def awaited(future: Future[T], cancel: Callable[[], object]) -> T:
    """Return the result of `future`. On cancellation, call `cancel` and wait until it is done.

    Raises:
        DeviceEngineFailed: it was aborted by something else: the engine was closed.
    """
    waited = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(waited)
    except asyncio.CancelledError:
        cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([waited])
        waited.exception()  # looked at, so that asyncio does not report it as forgotten
        raise
    except DecodeAborted as error:
        raise DeviceEngineFailed("the engine was closed while it was answering") from error

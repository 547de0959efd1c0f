"""A thread with an event loop of its own: what the store costs, the loop that streams tokens does not pay.

It is a daemon: a store that hangs keeps no server from ending.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")
_STOP_S = 2.0


class StoreThread:
    """Runs `main` until it is stopped."""

    def __init__(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._main = main
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="pdd-store", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner, suppress(asyncio.CancelledError):
            runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        self._task = asyncio.current_task()
        await self._main()

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Have `function` called in the thread, soon; not at all once it has stopped. Takes microseconds."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *args)

    async def result(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what `coroutine` returns in the thread; to be awaited in another loop.

        Raises:
            RuntimeError: the thread has stopped.
        """
        try:
            running = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise
        return await asyncio.wrap_future(running)

    def stop(self) -> None:
        """End the thread; waits for that, and not for long."""
        self.call(lambda: self._task is not None and self._task.cancel())
        self._thread.join(_STOP_S)

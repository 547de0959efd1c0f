"""Time that stands still while anything works, so that no test depends on how fast this machine is."""

from __future__ import annotations

import asyncio
import selectors

import anyio.to_thread


class StillTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer once all tasks wait, and moves in no other way.

    Threads of anyio's are waited for. Nothing else from outside is: not for loops with sockets or other threads.
    """

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self.now


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: StillTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None):
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None or anyio.to_thread.current_default_thread_limiter().borrowed_tokens:
            return super().select(None)
        self._loop.now += timeout
        return []

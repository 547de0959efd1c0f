"""Threads that refiners run in: few, of their own, and for a limited time.

A third party's refiner may be slow, or hang. It is not to take the threads that the API server works with, nor, as
anyio's would, to keep the server from ending.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from pdd_core.errors import PolicyError, named

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
THREADS = 4
"""At work at once, and at most so many more that are overdue."""


class RefinerThreads:
    """Used from one event loop only."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(THREADS)
        self.overdue = 0
        """Calls that were given up and have not returned: Python cannot end a thread."""

    async def run(self, call: Callable[[], T]) -> T:
        """Return what `call` returns, from a thread, whenever that is; raises what it raises."""
        async with self._free:
            return await _begun(call, "the built-in refiner")

    async def run_within(self, timeout_s: float, call: Callable[[], T], *, who: str) -> T:
        """Return what `call` returns within `timeout_s` seconds, waiting for a thread included.

        Raises:
            PolicyError: it did not return in time, was not called since too many calls are overdue, or ended its
                thread; names `who`.
        """
        self._check(who)
        late = PolicyError(
            f"{who} gave no refined prompt within {timeout_s:g} s (additional_config.pdd.refine_timeout_s)"
        )
        due = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(due):
                await self._free.acquire()
        except TimeoutError:
            raise late from None
        try:
            self._check(who)
            outcome = _begun(call, who)
            await asyncio.wait([outcome], timeout=max(0.0, due - asyncio.get_running_loop().time()))
        finally:
            self._free.release()
        if outcome.done():
            return outcome.result()
        self.overdue += 1
        outcome.add_done_callback(self._came)
        raise late

    def _check(self, who: str) -> None:
        if self.overdue >= THREADS:
            raise PolicyError(f"{who} is not asked: {self.overdue} of its answers are overdue")

    def _came(self, outcome: asyncio.Future[T]) -> None:
        self.overdue -= 1
        outcome.exception()  # nobody waits for it: it counts as seen


def _begun(call: Callable[[], T], who: str) -> asyncio.Future[T]:
    """Start `call` in a thread of its own, which does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if outcome.cancelled():
            return
        if error is None:
            outcome.set_result(result)  # type: ignore[arg-type]
        elif isinstance(error, Exception):
            outcome.set_exception(error)
        else:  # SystemExit would end the server
            outcome.set_exception(PolicyError(f"{who} raised {named(error)}"))

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:  # noqa: BLE001 - a third party's; the waiting call raises it
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="pdd-refiner", daemon=True).start()
    return outcome

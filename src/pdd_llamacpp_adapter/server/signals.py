"""Signals as a stream, on each system."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_UNREAD = 8
"""Signals that may wait to be read; more say nothing new."""


@contextmanager
def received_signals(*numbers: signal.Signals) -> Iterator[AsyncIterator[int]]:
    """Have these signals come as numbers while the block runs; only in the main thread, if there are any."""
    opened = by_handlers(*numbers) if os.name == "nt" else anyio.open_signal_receiver(*numbers)
    with opened as received:
        yield received


@contextmanager
def by_handlers(*numbers: signal.Signals) -> Iterator[AsyncIterator[int]]:
    """Do so where event loops know no signals, as on Windows."""
    loop = asyncio.get_running_loop()
    sending, received = anyio.create_memory_object_stream[int](_UNREAD)

    def came(number: int) -> None:
        with suppress(anyio.WouldBlock, anyio.ClosedResourceError):
            sending.send_nowait(number)

    with sending, received:
        before = {
            one: signal.signal(one, lambda number, _: loop.call_soon_threadsafe(came, number)) for one in numbers
        }
        try:
            yield received
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

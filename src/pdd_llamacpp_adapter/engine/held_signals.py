"""Signals that arrive while llama.cpp works on the main thread and calls back into Python."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_HELD = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_signals() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block has ended; then they do what they do otherwise.

    Their handlers run in the next Python code of the main thread. Where that is a callback of a C function, ctypes
    prints what they raise and drops it, and the signal is lost. On other threads, which run no handlers, and for
    handlers that are not Python's, this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _HELD}
    ours = {number: handler for number, handler in before.items() if callable(handler)}
    for number in ours:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for arrived in came:
            signal.raise_signal(arrived)

"""The end of a process that has threads which nothing can stop."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

PATIENCE_S = 1.0
"""For threads that are about to end."""


def leave(patience: float = PATIENCE_S) -> None:
    """End the process with exit code 0 if a thread is still at work; else return.

    Python waits at its end for every thread. One that reads a long text with llama.cpp can take a minute, for a
    request that was refused long ago. To be called where nothing is left to do but that.

    Args:
        patience: seconds that the threads have.
    """
    deadline = time.monotonic() + patience
    others = [one for one in threading.enumerate() if not one.daemon and one is not threading.current_thread()]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        logging.shutdown()
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it was closed at the start
            stream.flush()
        # not sys.exit: it waits, and what C++ frees at a regular end is still in use
        os._exit(0)

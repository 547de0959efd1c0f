"""Ends a process group when the process that started it is gone: ``python -m pdd_cli.watchdog GROUP``.

Its standard input is a pipe whose other end the starter holds. The system closes that end however the starter
dies, also by SIGKILL, and from then on nobody else would end vLLM and its children.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

GRACE = 10.0
"""Seconds from asking the leader to end until everything left is killed."""


def end_group(group: int, *, grace: float = GRACE, reap: Callable[[], object] = lambda: None) -> None:
    """Ask the leader of process group `group` to end, then kill whatever of the group is left.

    `reap` waits for dead children without blocking: the leader's parent has to, since a dead leader stays in its
    group until then. Returns when no process of the group runs, or a second after the last were killed.
    """
    # only the leader: vLLM ends its workers in order, and workers that die first look like a crash to it
    with contextlib.suppress(ProcessLookupError):
        os.kill(group, signal.SIGTERM)
    if not _gone(group, grace, reap):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        _gone(group, 1.0, reap)


def _gone(group: int, seconds: float, reap: Callable[[], object]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        reap()
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def main() -> None:
    """Wait for the starter to go, then end its group."""
    group = int(sys.argv[1])
    if sys.stdin.buffer.read(1):  # one byte says that all is well: the starter has ended the group itself
        return
    end_group(group)


if __name__ == "__main__":
    main()

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
_ORPHANS = 2.0
"""Seconds that the leader's children get once it is gone: nobody tells them to end any more."""
_LAST = 1.0
"""Seconds that killed processes get to go."""
_POLL = 0.05


def end_group(group: int, *, grace: float = GRACE, reap: Callable[[], object] = lambda: None) -> None:
    """Ask the leader of process group `group` to end, then kill whatever of the group is left.

    `reap` waits for dead children without blocking: the leader's parent has to, since a dead leader stays in its
    group until then. Returns when no process of the group runs, or a second after the last were killed.
    """
    if not _exists(os.killpg, group):
        return  # all is over; the leader's number may belong to a stranger by now
    # only the leader: vLLM ends its workers in order, and workers that die first look like a crash to it
    with contextlib.suppress(ProcessLookupError):
        os.kill(group, signal.SIGTERM)
    leader, deadline = True, time.monotonic() + grace
    while _exists(os.killpg, group) and time.monotonic() < deadline:
        reap()
        if leader and not _exists(os.kill, group):
            leader, deadline = False, min(deadline, time.monotonic() + _ORPHANS)
        time.sleep(_POLL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + _LAST
    while _exists(os.killpg, group) and time.monotonic() < deadline:
        reap()
        time.sleep(_POLL)


def _exists(kill: Callable[[int, int], None], target: int) -> bool:
    try:
        kill(target, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    """Wait for the starter to go, then end its group."""
    group = int(sys.argv[1])
    if sys.stdin.buffer.read(1):  # one byte says that all is well: the starter has ended the group itself
        return
    end_group(group)


if __name__ == "__main__":
    main()

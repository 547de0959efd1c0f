"""How many threads: the physical cores, or the number asked for, unless fewer are faster on this machine now."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_CLEARLY = 0.9
"""Fewer threads are kept if they take less than this share of the time: the number asked for wins near-ties."""
_FEW = 4
"""Up to so many CPUs are taken for cores where nobody tells, as ``common_cpu_get_num_physical_cores`` does."""


def physical_cores(cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """Return the cores that this process may use; two CPUs of one core count once."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    try:
        siblings = {(cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in usable}
    except OSError:
        return len(usable) if len(usable) <= _FEW else len(usable) // 2
    return len(siblings)


def candidates(most: int) -> list[int]:
    """Return the numbers to try: `most`, and half of it again and again, down to 1."""
    found = [most]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


def wanted(setting: int | Literal["auto"], otherwise: int) -> int:
    """Return the number that a setting asks for."""
    return otherwise if setting == "auto" else setting


def fastest(most: int, seconds: Callable[[int], float]) -> int:
    """Return `most`, or the fewer threads that are clearly faster. Nothing is tried with one.

    Args:
        most: the number asked for.
        seconds: what the same work takes with a number of threads; infinity where it takes too long to be tried.
    """
    if most == 1:
        return 1
    best, best_s = most, seconds(most)
    for count in candidates(most)[1:]:
        taken = seconds(count)
        if taken >= _CLEARLY * best_s and best_s < math.inf:
            break
        if taken == math.inf:
            continue
        best, best_s = count, taken
    if best != most:
        logger.info("%d threads are faster than %d on this machine now", best, most)
    return best

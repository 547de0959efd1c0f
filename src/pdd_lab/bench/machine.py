"""What a measurement has to say of the machine it was made on."""

from __future__ import annotations

import datetime
import platform
import re
from pathlib import Path

from pdd_cli import host

_CPUINFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """Return the processor's name, as well as the system knows it."""
    try:
        found = re.search(r"^(?:model name|Hardware)\s*:\s*(.+)$", _CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or "unknown"


def conditions(*distributions: str) -> dict[str, object]:
    """Return processor, CPUs, versions and day, ready for JSON; of `distributions` those that are installed."""
    versions = {name: host.version_of(name) for name in ("pdd-device", *distributions)}
    return {
        "cpu": cpu_name(),
        "cpus": host.cpu_count(),
        "versions": {
            **{name: version for name, version in versions.items() if version},
            "python": platform.python_version(),
        },
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }

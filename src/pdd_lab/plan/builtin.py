"""Profiles and traces by name: those that come with the package, or files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError
from pdd_core.planner.profiles import MeasuredCloud, MeasuredDevice
from pdd_lab.traces import AS_ITS_FIELDS_SAY, SYNTHETIC, Trace, TraceOptions, load, synthesise

if TYPE_CHECKING:
    from collections.abc import Iterable

_FOLDER = Path(__file__).parents[1] / "data" / "profiles"
DEVICES = ("phone", "laptop")
"""Round figures, for a first look: no device was measured for them."""
CLOUDS = ("h200-8b",)
"""Fitted to measured throughput: docs/plan.md says how. Their round trips are assumed."""


def device_profile(name: str) -> MeasuredDevice:
    """Return a device's profile, built in or from a file.

    Raises:
        ConfigurationError: there is none of this name, or the file cannot be used.
    """
    return MeasuredDevice.load(_file(name, DEVICES, "device profile"))


def cloud_profile(name: str) -> MeasuredCloud:
    """Return a cloud's profile, built in or from a file.

    Raises:
        ConfigurationError: there is none of this name, or the file cannot be used.
    """
    return MeasuredCloud.load(_file(name, CLOUDS, "cloud profile"))


def trace(name: str, options: TraceOptions = AS_ITS_FIELDS_SAY, *, requests: int | None = None) -> Trace:
    """Return a trace, made up or from a file; the first `requests` of it.

    Raises:
        ConfigurationError: there is no such trace, or it has none of what `options` say.
        InvalidTrace: the file is malformed.
    """
    if name in SYNTHETIC and not Path(name).exists():
        if options.given:
            raise ConfigurationError(f"{', '.join(options.given)}: the trace {name} is made up, and no file")
        return synthesise(name, requests=requests) if requests else synthesise(name)
    file = _existing(name, SYNTHETIC, "trace")
    read = load(file, options)
    return read.first(requests) if requests else read


def _file(name: str, builtin: tuple[str, ...], what: str) -> Path:
    if name in builtin and not Path(name).exists():
        return _FOLDER / f"{name}.json"
    return _existing(name, builtin, what)


def _existing(name: str, builtin: Iterable[str], what: str) -> Path:
    file = Path(name)
    if not file.is_file():
        raise ConfigurationError(f"{what} {name!r} is no file, and none of {', '.join(builtin)}")
    return file

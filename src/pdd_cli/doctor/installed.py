"""What is installed here, and whether it is what this project was tested with."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pdd_cli import host
from pdd_cli.doctor.findings import fail, ok, warn
from pdd_cli.extras import CLONE, INSTALL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from packaging.specifiers import SpecifierSet

    from pdd_cli.doctor.findings import Finding

OURS, LAB = "pdd-device", "pdd-lab"


def installed() -> Iterator[Finding]:
    """Check Python and the distributions that the two sides need."""
    yield ok("Python", platform.python_version())
    yield ok(OURS, host.version_of(OURS) or "not installed as a distribution")
    yield from laboratory(host.version_of(LAB), host.version_of(OURS))
    name, version = host.vllm_distribution() or ("vllm", None)
    yield distribution(name, version, purpose="a cloud", install=INSTALL["cloud"])
    llama = host.version_of("llama-cpp-python")
    yield distribution("llama-cpp-python", llama, purpose="a device", install=INSTALL["device"])
    yield distribution("openai", host.version_of("openai"), purpose="a device", install=f"{CLONE}pip install .")


def laboratory(version: str | None, ours: str | None) -> Iterator[Finding]:
    """Check the laboratory, if it is installed: its version must be ours."""
    if version not in {None, ours}:
        yield fail(LAB, f"{version} belongs to {OURS} {version}", INSTALL["lab"])
    elif version is not None:
        yield ok(LAB, version)


def distribution(name: str, version: str | None, *, purpose: str, install: str) -> Finding:
    """Check the installed `version` of `name`; `install` is the command for `purpose` where there is none."""
    if version is None:
        return warn(name, f"not installed; only {purpose} needs it", install)
    tested = tested_range(name)
    if tested is None or tested.contains(version, prereleases=True):
        return ok(name, version)
    fix = f'pip install "{name}{tested}"'
    if _below(version, tested):
        return fail(name, f"{version} is older than what works ({tested})", fix)
    return warn(name, f"{version} is newer than what was tested ({tested})", fix)


def _below(version: str, tested: SpecifierSet) -> bool:
    lowest = [Version(clause.version) for clause in tested if clause.operator in {">=", ">", "=="}]
    return any(Version(version) < bound for bound in lowest)


def tested_range(name: str) -> SpecifierSet | None:
    """Return the versions of `name` that our own metadata asks for; None if it names none."""
    try:
        lines = metadata.requires(OURS) or []
    except metadata.PackageNotFoundError:
        return None
    for line in lines:
        parsed = Requirement(line)
        if canonicalize_name(parsed.name) == name and len(parsed.specifier):
            return parsed.specifier
    return None

"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much it matters."""

    OK = "ok"
    WARN = "warn"
    """Works as it is, for some purposes."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    level: Level
    detail: str
    fix: str = ""
    """What to do about it; empty when all is well."""


def ok(check: str, detail: str) -> Finding:
    """Return a finding that needs nothing done."""
    return Finding(check, Level.OK, detail)


def warn(check: str, detail: str, fix: str) -> Finding:
    """Return a finding that matters for some purposes."""
    return Finding(check, Level.WARN, detail, fix)


def fail(check: str, detail: str, fix: str) -> Finding:
    """Return a finding that has to be mended."""
    return Finding(check, Level.FAIL, detail, fix)

"""Versions of what one side writes and another reads: ``major.minor``.

A minor version adds fields, which readers ignore if they do not know them. Fields change their meaning only with
the major version, so that a reader refuses any other major version than its own.
"""

from __future__ import annotations

from pdd_core.errors import SchemaVersionError


def check_version(version: str, *, own: str) -> str:
    """Return `version` if a reader of version `own` can read it.

    Raises:
        SchemaVersionError: it has another major version, or is none; the message says which side to upgrade.
    """
    theirs, ours = version.partition(".")[0], own.partition(".")[0]
    if theirs == ours:
        return version
    if theirs.isdigit() and int(theirs) < int(ours):
        raise SchemaVersionError(
            f"schema_version {version!r} is older than {own}, the only one that this side reads: "
            "upgrade pdd-device on the other side, or pin this one to the same major version"
        )
    raise SchemaVersionError(
        f"schema_version {version!r} is newer than {own}, the newest this side reads: "
        "upgrade pdd-device here, or pin the other side to the same major version"
    )

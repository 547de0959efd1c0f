"""Which code the exhaustive tests last passed with, so that the default run can say when they are due again."""

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SESSION = ROOT / "src" / "pdd_llamacpp_adapter" / "session"
WATCHED = ("answer", "conductor", "cloud_leg", "device_part")
"""Modules of the session in which a change can lose a token."""
PASSED = ROOT / "tests" / "exhaustive.sha256"


def digest():
    """One line per watched module, as sha256sum writes it."""
    lines = []
    for name in WATCHED:
        path = SESSION / f"{name}.py"
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{found}  {path.relative_to(ROOT).as_posix()}\n")
    return "".join(lines)


def due():
    """The watched modules that have changed since the exhaustive tests last passed."""
    passed = PASSED.read_text().splitlines() if PASSED.exists() else ()
    return [line.split()[1] for line in digest().splitlines() if line not in passed]


def note_passed():
    PASSED.write_text(digest())

"""Writes docs/modules.md: each module with the first line of its docstring.

    python tools/module_table.py [--check]

With `--check` nothing is written: the exit code says whether the page is what the code says.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "modules.md"
PACKAGES = ("pdd_core", "pdd_vllm_plugin", "pdd_llamacpp_adapter", "pdd_cli", "pdd_lab")


def page() -> str:
    """Return the page as it should be."""
    lines = ["# Modules", "One line each, written by `python tools/module_table.py` from the modules' docstrings."]
    for package in PACKAGES:
        folder = ROOT / "src" / package
        lines += ["", f"## {package}", "| module | what it is |", "|---|---|"]
        for path in sorted(folder.rglob("*.py"), key=lambda path: (len(path.parts) > 2, path.parent, path.name)):
            lines.append(f"| `{path.relative_to(folder).as_posix()}` | {first_line(path)} |")
    return "\n".join(lines) + "\n"


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    found = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not found:
        sys.exit(f"{path} has no docstring")
    return found.splitlines()[0].replace("``", "`").replace("|", "\\|")


def main() -> None:
    """Write the page, or check it."""
    if "--check" in sys.argv[1:]:
        sys.exit(
            PAGE.read_text(encoding="utf-8") != page() and f"{PAGE.name} is not current: run {Path(__file__).name}"
        )
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

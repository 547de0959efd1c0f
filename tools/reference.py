"""Writes docs/modules.md and the pages in docs/reference from the code and its docstrings.

    python tools/reference.py [--check] [PAGE ...]

PAGE is one of modules, cli, settings, errors, fields, hooks, wire; without one, all are written. With `--check`
nothing is written: the exit code says whether the pages are what the code says. `modules` needs Python alone,
`cli` the distribution in src/pdd_lab, the others pdd-device without extras.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import reference_pages

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PACKAGES = ("pdd_core", "pdd_vllm_plugin", "pdd_llamacpp_adapter", "pdd_cli", "pdd_lab")
NOTE = "<!-- Written by tools/reference.py: to change a text, change its docstring. -->\n"


def modules() -> str:
    """Return the page of the modules: each with the first line of its docstring."""
    lines = [f"{NOTE}# Modules", "Each with the first line of its docstring."]
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


def page(name: str) -> tuple[Path, str]:
    """Return the path of a page, and its text as it should be."""
    if name == "modules":
        return DOCS / "modules.md", modules()
    title, *parts = getattr(reference_pages, name)()
    return DOCS / "reference" / f"{name}.md", "\n\n".join([f"{NOTE}# {title}", *parts]) + "\n"


def main() -> None:
    """Write the pages, or check them."""
    names = [name for name in sys.argv[1:] if name != "--check"]
    wrong = []
    for path, text in map(page, names or ["modules", *reference_pages.__all__]):
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            wrong.append(path.relative_to(ROOT).as_posix())
    if wrong:
        sys.exit(f"not current: {', '.join(wrong)}; run python tools/{Path(__file__).name}")


if __name__ == "__main__":
    main()

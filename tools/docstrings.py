"""What the reference pages take from the code: docstrings, those of attributes among them, as Markdown."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PAGE_LINK = re.compile(r"\bdocs/([\w/-]+\.md(?:#[\w-]+)?)")


def attributes(kind: type) -> dict[str, tuple[str, str]]:
    """Return each annotated attribute of a class: its type, as the source spells it, and its docstring."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    found = {}
    for one, after in pairwise([*getattr(tree, "body", ()), ast.Pass()]):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            found[one.target.id] = ast.unparse(one.annotation), _string(after)
    return found


def _string(node: ast.stmt) -> str:
    value = node.value if isinstance(node, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


def arguments(function: object) -> dict[str, str]:
    """Return the arguments of a docstring's section `Args`, each with its text."""
    part = inspect.cleandoc(function.__doc__ or "").partition("Args:\n")[2]
    return dict(re.findall(r"^    (\w+): (.+(?:\n {5,}.+)*)", part, re.MULTILINE))


def markdown(text: str) -> str:
    """Return a docstring's text in one line of Markdown: code in single backticks, pages as links."""
    line = " ".join(text.replace("``", "`").split())
    return PAGE_LINK.sub(lambda found: f"[{found[1].partition('#')[0]}](../{found[1]})", line)


def sentence(text: str) -> str:
    """Return a docstring's text as a sentence: with a capital letter at its beginning."""
    return markdown(text[:1].upper() + text[1:])


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table; a cell may have pipes."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(text: str) -> str:
    """Return it as code; nothing for nothing."""
    return f"`{text}`" if text else ""


def shown(value: object) -> str:
    """Return a default as its row shows it."""
    if value is None or (not isinstance(value, bool | int | float | str) and not value):
        return "none"
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value >= 10_000:
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)

"""Regular expressions that xgrammar and llguidance read the same, once digits are ASCII's."""

from __future__ import annotations

import re

_PLAIN_PATTERN = re.compile(
    r"(?:[A-Za-z0-9 _,:;@#%&=<>~'!/-]"  # signs for themselves
    r"|\\[.*+?()\[\]{}|^$-]|\\d"
    r"|\[(?:[A-Za-z0-9_.,:;@#%&=+*?! ](?:-[A-Za-z0-9])?|\\[-.d])+-?\]"
    r"|\((?:\?:|(?!\?))|\)|\||[*+?]|\{\d{1,3}(?:,\d{0,3})?\})*"
)
"""Of a pattern's parts, those that both engines read the same: no dot, no negated class, nothing beyond ASCII."""


def is_plain(pattern: str) -> bool:
    """Return whether both engines read `pattern` the same, as `ascii_digits` returns it."""
    return _PLAIN_PATTERN.fullmatch(pattern) is not None


def ascii_digits(pattern: str) -> str:
    """Return a plain `pattern` whose digits are ASCII's, as xgrammar's are; llguidance would take any script's."""
    in_class = False

    def spelt(found: re.Match[str]) -> str:
        nonlocal in_class
        if found[0] in ("[", "]"):
            in_class = found[0] == "["
        return {r"\d": "0-9" if in_class else "[0-9]"}.get(found[0], found[0])

    return re.sub(r"\\.|[\[\]]", spelt, pattern)

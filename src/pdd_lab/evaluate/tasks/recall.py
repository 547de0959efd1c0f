"""Numbers hidden in a text, at all depths: a pass key alone, or one of several codes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pdd_lab.evaluate.cases import ExamCase

if TYPE_CHECKING:
    from pdd_lab.evaluate.cases import CaseSource

OWNERS = ("harbour", "library", "museum", "station", "bakery", "garden", "theatre", "hospital")
PAIRS = 4
"""Codes in a text, of which one is asked for."""
DEPTHS = 5


def recall(source: CaseSource, number: int) -> ExamCase:
    """Return a pass key (even numbers) or a key-value case (odd ones)."""
    drawn = random.Random(f"recall {number}")  # noqa: S311 - not for secrets
    text = source.library.draw(drawn, source.length(number // 2), source.count)
    depth = (number // 2 % DEPTHS) / (DEPTHS - 1)
    place = round(depth * len(text))
    if number % 2 == 0:
        key = str(drawn.randint(100_000, 999_999))
        hidden = f"The pass key is the number {key}."
        text.insert(place, hidden)
        question, opening, expected = "What is the pass key in the text above?", "The pass key is the number", key
        return ExamCase("recall", "passkey", number, "\n\n".join(text), question, opening, expected, depth, hidden)
    owners = drawn.sample(OWNERS, PAIRS)
    codes = [str(drawn.randint(1_000, 9_999)) for _ in owners]
    places = [place, *(drawn.randint(0, len(text)) for _ in owners[1:])]
    lines = [f"The code of the {owner} is {code}." for owner, code in zip(owners, codes, strict=True)]
    for where, line in sorted(zip(places, lines, strict=True), reverse=True):
        text.insert(where, line)
    return ExamCase(
        "recall",
        "key-value",
        number,
        "\n\n".join(text),
        f"According to the text above, what is the code of the {owners[0]}?",
        f"The code of the {owners[0]} is",
        codes[0],
        depth,
        lines[0],
    )

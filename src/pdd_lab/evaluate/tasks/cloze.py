"""Questions over real text, made by rule: which sentence of the document ends with these words?

The answer's opening is the sentence's beginning, and what is asked for are the words that follow it. They come
once in the document, so they can only be read there, or guessed. The question quotes the sentence's end, which
favours a refiner that looks for the question's words.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from pdd_lab.evaluate.cases import ExamCase

if TYPE_CHECKING:
    from pdd_lab.evaluate.cases import CaseSource

BEGINNING = 4
"""Words of the sentence that are put into the model's mouth."""
ASKED = 2
"""Words that have to follow."""
ENDING = 5
"""Words of the sentence that the question quotes."""
LEAST_LETTERS = 4
"""Of one of the words asked for: `of the` can be guessed."""
_SENTENCE = re.compile(r"(?:^|(?<=[.!?] ))[A-Z][^.!?]*[.!?]")
_WORD = re.compile(r"[A-Za-z][a-z]*")


def cloze(source: CaseSource, number: int) -> ExamCase | None:
    """Return a question about a sentence of a document; None if no sentence will do."""
    drawn = random.Random(f"cloze {number}")  # noqa: S311 - not for secrets
    paragraphs = source.library.draw(drawn, source.length(number), source.count)
    document = "\n\n".join(paragraphs)
    fit = [split for paragraph in paragraphs for split in _splits(paragraph, document)]
    if not fit:
        return None
    beginning, asked, ending = drawn.choice(fit)
    return ExamCase(
        "answers",
        "cloze",
        number,
        document,
        f'Which sentence of the text above ends with "{ending}"?',
        f"The sentence is: {beginning}",
        asked,
        document.index(beginning) / len(document),
        f"{beginning} {asked}",
    )


def _splits(paragraph: str, document: str) -> list[tuple[str, str, str]]:
    splits = []
    for sentence in _SENTENCE.findall(paragraph):
        words = sentence.split()
        if len(words) < BEGINNING + ASKED + ENDING:
            continue
        beginning, asked = words[:BEGINNING], words[BEGINNING : BEGINNING + ASKED]
        plain = all(map(_WORD.fullmatch, asked)) and max(map(len, asked)) >= LEAST_LETTERS
        parts = tuple(" ".join(part) for part in (beginning, asked, words[-ENDING:]))
        if plain and all(document.count(part) == 1 for part in parts):
            splits.append((parts[0], parts[1], parts[2][:-1]))
    return splits

"""The tasks of an evaluation. Case `number` of a task is always the same, for the same text and tokenizer."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from pdd_lab.evaluate.cases import ExamCase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pdd_lab.evaluate.cases import CaseSource

QUESTIONS = (
    "Summarize the text above.",
    "What does the text above explain?",
    "List the main points of the text above.",
    "What should a reader of the text above remember?",
    "Explain the first and the last paragraph of the text above to a beginner.",
)
OWNERS = ("harbour", "library", "museum", "station", "bakery", "garden", "theatre", "hospital")
PAIRS = 4
"""Codes in a text; one is asked for."""
DEPTHS = 5
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


def agreement(source: CaseSource, number: int) -> ExamCase:
    """Return an open question: how close are the refined prompt's next tokens to the full prompt's own answer?"""
    drawn = random.Random(f"agreement {number}")  # noqa: S311 - not for secrets
    text = source.library.draw(drawn, source.length(number), source.count)
    return ExamCase("agreement", "open", number, "\n\n".join(text), QUESTIONS[number % len(QUESTIONS)])


def recall(source: CaseSource, number: int) -> ExamCase:
    """Return a number hidden at some depth: a pass key (even numbers), or one of several codes (odd ones)."""
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


def cloze(source: CaseSource, number: int) -> ExamCase | None:
    """Return a question about real text, made by rule: which sentence of the document ends with these words?

    The answer's opening is the sentence's beginning, and what is asked for are the words that follow it. They come
    once in the document, so they can only be read there, or guessed. The question quotes the sentence's end, which
    favours a refiner that looks for the question's words. None if no sentence will do.
    """
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


MAKERS: Mapping[str, Callable[[CaseSource, int], ExamCase | None]] = {
    "agreement": agreement,
    "recall": recall,
    "answers": cloze,
}
"""Task -> makes its case of a number, or None where the text has no question to ask."""

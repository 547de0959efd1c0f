"""Open questions: how close the refined prompt's next tokens are to the full prompt's own answer."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pdd_lab.evaluate.cases import ExamCase

if TYPE_CHECKING:
    from pdd_lab.evaluate.cases import CaseSource

QUESTIONS = (
    "Summarize the text above.",
    "What does the text above explain?",
    "List the main points of the text above.",
    "What should a reader of the text above remember?",
    "Explain the first and the last paragraph of the text above to a beginner.",
)


def agreement(source: CaseSource, number: int) -> ExamCase:
    """Return an open question about a document."""
    drawn = random.Random(f"agreement {number}")  # noqa: S311 - not for secrets
    text = source.library.draw(drawn, source.length(number), source.count)
    return ExamCase("agreement", "open", number, "\n\n".join(text), QUESTIONS[number % len(QUESTIONS)])

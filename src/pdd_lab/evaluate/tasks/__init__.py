"""The tasks of an evaluation. Case `number` of a task is always the same, for the same text and tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_lab.evaluate.tasks.agreement import agreement
from pdd_lab.evaluate.tasks.cloze import cloze
from pdd_lab.evaluate.tasks.recall import recall

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pdd_lab.evaluate.cases import CaseSource, ExamCase

MAKERS: Mapping[str, Callable[[CaseSource, int], ExamCase | None]] = {
    "agreement": agreement,
    "recall": recall,
    "answers": cloze,
}
"""Task -> makes its case of a number, or None where the text has no question to ask."""

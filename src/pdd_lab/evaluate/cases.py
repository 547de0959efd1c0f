"""One question about one document, with what is known of its answer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_lab.evaluate.documents import Library


@dataclass(frozen=True, slots=True)
class ExamCase:
    """A document, a question, and how the answer has to begin."""

    task: str
    kind: str
    """passkey, key-value, cloze or open."""
    number: int
    document: str
    question: str
    opening: str = ""
    """The words that the answer begins with, put into the model's mouth."""
    expected: str = ""
    """What has to follow; empty where any answer will do."""
    depth: float | None = None
    """Where in the document the answer is, 0 to 1."""
    evidence: str = ""
    """The words of the document that hold the answer, once in it; empty where there is no such place."""

    @property
    def key(self) -> str:
        """Names the case in the cache: another text, another key."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:24]

    def as_json(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CaseSource:
    """What cases are made of."""

    library: Library
    count: Callable[[str], int]
    """The tokens of a text, by the model that is evaluated."""
    length: Callable[[int], int]
    """The tokens that the document of a case has."""

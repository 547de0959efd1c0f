"""Real text for the cases: the user's files, or the language reference that Python ships (``pydoc_data``)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

SHORTEST, LONGEST = 80, 600
"""Characters of a paragraph."""
LEAST_PARAGRAPHS = 20
OVERSHOOT = 256
"""Tokens by which a document may exceed what was asked for: less than a case's room for everything else."""
_SENTENCE_END = re.compile(r"[.!?;] |[。！？；]")  # noqa: RUF001 - the full-width ones end sentences too
_PROSE = 0.75
"""Least share of letters and blanks: below it, it is a table, a grammar or code."""


@dataclass(frozen=True, slots=True)
class Library:
    """Documents, each a list of paragraphs in their order."""

    documents: tuple[tuple[str, ...], ...]

    def draw(self, drawn: random.Random, length: int, count: Callable[[str], int]) -> list[str]:
        """Return paragraphs that follow each other, of one document where it lasts: about `length` tokens.

        Args:
            drawn: where to begin.
            length: tokens to reach; the last paragraph is left out if it goes far beyond, and cut if it is alone.
            count: the tokens of a paragraph.
        """
        weights = [len(document) for document in self.documents]
        start = drawn.choices(range(len(self.documents)), weights)[0]
        first = drawn.randrange(len(self.documents[start]))
        following = [*self.documents[start:], *self.documents[: start + 1]]
        paragraphs = [*following[0][first:], *(text for document in following[1:] for text in document)]
        chosen: list[str] = []
        total = 0
        for paragraph in paragraphs:
            size = count(paragraph)
            if total and total + size / 2 > length:
                break
            if total + size > length + OVERSHOOT:
                return chosen or [_beginning(paragraph, length, count)]
            chosen.append(paragraph)
            total += size
        return chosen


def _beginning(text: str, length: int, count: Callable[[str], int]) -> str:
    while (size := count(text)) > length and len(text) > 1:
        text = text[: min(len(text) - 1, max(1, len(text) * length // size))]
    return text


def read_library(files: Sequence[Path]) -> Library:
    """Read the documents of an evaluation.

    Raises:
        ConfigurationError: a file cannot be read as UTF-8 text, or all have too little prose.
    """
    texts = [_read(file) for file in files] if files else list(_reference())
    documents = tuple(filter(None, (tuple(paragraphs(text)) for text in texts)))
    found = sum(map(len, documents))
    if found < LEAST_PARAGRAPHS:
        raise ConfigurationError(
            f"--text has {found} paragraphs of prose with {SHORTEST} characters or more; {LEAST_PARAGRAPHS} are "
            "needed: give longer texts, with blank lines between paragraphs"
        )
    return Library(documents)


def paragraphs(text: str) -> Iterable[str]:
    """Yield the paragraphs of prose in `text`, each on one line; long ones are cut after a sentence."""
    for block in re.split(r"\n\s*\n", text):
        rest = " ".join(block.split())
        while len(rest) > LONGEST:
            ends = [match.end() for match in _SENTENCE_END.finditer(rest[:LONGEST])]
            cut = ends[-1] if ends else LONGEST
            piece, rest = rest[:cut].strip(), rest[cut:].strip()
            if _is_prose(piece):
                yield piece
        if _is_prose(rest):
            yield rest


def _is_prose(text: str) -> bool:
    plain = sum(char.isalpha() or char == " " for char in text)
    return len(text) >= SHORTEST and plain >= _PROSE * len(text) and "::=" not in text


def _reference() -> Iterable[str]:
    from pydoc_data.topics import topics

    return (topics[name] for name in sorted(topics))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read as UTF-8 text: {error}") from error

"""Keep the lines that share words with the question: BM25, which needs no scores of a model."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.hookspecs import hookimpl
from pdd_core.refinement.protect import question_span
from pdd_core.refinement.refiners.base import choose
from pdd_core.refinement.spans import lines

if TYPE_CHECKING:
    from pdd_core.refinement.prompt import RefinePrompt
    from pdd_core.refinement.scores import PromptScores
    from pdd_core.refinement.spans import Span

WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]|\w+")
"""A word; of Japanese, Chinese and Korean, which may have no blanks, a character."""


@dataclass(frozen=True, slots=True)
class LexicalRefiner:
    """Keeps the lines, or sentences of long ones, that answer the question best by BM25.

    The question is the last paragraph of the last user turn. Lines that share no word with it, and all if there is
    no question, go by their distance to the middle: beginning and end first. Formula and constants: Robertson and
    Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009; the idf is Lucene's, never negative.
    """

    k1: float = 1.2
    """How much a word counts that comes up again in a line."""
    b: float = 0.75
    """How much long lines pay for their length, 0 to 1."""
    tail: int = 128
    """Tokens of the question that count, from its end."""

    @hookimpl(trylast=True)
    def pdd_refine(
        self,
        scores: PromptScores | None,  # noqa: ARG002
        prompt: RefinePrompt,
        ratio: float,
    ) -> list[int]:
        """Return the tokens to keep."""
        edges = np.abs(np.arange(len(prompt)) - (len(prompt) - 1) / 2)
        return choose(self.weights(prompt), prompt, ratio, unit="line", ties=edges)

    def weights(self, prompt: RefinePrompt) -> np.ndarray:
        """Return how well each token's line answers the question, 0 at least: shape (prompt tokens,)."""
        start, end = question_span(prompt.token_ids, prompt.pieces, prompt.special_ids, tail=self.tail)
        passages = lines(prompt.pieces)
        weights = np.zeros(len(passages))
        if start < end:
            asked = set(WORD.findall("".join(prompt.pieces[start:end]).lower()))
            documents = [number for number, span in enumerate(passages) if span[1] <= start or span[0] >= end]
            weights[documents] = self._bm25(asked, [passages[number] for number in documents], prompt.pieces)
        by_token: np.ndarray = np.repeat(weights, [end - start for start, end in passages])
        return by_token

    def _bm25(self, asked: set[str], passages: list[Span], pieces: tuple[str, ...]) -> np.ndarray:
        """Return the score of each passage."""
        column = {word: number for number, word in enumerate(sorted(asked))}
        counts = np.zeros((len(passages), len(column)))
        sizes = np.zeros(len(passages))
        for row, (start, end) in enumerate(passages):
            found = WORD.findall("".join(pieces[start:end]).lower())
            sizes[row] = len(found)
            for word, count in Counter(word for word in found if word in column).items():
                counts[row, column[word]] = count
        if not len(passages):
            return sizes
        having = (counts > 0).sum(axis=0)
        idf = np.log1p((len(passages) - having + 0.5) / (having + 0.5))
        norm = self.k1 * (1 - self.b + self.b * sizes / max(1.0, sizes.mean()))
        score: np.ndarray = (counts * (self.k1 + 1) / (counts + np.maximum(norm, 1e-9)[:, None])) @ idf
        return score

"""What refined prompts make of one case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_core.refinement.protect import question_window
from pdd_core.refinement.scores import PromptScores, prompt_scores
from pdd_lab.evaluate.case_prompts import build_prompt, evidence_span, opening_ids
from pdd_lab.evaluate.results import kept_key
from pdd_lab.evaluate.statistics import divergence

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from pdd_core.refinement.capture import Heads
    from pdd_core.refinement.prompt import RefinePrompt
    from pdd_lab.evaluate.cases import ExamCase
    from pdd_lab.evaluate.eval_model import EvalModel
    from pdd_lab.evaluate.results import ResultStore

GIVEN = 8
"""The cloud's tokens that the device is given before it goes on alone, and the guard judges by."""
POSITIONS = 64
"""Tokens of an open answer that are compared after these."""
LEAST_POSITIONS = 16
"""An open answer that ends before so many is not compared."""
SPARE = 4
"""Tokens of an exact answer beyond what is expected: a blank, a quote."""

Record = dict[str, Any]
Outcome = dict[str, Any]


class Examiner:
    """Measures cases on one model, and remembers."""

    def __init__(
        self, reader: EvalModel, store: ResultStore, *, window: int, layers: Collection[int], heads: Heads
    ) -> None:
        self._reader = reader
        self._store = store
        self._window = window
        self._layers = sorted(layers)
        self._heads = heads
        self._full: tuple[str, np.ndarray] | None = None

    def prompt(self, case: ExamCase) -> RefinePrompt:
        """Return the full prompt of a case."""
        return build_prompt(case, self._reader.vocab)

    def full(self, case: ExamCase) -> tuple[Record, RefinePrompt]:
        """Return what the model answers to the full prompt, and whether that is right."""
        prompt = self.prompt(case)
        record = self._store.record(case)
        if record is None:
            record = self._answer(case, prompt)
            self._store.keep(case, record)
        return record, prompt

    def _answer(self, case: ExamCase, prompt: RefinePrompt) -> Record:
        self._capture(case, prompt)
        tokens = GIVEN + POSITIONS
        if case.expected:
            tokens = max(GIVEN, len(self._reader.vocab.tokenize(f" {case.expected}")) + SPARE)
        opening = opening_ids(case, self._reader.vocab)
        answer, cloud = self._reader.answer(tokens, opening=opening, after=self._window_of(prompt))
        compared = self._compared(case, answer)
        return {
            "case": case.as_json(),
            "prompt_tokens": len(prompt),
            "protected": prompt.num_protected,
            "opening": opening,
            "answer": answer,
            "text": self._text(answer),
            "cloud": [round(value, 5) for value in cloud],
            "compared": compared,
            "right": compared is not None,
            "outcomes": {},
        }

    def _compared(self, case: ExamCase, answer: Sequence[int]) -> list[int] | None:
        """Return the span of the answer's tokens that count; None if the answer is wrong, or too short."""
        if not case.expected:
            return [GIVEN, len(answer)] if len(answer) >= GIVEN + LEAST_POSITIONS else None
        for end in range(1, len(answer) + 1):
            text = self._text(answer[:end]).strip()
            if text.startswith(case.expected):
                return [0, end]
            if not case.expected.startswith(text):
                break
        return None

    def _text(self, ids: Iterable[int]) -> str:
        return b"".join(self._reader.vocab.piece(token) for token in ids).decode("utf-8", "replace")

    def scores(self, case: ExamCase, prompt: RefinePrompt) -> PromptScores:
        """Return the attention scores of a case's prompt."""
        held = self._store.values(case, self._scores_name(prompt), (len(self._layers), len(prompt)))
        if held is None:
            return self._capture(case, prompt)
        return PromptScores(held, tuple(self._layers), self._window_of(prompt), self._heads)

    def _scores_name(self, prompt: RefinePrompt) -> str:
        return f"{self._window_of(prompt)}-{self._heads}-" + "-".join(map(str, self._layers))

    def _window_of(self, prompt: RefinePrompt) -> int:
        """Return how many of a prompt's last tokens are looked at, as the cloud does it."""
        return question_window(prompt.token_ids, prompt.pieces, prompt.special_ids, most=self._window)

    def _capture(self, case: ExamCase, prompt: RefinePrompt) -> PromptScores:
        attention = self._reader.read(prompt.token_ids, window=self._window_of(prompt), layers=self._layers)
        scores = prompt_scores(attention, heads=self._heads)
        self._store.keep_values(case, self._scores_name(prompt), scores.values)
        return scores

    def outcomes(
        self, case: ExamCase, record: Record, prompt: RefinePrompt, kept: Iterable[Sequence[int]]
    ) -> list[str]:
        """Measure refined prompts, which `record` has then among its outcomes; returns their keys in order."""
        lists = [list(indices) for indices in kept]
        keys = [kept_key(indices) for indices in lists]
        by_key = dict(zip(keys, lists, strict=True))
        known: dict[str, Outcome] = record["outcomes"]
        missing = [key for key in by_key if key not in known]
        try:
            # sorted, each shares as many first tokens with the one before it as any order could give it
            for key in sorted(missing, key=by_key.__getitem__):
                known[key] = self._outcome(case, record, prompt, by_key[key])
        finally:
            if missing:
                self._store.keep(case, record)
        return keys

    def _outcome(self, case: ExamCase, record: Record, prompt: RefinePrompt, kept: Sequence[int]) -> Outcome:
        rows = self._forced(record, [prompt.token_ids[index] for index in kept])
        if len(kept) == len(prompt):
            self._full = (case.key, rows)
        return self.judged(case, record, prompt, kept, rows)

    def judged(
        self, case: ExamCase, record: Record, prompt: RefinePrompt, kept: Sequence[int], rows: np.ndarray
    ) -> Outcome:
        """Return what is made of a case where the answer's log-probabilities are `rows`, (answer, n_vocab)."""
        answer, (start, end) = record["answer"], record["compared"]
        chosen = rows.argmax(axis=-1)
        outcome: Outcome = {
            "kept": len(kept),
            "device": [round(float(rows[index, token]), 5) for index, token in enumerate(answer)],
            "same": "".join("01"[int(same)] for same in chosen == np.asarray(answer)),
        }
        if (place := evidence_span(case, prompt)) is not None:
            outcome["evidence"] = set(range(*place)) <= set(kept)
        if case.expected:
            return outcome | {"score": float(np.array_equal(chosen[start:end], answer[start:end]))}
        full = self._full_rows(case, record, prompt)
        agreed = chosen[start:end] == full[start:end].argmax(axis=-1)
        away = divergence(full[start:end], rows[start:end])
        return outcome | {"score": float(agreed.mean()), "kl": float(away.mean())}

    def _full_rows(self, case: ExamCase, record: Record, prompt: RefinePrompt) -> np.ndarray:
        """Return the full prompt's log-probabilities, read as the refined ones are: kernels differ by batch."""
        if self._full is None or self._full[0] != case.key:
            self._full = (case.key, self._forced(record, prompt.token_ids))
        return self._full[1]

    def _forced(self, record: Record, ids: Sequence[int]) -> np.ndarray:
        return self._reader.forced([*ids, *record["opening"]], record["answer"])

"""Measures one case with every refiner at every ratio. What a process of an evaluation does, again and again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Protocol

from pdd_core.errors import ConfigurationError, ContextOverflow
from pdd_core.refinement.refiners import AttentionRefiner, refiner
from pdd_core.refinement.refiners.attention import LEAST_FOCUS
from pdd_lab.evaluate.case_prompts import evidence_span
from pdd_lab.evaluate.cases import CaseSource, ExamCase
from pdd_lab.evaluate.documents import read_library
from pdd_lab.evaluate.evaluation_settings import BAD, INFORMED, NONE
from pdd_lab.evaluate.tasks import MAKERS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

    from pdd_core.refinement.prompt import RefinePrompt
    from pdd_core.refinement.scores import PromptScores
    from pdd_core.refinement.spans import Span
    from pdd_lab.evaluate.documents import Library
    from pdd_lab.evaluate.eval_model import EvalModel
    from pdd_lab.evaluate.evaluation_settings import EvalSettings, Setting
    from pdd_lab.evaluate.measure import Examiner, Outcome, Record
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary


class Tokenizes(Protocol):
    """A model, as far as texts are counted."""

    @property
    def vocab(self) -> Vocabulary:
        """Its tokens."""


@dataclass(frozen=True, slots=True)
class MeasuredCase:
    """One case, and what refined prompts made of it."""

    record: Record
    outcomes: dict[Setting, Outcome]
    """Empty where the model does not get the case right with the full prompt: nothing was refined."""
    spread: bool = False
    """The cloud would not refine this prompt: its lines matter alike."""


def check_cases(settings: EvalSettings, library: Library, count: Callable[[str], int]) -> None:
    """Check that the text has cases of every task. Nothing is measured.

    Raises:
        ConfigurationError: it has none; names the task.
    """
    source = CaseSource(library, count, settings.length)
    for task in settings.tasks:
        if all(MAKERS[task](source, number) is None for number in settings.numbers):
            raise ConfigurationError(
                f"--task {task} makes no case of --text: it asks for words of sentences that begin with a capital "
                "letter and end with a full stop. Choose other tasks, or give another text"
            )


def counter(model: Tokenizes) -> Callable[[str], int]:
    """Return what counts the tokens of a text, each text once."""
    return cache(lambda text: len(model.vocab.tokenize(text)))


class CaseMeasurer:
    """What measures the cases of one evaluation, whatever is looked at in each."""

    _source: CaseSource

    def measure(self, task: str, number: int) -> MeasuredCase | None:
        """Return what is known of a case, and measure what is not; None if there is no such case, or no room."""
        case = MAKERS[task](self._source, number)
        if case is None:
            return None
        try:
            return self._measure(case)
        except ContextOverflow:
            return None

    def _measure(self, case: ExamCase) -> MeasuredCase:
        raise NotImplementedError


class Examination(CaseMeasurer):
    """One model, and the cases of one evaluation. Has to be closed."""

    def __init__(self, settings: EvalSettings, source: CaseSource, examiner: Examiner, reader: EvalModel) -> None:
        self._settings = settings
        self._source = source
        self._examiner = examiner
        self._reader = reader

    @classmethod
    def open(cls, settings: EvalSettings, gguf: Path, store: Path, layers: tuple[int, ...]) -> Self:
        """Load the model, with its share of the threads; raises what `EvalModel` and `read_library` raise."""
        from pdd_lab.evaluate.eval_model import EvalModel
        from pdd_lab.evaluate.measure import Examiner
        from pdd_lab.evaluate.results import ResultStore

        library = read_library(settings.texts)
        reader = EvalModel(gguf, n_ctx=settings.n_ctx, threads=settings.threads_per_job)
        examiner = Examiner(
            reader, ResultStore(store), window=settings.window, layers=layers, heads=settings.heads
        )
        return cls(settings, CaseSource(library, counter(reader), settings.length), examiner, reader)

    def close(self) -> None:
        """Free the model."""
        self._reader.close()

    def _measure(self, case: ExamCase) -> MeasuredCase:
        record, prompt = self._examiner.full(case)
        if not record["right"]:
            return MeasuredCase(record, {})
        scores = self._examiner.scores(case, prompt)
        kept = self._kept(scores, prompt, evidence_span(case, prompt))
        keys = self._examiner.outcomes(case, record, prompt, kept.values())
        outcomes = {s: record["outcomes"][key] for s, key in zip(kept, keys, strict=True)}
        return MeasuredCase(record, outcomes, AttentionRefiner().focus(scores, prompt) < LEAST_FOCUS)

    def _kept(self, scores: PromptScores, prompt: RefinePrompt, evidence: Span | None) -> dict[Setting, list[int]]:
        wanted = [(name, ratio) for ratio in self._settings.ratios for name in self._settings.refiners]
        wanted += [] if BAD in wanted else [BAD]
        kept = {
            (name, ratio): list(refiner(name).pdd_refine(scores, prompt, ratio) or ()) for name, ratio in wanted
        }
        if evidence is not None:
            told = replace(prompt, protected=(*prompt.protected, evidence))
            kept |= {
                (INFORMED, ratio): list(refiner("attention").pdd_refine(scores, told, ratio) or ())
                for ratio in self._settings.ratios
                if ratio < 1
            }
        return kept | {(NONE, 0.0): prompt.protected_indices()}

"""Measures one case with every way of handing over the KV cache, and with refined prompts beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_core.refinement.refiners import refiner
from pdd_lab.evaluate.cases import CaseSource
from pdd_lab.evaluate.documents import read_library
from pdd_lab.evaluate.examination import CaseMeasurer, MeasuredCase, counter

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from pdd_lab.evaluate.cases import ExamCase
    from pdd_lab.evaluate.evaluation_settings import Setting
    from pdd_lab.evaluate.kv_examiner import KVExaminer
    from pdd_lab.evaluate.kv_model import KVModel
    from pdd_lab.evaluate.kv_settings import KVEvalSettings
    from pdd_lab.evaluate.measure import Outcome

FULL: Setting = ("full", 1.0)
"""The device reads the whole prompt, with the cloud's weights."""


class KVExamination(CaseMeasurer):
    """The models, and the cases of one evaluation. Has to be closed."""

    def __init__(
        self, settings: KVEvalSettings, source: CaseSource, examiner: KVExaminer, models: tuple[KVModel, ...]
    ) -> None:
        self._settings = settings
        self._source = source
        self._examiner = examiner
        self._models = models

    @classmethod
    def open(
        cls, settings: KVEvalSettings, gguf: Path, store: Path, layers: tuple[int, ...], device: Path | None
    ) -> Self:
        """Load the models, with their share of the threads; raises what `KVModel` and `read_library` raise."""
        from pdd_lab.evaluate.kv_examiner import KVExaminer
        from pdd_lab.evaluate.kv_model import KVModel
        from pdd_lab.evaluate.results import ResultStore

        library = read_library(settings.texts)
        files = [gguf] if device is None else [gguf, device]
        models = tuple(KVModel(file, n_ctx=settings.n_ctx, threads=settings.threads_per_job) for file in files)
        examiner = KVExaminer(
            models[0],
            ResultStore(store),
            window=settings.window,
            layers=layers,
            heads=settings.heads,
            device=None if settings.device is None else (settings.device, models[-1]),
        )
        return cls(settings, CaseSource(library, counter(models[0]), settings.length), examiner, models)

    def close(self) -> None:
        """Free the models."""
        for model in self._models:
            model.close()

    def _measure(self, case: ExamCase) -> MeasuredCase:
        record, prompt = self._examiner.full(case)
        if not record["right"]:
            return MeasuredCase(record, {})
        # in this order, each finds in memory what it begins with
        (key,) = self._examiner.outcomes(case, record, prompt, [range(len(prompt))])
        outcomes: dict[Setting, Outcome] = {FULL: record["outcomes"][key]}
        handed = self._examiner.handed_over(case, record, prompt, self._settings.ways)
        outcomes |= {(name, 1.0): outcome for name, outcome in handed.items()}
        scores = self._examiner.scores(case, prompt)
        kept = {
            (name, ratio): list(refiner(name).pdd_refine(scores, prompt, ratio) or ())
            for name in self._settings.refiners
            for ratio in self._settings.ratios
        }
        keys = self._examiner.outcomes(case, record, prompt, kept.values())
        outcomes |= {setting: record["outcomes"][key] for setting, key in zip(kept, keys, strict=True)}
        return MeasuredCase(record, outcomes)

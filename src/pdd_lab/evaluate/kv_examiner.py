"""What handing over a prompt's cells makes of one case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_core.kv.geometry import KV_VERSION
from pdd_core.refinement.scores import prompt_scores
from pdd_lab.evaluate.kv_ways import ORACLE, SELECTED, SHARE, best_cells, sent
from pdd_lab.evaluate.measure import Examiner

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np

    from pdd_core.refinement.capture import Heads
    from pdd_core.refinement.prompt import RefinePrompt
    from pdd_lab.evaluate.cases import ExamCase
    from pdd_lab.evaluate.kv_model import Cells, KVModel
    from pdd_lab.evaluate.measure import Outcome, Record
    from pdd_lab.evaluate.results import ResultStore

OWN = "own"
"""Not a way: a quantised device reads the whole prompt itself."""


class KVExaminer(Examiner):
    """An `Examiner` that measures handed-over cells too.

    Args:
        reader: stands for the cloud, and for a device with the same weights.
        store: where results are kept.
        window: see `Examiner`, as are the next two.
        layers: numbers of layers.
        heads: how heads are combined.
        device: a device with other weights, by the type of these.
    """

    def __init__(
        self,
        reader: KVModel,
        store: ResultStore,
        *,
        window: int,
        layers: Collection[int],
        heads: Heads,
        device: tuple[str, KVModel] | None = None,
    ) -> None:
        super().__init__(reader, store, window=window, layers=layers, heads=heads)
        self._cloud = reader
        self._device = device

    def handed_over(
        self, case: ExamCase, record: Record, prompt: RefinePrompt, ways: Sequence[str]
    ) -> dict[str, Outcome]:
        """Measure `ways`, which `record` has then among its outcomes; returns them by way.

        Those of a device with other weights are named `TYPE way`, and `TYPE own` is its own prefill.
        """
        keys = {way: f"kv{KV_VERSION}-{way}" for way in ways}
        if self._device is not None:
            kind = self._device[0]
            keys |= {f"{kind} {way}": f"{kind}-{key}" for way, key in keys.items()}
            keys[f"{kind} {OWN}"] = f"{kind}-{OWN}"
        known: dict[str, Outcome] = record["outcomes"]
        missing = {name: key for name, key in keys.items() if key not in known}
        try:
            if missing:
                self._measure(case, record, prompt, ways, missing)
        finally:
            if missing:
                self._store.keep(case, record)
        return {name: known[key] for name, key in keys.items()}

    def _measure(
        self, case: ExamCase, record: Record, prompt: RefinePrompt, ways: Sequence[str], missing: dict[str, str]
    ) -> None:
        known: dict[str, Outcome] = record["outcomes"]
        ids, everything = list(prompt.token_ids), list(range(len(prompt)))
        kind, device = self._device or ("", None)
        on: dict[str, dict[str, KVModel | None]] = {
            way: {
                name: model for name, model in ((way, self._cloud), (f"{kind} {way}", device)) if name in missing
            }
            for way in ways
        }
        kept = {way: self._kept(case, record, prompt, way) or everything for way in ways if on[way]}
        # this leaves the prompt in memory, so that its cells are there
        self._full_rows(case, record, prompt)
        cells = self._cloud.cells(ids[:-1]) if kept else None
        for way in kept:
            assert cells is not None  # noqa: S101 - some way is missing
            received = sent(*cells, way)
            for name, model in on[way].items():
                assert model is not None  # noqa: S101 - only a device's names are missing
                rows = self._behind(model, received, record, ids, kept[way])
                known[missing[name]] = self.judged(case, record, prompt, kept[way], rows)
        if device is not None and (own := missing.get(f"{kind} {OWN}")):
            rows = device.forced([*ids, *record["opening"]], record["answer"])
            known[own] = self.judged(case, record, prompt, everything, rows)

    def _behind(
        self, model: KVModel, cells: Cells, record: Record, ids: list[int], kept: Sequence[int]
    ) -> np.ndarray:
        dropped = sorted(set(range(len(ids) - 1)).difference(kept))
        return model.behind(cells, [*ids, *record["opening"]], record["answer"], dropped=dropped)

    def _kept(self, case: ExamCase, record: Record, prompt: RefinePrompt, way: str) -> list[int] | None:
        """Return which cells a selection sends; None of a way that sends all."""
        if way == SELECTED:
            return best_cells(self.scores(case, prompt).over_layers(), prompt, SHARE)
        if way == ORACLE:
            answer = record["answer"]
            text = [*prompt.token_ids, *record["opening"], *answer]
            attention = self._cloud.read(text, window=len(answer), layers=None)
            weights = prompt_scores(attention, heads="mean").over_layers()
            return best_cells(weights[: len(prompt)], prompt, SHARE)
        return None

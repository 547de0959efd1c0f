"""Results of cases, kept in the cache: a run that was stopped goes on where it was.

::

    PDD_CACHE_DIR/eval/<hash of the GGUF>-r<recipe>-<llama.cpp>/<case>.json            answer and outcomes
                                                                <case>-<scores>.npz    what attention said of it
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_cli.cache import published
from pdd_cli.host import version_of
from pdd_core.env import Env

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pdd_lab.evaluate.cases import ExamCase

RECIPE = 1
"""Rises whenever the same case would be measured otherwise."""


class ResultStore:
    """What is known of each case of one model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_model(cls, gguf: Path) -> ResultStore:
        """Return the store of a model file, as the llama.cpp that is installed reads it."""
        with gguf.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(Env().cache_dir / "eval" / f"{digest[:16]}-r{RECIPE}-{version_of('llama-cpp-python')}")

    def record(self, case: ExamCase) -> dict[str, Any] | None:
        """Return what is known of a case; None if nothing."""
        try:
            found: dict[str, Any] = json.loads(self._file(case).read_text())
        except FileNotFoundError:
            return None
        return found

    def keep(self, case: ExamCase, record: Mapping[str, Any]) -> None:
        """Remember what is known of a case."""
        with published(self._file(case)) as draft:
            draft.write_text(json.dumps(record))

    def arrays(self, case: ExamCase, name: str) -> dict[str, np.ndarray] | None:
        """Return arrays that were kept as `name`; None if there are none."""
        try:
            with np.load(self._arrays_file(case, name)) as held:
                return {key: held[key] for key in held.files}
        except FileNotFoundError:
            return None

    def keep_arrays(self, case: ExamCase, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Remember arrays as `name`."""
        with published(self._arrays_file(case, name)) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]

    def _file(self, case: ExamCase) -> Path:
        return self.folder / f"{case.key}.json"

    def _arrays_file(self, case: ExamCase, name: str) -> Path:
        return self.folder / f"{case.key}-{name}.npz"


def kept_key(kept: Sequence[int]) -> str:
    """Name a refined prompt of a case: refiners that keep the same tokens share one result."""
    return hashlib.sha256(np.asarray(kept, dtype="<i4").tobytes()).hexdigest()[:16]

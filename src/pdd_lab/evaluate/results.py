"""Results of cases, kept in the cache: a run that was stopped goes on where it was.

::

    PDD_CACHE_DIR/eval/<hash of the GGUF>-r<recipe>-<llama.cpp>/<case>.json            answer and outcomes
                                                                <case>-<scores>.npz    what attention said of it
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from pdd_cli.cache import published
from pdd_cli.host import version_of
from pdd_core.cache_file import check_file, json_object, set_aside
from pdd_core.env import Env

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pdd_lab.evaluate.cases import ExamCase

MOST_BYTES = 64 * 2**20
"""A larger file is not ours."""
_NPY_HEADER = 1024
"""Bytes before an array's own, at most."""
RECIPE = 1
"""Rises whenever the same case would be measured otherwise."""


class _Outcome(BaseModel):
    kept: int
    device: list[float]
    same: str
    evidence: bool = False
    score: float
    kl: float = 0.0


class _Record(BaseModel):
    """What `Examiner` keeps of a case."""

    case: dict[str, Any]
    prompt_tokens: int
    protected: int
    opening: list[int]
    answer: list[int]
    text: str
    cloud: list[float]
    compared: tuple[int, int] | None
    right: bool
    outcomes: dict[str, _Outcome]


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
        path = self._file(case)
        try:
            found = json_object(path, MOST_BYTES)
            _Record.model_validate(found)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            set_aside(path, error)
            return None
        return found

    def keep(self, case: ExamCase, record: Mapping[str, Any]) -> None:
        """Remember what is known of a case."""
        with published(self._file(case)) as draft:
            draft.write_text(json.dumps(record))

    def values(self, case: ExamCase, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return the float32 array that was kept as `name`; None if there is none of this shape."""
        path = self._values_file(case, name)
        try:
            return _values(path, shape)
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - numpy and zipfile have many for a broken file
            set_aside(path, error)
            return None

    def keep_values(self, case: ExamCase, name: str, values: np.ndarray) -> None:
        """Remember an array as `name`."""
        with published(self._values_file(case, name)) as draft, draft.open("wb") as file:
            np.savez_compressed(file, values=values)

    def _file(self, case: ExamCase) -> Path:
        return self.folder / f"{case.key}.json"

    def _values_file(self, case: ExamCase, name: str) -> Path:
        return self.folder / f"{case.key}-{name}.npz"


def _values(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    check_file(path, MOST_BYTES)
    with path.open("rb") as file, np.load(file) as held:
        if held.zip.getinfo("values.npy").file_size > 4 * math.prod(shape) + _NPY_HEADER:
            raise ValueError("unpacks to more than was kept")
        values: np.ndarray = held["values"]
    if values.shape != shape or values.dtype != np.float32 or not np.isfinite(values).all():
        raise ValueError(f"no finite numbers of the shape {shape}")
    return values


def kept_key(kept: Sequence[int]) -> str:
    """Name a refined prompt of a case: refiners that keep the same tokens share one result."""
    return hashlib.sha256(np.asarray(kept, dtype="<i4").tobytes()).hexdigest()[:16]

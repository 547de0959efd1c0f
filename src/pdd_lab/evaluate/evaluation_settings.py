"""What an evaluation is told, and the choices that make its figures comparable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pdd_cli.host import cpu_count
from pdd_core.errors import ConfigurationError
from pdd_core.refinement.capture import (
    CAPTURE_DEPTHS,
    CAPTURE_HEADS,
    CAPTURE_WINDOW,
    HEADS,
    LARGEST_WINDOW,
    Heads,
)
from pdd_core.refinement.refiners import REFINERS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TASKS = ("agreement", "recall", "answers")
RATIOS = (0.1, 0.2, 0.25, 0.3, 0.5, 0.75, 1.0)
QUICK = {"cases": 3, "shortest": 192, "longest": 256, "ratios": (0.25, 0.5, 1.0)}
"""A smoke run: its figures mean nothing."""
TRIES = 5
"""Cases to try for each one to score, before the model is held to be unable to do the task."""
ROOM = 512
"""Tokens of context beyond the longest document: template, question, answer, hidden lines."""

Setting = tuple[str, float]
"""Refiner and ratio."""
BAD: Setting = ("random", 0.05)
"""The refined prompt that the guard has to notice."""
INFORMED = "informed"
"""Not a refiner: the attention refiner, with the place that holds the answer protected. What is lost there was not
lost for want of it."""
NONE = "none"
"""Not a refiner: only the protected tokens are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """One evaluation.

    Raises:
        ConfigurationError: a field has a value that cannot work.
    """

    gguf: Path | None = None
    """The model; None is the demo model."""
    texts: tuple[Path, ...] = ()
    """Documents; none are the language reference that Python ships."""
    cases: int = 100
    """Scored cases per task."""
    shortest: int = 512
    """Tokens of the shortest document."""
    longest: int = 1536
    """Tokens of the longest document."""
    tasks: tuple[str, ...] = TASKS
    refiners: tuple[str, ...] = tuple(REFINERS)
    ratios: tuple[float, ...] = RATIOS
    first: int = 0
    """Number of the first case: what was tuned on some cases is tested on others."""
    jobs: int = 1
    """Processes that share the cases."""
    threads: int = 1
    """CPU threads, of all processes together."""
    window: int = CAPTURE_WINDOW
    depths: tuple[float, ...] = CAPTURE_DEPTHS
    heads: Heads = CAPTURE_HEADS

    def __post_init__(self) -> None:
        if self.cases < 1:
            raise ConfigurationError(f"--cases must be at least 1, not {self.cases}")
        if self.first < 0:
            raise ConfigurationError(f"--first must be at least 0, not {self.first}")
        if not 1 <= self.jobs <= self.threads:
            raise ConfigurationError(
                f"--jobs must be from 1 to the number of threads, {self.threads}, not {self.jobs}"
            )
        if not 64 <= self.shortest <= self.longest:
            raise ConfigurationError(f"--lengths must be two numbers of tokens from 64 up, not {self.lengths}")
        for option, given, known in (("--task", self.tasks, TASKS), ("--refiner", self.refiners, REFINERS)):
            if unknown := [name for name in given if name not in known]:
                raise ConfigurationError(f"{option} {unknown[0]} is unknown; known: {', '.join(known)}")
        if not 1 <= self.window <= LARGEST_WINDOW:
            raise ConfigurationError(f"--window must be from 1 to {LARGEST_WINDOW} tokens, not {self.window}")
        if not self.depths or not all(0 <= depth < 1 for depth in self.depths):
            raise ConfigurationError("--layers must be shares of the model's depth, from 0 to below 1")
        if self.heads not in HEADS:
            raise ConfigurationError(f"--heads must be one of {', '.join(HEADS)}, not {self.heads!r}")
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ConfigurationError("--ratios must be numbers above 0 and at most 1")

    @property
    def n_ctx(self) -> int:
        """Tokens of context that a case can need."""
        return self.longest + ROOM

    @property
    def numbers(self) -> range:
        """The cases that are tried, as far as they are needed."""
        return range(self.first, self.first + TRIES * self.cases)

    @property
    def threads_per_job(self) -> int:
        """CPU threads of one process; what does not divide evenly is left idle."""
        return self.threads // self.jobs

    @property
    def lengths(self) -> str:
        """As on the command line."""
        return f"{self.shortest}:{self.longest}"

    def length(self, number: int) -> int:
        """Return the tokens of document `number`: all lengths come, as often in each doubling, in a fixed mix."""
        share = (number * 0.6180339887498949) % 1  # the golden ratio spreads any count of cases evenly
        return round(self.shortest * math.pow(self.longest / self.shortest, share))


def refine_settings(
    *,
    gguf: Path | None,
    texts: Sequence[Path] | None,
    cases: int | None,
    first: int | None,
    lengths: str | None,
    ratios: str | None,
    tasks: Sequence[str] | None,
    refiners: Sequence[str] | None,
    layers: str | None,
    window: int | None,
    heads: str | None,
    jobs: int | None,
    threads: int | None,
    quick: bool,
) -> EvalSettings:
    """Return what the command line asks for; a setting that is None or empty has its default.

    Raises:
        ConfigurationError: a value cannot be read, or cannot work.
    """
    chosen: dict[str, Any] = dict(QUICK) if quick else {}
    chosen |= {"gguf": gguf, "threads": threads or cpu_count()}
    numbers = {"cases": cases, "first": first, "window": window, "heads": heads, "jobs": jobs}
    chosen |= {name: value for name, value in numbers.items() if value is not None}
    for name, values in (("texts", texts), ("tasks", tasks), ("refiners", refiners)):
        if values:
            chosen[name] = tuple(dict.fromkeys(values))
    if lengths is not None:
        chosen["shortest"], chosen["longest"] = _lengths(lengths)
    if ratios is not None:
        chosen["ratios"] = _numbers("--ratios", ratios)
    if layers is not None:
        chosen["depths"] = _numbers("--layers", layers)
    return EvalSettings(**chosen)


def _lengths(text: str) -> tuple[int, int]:
    try:
        shortest, longest = map(int, text.split(":"))
    except ValueError:
        raise ConfigurationError(f"--lengths must be two numbers such as 512:1536, not {text!r}") from None
    return shortest, longest


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(sorted({float(number) for number in text.split(",")}))
    except ValueError:
        raise ConfigurationError(f"{option} must be numbers with commas between, not {text!r}") from None

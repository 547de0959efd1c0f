"""Traces made up here, for when no file is at hand: log-normal lengths, Poisson arrivals.

They are no measurement of anybody's traffic. There are three kinds of use: a chat has prompts of about
a thousand tokens and answers of about a hundred, completion in an editor has long prompts and very short answers,
and questions about documents have long prompts and answers of a paragraph or two.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from pdd_lab.traces.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Shape:
    """Medians in tokens, and the standard deviations of the natural logarithms."""

    prompt: float
    prompt_sigma: float
    output: float
    output_sigma: float
    requests_per_s: float


SYNTHETIC: Mapping[str, Shape] = MappingProxyType(
    {
        "chat": Shape(900, 0.9, 140, 0.9, 5.0),
        "editor": Shape(1500, 0.9, 14, 1.0, 3.0),
        "documents": Shape(4000, 0.7, 220, 0.7, 2.0),
    }
)
"""Made-up traces by name."""
_MOST = 16_384


def synthesise(name: str, *, requests: int = 4000, seed: int = 0) -> Trace:
    """Return a made-up trace, one of `SYNTHETIC`; the same for the same seed."""
    shape = SYNTHETIC[name]
    draw = np.random.default_rng(seed)

    def lengths(median: float, sigma: float) -> NDArray[np.int64]:
        return np.clip(np.rint(draw.lognormal(np.log(median), sigma, requests)), 1, _MOST).astype(np.int64)

    gaps = draw.exponential(1 / shape.requests_per_s, requests)
    gaps[:1] = 0.0
    return Trace(
        name=name,
        arrival_s=np.cumsum(gaps),
        prompt_tokens=lengths(shape.prompt, shape.prompt_sigma),
        output_tokens=lengths(shape.output, shape.output_sigma),
    )

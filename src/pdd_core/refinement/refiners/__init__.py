"""Built-in refiners by name, each an implementation of ``pdd_refine``. They need numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError
from pdd_core.refinement.refiners.attention import AttentionRefiner
from pdd_core.refinement.refiners.lexical import LexicalRefiner
from pdd_core.refinement.refiners.random import RandomRefiner
from pdd_core.refinement.refiners.truncation import TruncationRefiner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pdd_core.refinement.refiners.base import Refiner

REFINERS: Mapping[str, Callable[..., Refiner]] = {
    "attention": AttentionRefiner,
    "lexical": LexicalRefiner,
    "truncation": TruncationRefiner,
    "random": RandomRefiner,
}
"""Name -> class; the first is the default."""

__all__ = [
    "REFINERS",
    "AttentionRefiner",
    "LexicalRefiner",
    "RandomRefiner",
    "TruncationRefiner",
    "refiner",
]


def refiner(name: str, **settings: object) -> Refiner:
    """Return the built-in refiner `name`; `settings` are the fields of its class.

    Raises:
        ConfigurationError: no refiner has this name, it has no such setting, or a value cannot work.
    """
    if name not in REFINERS:
        raise ConfigurationError(f"there is no refiner {name!r}; known: {', '.join(REFINERS)}")
    try:
        return REFINERS[name](**settings)
    except TypeError as error:
        raise ConfigurationError(f"refiner {name!r}: {error}") from error

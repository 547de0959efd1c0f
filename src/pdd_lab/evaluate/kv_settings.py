"""What an evaluation of KV handover is told."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from pdd_core.errors import ConfigurationError
from pdd_lab.evaluate.evaluation_settings import EvalSettings, refine_settings
from pdd_lab.evaluate.kv_ways import WAYS
from pdd_lab.evaluate.quantised_device import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

REFINERS = ("attention", "lexical")
RATIOS = "0.25"
"""What handing over is compared with, unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVEvalSettings(EvalSettings):
    """One evaluation of KV handover, beside refined prompts.

    Raises:
        ConfigurationError: a field has a value that cannot work.
    """

    ways: tuple[str, ...] = ("k8v4", "q8_0", "q4_0")
    """How cells are handed over: see `pdd_lab.evaluate.kv_ways`."""
    device: str | None = None
    """The type that the device's weights are quantised to; None leaves them out."""

    def __post_init__(self) -> None:
        EvalSettings.__post_init__(self)  # `super()` does not know a class with slots
        if unknown := [way for way in self.ways if way not in WAYS]:
            raise ConfigurationError(f"--way {unknown[0]} is unknown; known: {', '.join(WAYS)}")
        if self.device is not None and self.device not in KINDS:
            raise ConfigurationError(f"--device {self.device} is unknown; known: {', '.join(KINDS)}")


def kv_settings(
    *,
    ways: Sequence[str] | None,
    device: str | None,
    refiners: Sequence[str] | None,
    ratios: str | None,
    **others: Any,
) -> KVEvalSettings:
    """Return what the command line asks for; `others` are those of `refine_settings`.

    Raises:
        ConfigurationError: a value cannot be read, or cannot work.
    """
    base = refine_settings(refiners=refiners or REFINERS, ratios=ratios or RATIOS, **others)
    chosen: dict[str, Any] = {field.name: getattr(base, field.name) for field in fields(base)}
    if ways:
        chosen["ways"] = tuple(dict.fromkeys(ways))
    return KVEvalSettings(**chosen, device=device)

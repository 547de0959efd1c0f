"""When each token is due: the answer's pacer, made by hook ``pdd_pace`` and guarded against its failure."""

from __future__ import annotations

import logging
import math
from functools import cache
from typing import TYPE_CHECKING, Any

from pdd_core.env import Env
from pdd_core.errors import ConfigurationError, named
from pdd_core.plugins import Policies
from pdd_core.policies.pacing import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_core.hookspecs import Pacer, PaceRequest, PaceTarget

PACINGS = tuple(BUILT_IN)
"""Names of the built-in pacings; the first is the default."""
_RECENT = 16
"""Arrivals that say how fast tokens come now: enough to average over chunks of several tokens."""

logger = logging.getLogger(__name__)


@cache
def default_policies(pacing: str = PACINGS[0]) -> Policies:
    """Return what `load_policies` does. Made once for each name."""
    return load_policies(pacing)


def load_policies(pacing: str, **built_in: object) -> Policies:
    """Return a built-in pacing, further built-ins by name, and what is installed.

    That is as PDD_POLICIES and PDD_STRICT say.

    Raises:
        ConfigurationError: `pacing` is none of `PACINGS`.
        PolicyError: the policies are strict, and an installed one cannot be loaded.
    """
    if pacing not in BUILT_IN:
        raise ConfigurationError(f"pacing must be one of {', '.join(PACINGS)}, not {pacing!r}")
    env = Env()
    return Policies({pacing: BUILT_IN[pacing](), **built_in}, allow=env.allowed_policies(), strict=env.strict)


def recent_step(received_at: Sequence[float]) -> float | None:
    """Return the mean seconds between the latest arrivals; None before there are two."""
    count = min(len(received_at), _RECENT)
    return (received_at[-1] - received_at[-count]) / (count - 1) if count > 1 else None


class GuardedPacer:
    """A pacer whose failure costs the pacing, never the answer."""

    def __init__(self, pacer: Pacer, name: str) -> None:
        self._pacer: Pacer | None = pacer
        self._name = name
        self._shown = -1
        self._due = math.inf

    @classmethod
    def resolve(cls, policies: Policies, request: PaceRequest, target: PaceTarget) -> GuardedPacer:
        """Ask `policies` for the pacer of one answer.

        Raises:
            PolicyError: no policy gave one, or one failed and the policies are strict.
        """
        pacer, name = policies.first_result("pdd_pace", _is_pacer, request=request, target=target)
        return cls(pacer, name)

    def due(self, now: float, *, shown: int, **outlook: Any) -> float:
        """Return the pacer's answer, and `now` for a first token, after a wait, and from its first failure on.

        See `pdd_core.hookspecs.Pacer`.
        """
        waited = shown == self._shown and now >= self._due
        if self._pacer is None or waited:
            return now
        try:
            due = float(self._pacer.due(now, shown=shown, **outlook))
            if math.isfinite(due):
                self._shown, self._due = shown, due
                return due if shown else now
            problem = f"returned {due}"
        except Exception as error:  # noqa: BLE001 - third-party code
            problem = named(error)
        logger.warning(
            "the pacer of policy plugin %r failed, tokens now show as they come: %s", self._name, problem
        )
        self._pacer = None
        return now


def _is_pacer(result: object) -> bool:
    return callable(getattr(result, "due", None))

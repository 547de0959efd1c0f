"""When each token is due: the answer's pacer, made by hook ``pdd_pace`` and guarded against its failure."""

from __future__ import annotations

import logging
import math
from functools import cache
from typing import TYPE_CHECKING

from pdd_core.env import Env
from pdd_core.hookspecs import PaceRequest, PaceTarget
from pdd_core.plugins import Policies
from pdd_core.policies.pacing import FixedRatePacing

if TYPE_CHECKING:
    from pdd_core.hookspecs import Pacer

logger = logging.getLogger(__name__)


@cache
def default_policies() -> Policies:
    """Return the built-in pacing and what is installed, as PDD_POLICIES and PDD_STRICT say. Made once."""
    env = Env()
    return Policies({"fixed-rate": FixedRatePacing()}, allow=env.allowed_policies(), strict=env.strict)


class GuardedPacer:
    """A pacer whose failure costs the pacing, never the answer."""

    def __init__(self, pacer: Pacer, name: str) -> None:
        self._pacer: Pacer | None = pacer
        self._name = name

    @classmethod
    def resolve(cls, policies: Policies, request: PaceRequest, rate: float) -> GuardedPacer:
        """Ask `policies` for the pacer of one answer.

        Raises:
            PolicyError: no policy gave one, or one failed and the policies are strict.
        """
        pacer, name = policies.first_result("pdd_pace", _is_pacer, request=request, target=PaceTarget(rate))
        return cls(pacer, name)

    def due(self, now: float, *, buffered: int, complete: bool, ready_in: float | None) -> float:
        """Return the pacer's answer; `now` from its first failure on. See `pdd_core.policies.pacing.Pacer`."""
        if self._pacer is None:
            return now
        try:
            due = float(self._pacer.due(now, buffered=buffered, complete=complete, ready_in=ready_in))
            if math.isfinite(due):
                return due
            problem = f"returned {due}"
        except Exception as error:  # noqa: BLE001 - third-party code
            problem = f"{type(error).__name__}: {error}"
        logger.warning(
            "the pacer of policy plugin %r failed, tokens now show as they come: %s", self._name, problem
        )
        self._pacer = None
        return now


def _is_pacer(result: object) -> bool:
    return callable(getattr(result, "due", None))

"""The newest answers in figures, for people who look at the server. No text of prompts or answers."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_llamacpp_adapter.server.wire.failures import ErrorObject
    from pdd_llamacpp_adapter.server.wire.json_body import Json
    from pdd_llamacpp_adapter.session.outcome import Outcome

_COUNT = 100
_KEPT = ("mode", "finish_reason", "tokens", "ttft_s", "tpot_mean_s", "max_gap_s", "took_over_s", "cloud_retries")


class RecentAnswers:
    """What became of the last hundred answers, newest first when listed.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._answers: deque[Json] = deque(maxlen=_COUNT)
        self._clock = clock

    def add(self, outcome: Outcome | None, error: ErrorObject | None) -> None:
        """Note an answer that has ended; `outcome` is None when its session never began."""
        why = None if error is None else error.code or error.type
        told: Json = {"ended": round(self._clock(), 3), "error": why}
        if outcome is not None:
            summary = outcome.summary()
            told.update({name: summary[name] for name in _KEPT})
            # what follows the type may quote what the cloud was sent
            told["cloud_error"] = None if outcome.cloud_error is None else outcome.cloud_error.partition(":")[0]
            told["plan"] = None if outcome.plan is None else outcome.plan.short()
        self._answers.append(told)

    def list(self) -> list[Json]:
        """Return the answers, newest first."""
        return list(reversed(self._answers))

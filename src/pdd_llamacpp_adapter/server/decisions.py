"""The decision log: one line per answer that says who made it and why. Never any of its text."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.answering import Call
    from pdd_llamacpp_adapter.server.prepared_answer import ErrorObject
    from pdd_llamacpp_adapter.session.outcome import Outcome

logger = logging.getLogger("pdd_llamacpp_adapter.decisions")


def log_decision(call: Call, outcome: Outcome | None, error: ErrorObject | None) -> None:
    """Log what became of `call`. `outcome` is None when its session never began."""
    if not logger.isEnabledFor(logging.INFO):
        return
    line: dict[str, object] = {"request_id": call.request_id, "id": call.answer_id, "route": call.route}
    if error is not None:
        # an error's message may quote the request; its code may not
        line["error"] = {"status": error.status, "type": error.type, "code": error.code}
    if outcome is not None:
        summary = outcome.summary()
        if outcome.cloud_error is not None:  # likewise: a cloud's refusal may quote what it was sent
            summary["cloud_error"] = outcome.cloud_error.partition(":")[0]
        line.update(summary)
        if outcome.plan is not None:
            line["plan"] = outcome.plan.short()
    logger.info("%s", json.dumps(line, separators=(",", ":"), default=str))

"""The demo's figures as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pdd_cli.cache import published
from pdd_core.timeline import Source

if TYPE_CHECKING:
    from pathlib import Path

    from pdd_cli.demo.facts import Facts
    from pdd_cli.demo.ways import Outcomes
    from pdd_llamacpp_adapter import Outcome


def write_record(path: Path, facts: Facts, outcomes: Outcomes) -> None:
    """Write the record to `path`, whole or not at all."""
    with published(path) as draft:
        text = json.dumps(record(facts, outcomes), indent=1, ensure_ascii=False)
        draft.write_text(f"{text}\n", encoding="utf-8")


def record(facts: Facts, outcomes: Outcomes) -> dict[str, Any]:
    """Return the conditions of the run, and ``runs``: one object per way, whose name is its ``mode``."""
    runs = [{**answer_record(outcome), "mode": str(way)} for way, outcome in outcomes.items()]
    return {**asdict(facts), "runs": runs}


def answer_record(outcome: Outcome) -> dict[str, Any]:
    """Return one answer, token by token, and its figures; ready for JSON."""
    timeline = outcome.timeline
    return {
        "mode": str(outcome.mode),
        "prompt_tokens": outcome.prompt_tokens,
        "cloud_tokens": timeline.count(Source.CLOUD),
        "device_tokens": timeline.count(Source.DEVICE),
        "token_ids": [token.token_id for token in timeline.tokens],
        "source": [str(token.source) for token in timeline.tokens],
        "shown_at_ms": [_ms(token.shown_at) for token in timeline.tokens],
        "received_at_ms": [_ms(token.received_at) for token in timeline.tokens],
        "caught_up_at_ms": _ms(outcome.caught_up_at),
        "took_over_at_ms": _ms(outcome.took_over_at),
        "decode_budget": outcome.decode_budget,
        "ttft_ms": _ms(timeline.ttft),
        "tpot_mean_ms": _ms(timeline.tpot_mean),
        "tpot_max_ms": _ms(timeline.tpot_max),
        "text": timeline.text,
        "finish_reason": outcome.finish_reason,
        "extensions": outcome.extensions,
        "cloud_tokens_in_vain": outcome.cloud_tokens_in_vain,
        "cloud_error": outcome.cloud_error,
        "cancel_confirmed": outcome.cancel_confirmed,
        "kv": None if outcome.kv is None else asdict(outcome.kv),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)

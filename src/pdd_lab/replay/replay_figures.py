"""The figures of a replay, from what its clients saw: the same for live servers and for the simulator."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_cli.options import check_number
from pdd_core.qoe import STALL_GAPS, longest_wait, qoe
from pdd_core.timeline import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_lab.load.reply import Reply
    from pdd_lab.replay.live_replay import Run

SCHEMA = 1
"""Of the JSON file."""
LATE_S = 0.01
"""A request sent later than this is counted: a timer of the event loop may be a few milliseconds off."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Whom the answers are for: what the quality of experience and the stalls are measured against.

    Raises:
        ConfigurationError: a number out of its range.
    """

    rate: float
    """Tokens per second."""
    ttft_s: float
    """Seconds after which the first token is expected."""

    def __post_init__(self) -> None:
        check_number("--rate", self.rate, 1e-3, 1e6)
        check_number("--ttft", self.ttft_s, 0.0, 1e6)

    def quality(self, reply: Reply) -> float:
        """Return the QoE of a complete answer."""
        return qoe(reply.shown(), rate=self.rate, ttft=self.ttft_s)

    def stalled(self, reply: Reply) -> bool:
        """Whether a reader had to wait noticeably within the answer."""
        return longest_wait(reply.token_times, rate=self.rate) > STALL_GAPS / self.rate


def figures(run: Run, reader: Reader) -> dict[str, Any]:
    """Return the figures of `run`, ready for JSON; of what has been complete so far if it was interrupted."""
    done = [reply for reply in run.replies if reply.ok and reply.token_times]
    ends = [reply.finished for reply in run.replies if reply.finished is not None]
    seconds = max(ends) - run.begun if ends else 0.0
    sources: Counter[Source] = Counter()
    for reply in done:
        sources.update(reply.by_source())
    answered = sum(reply.tokens for reply in done)
    stalls = sum(map(reader.stalled, done))
    late = [reply.late for reply in run.replies if reply.sent is not None]
    return {
        "requests": {
            "due": len(run.replies) + run.skipped,
            "completed": len(done),
            "failed": sum(reply.error is not None for reply in run.replies),
            "unfinished": sum(not reply.ok and reply.error is None for reply in run.replies),
            "too_long": run.skipped,
        },
        "seconds": short(seconds),
        "requests_per_s": short(len(done) / seconds) if seconds > 0 else None,
        "output_tokens_per_s": short(answered / seconds) if seconds > 0 else None,
        "ttft_s": spread([reply.ttft for reply in done if reply.ttft is not None]),
        "gap_s": spread(np.concatenate([np.diff(reply.token_times) for reply in done]) if done else []),
        "stalls": {"answers": stalls, "share": short(stalls / len(done)) if done else None},
        "tokens": {
            "prompt": sum(reply.prompt_tokens for reply in done),
            **{source.value: sources[source] for source in Source},
        },
        "modes": dict(sorted(Counter(reply.mode for reply in done).items())),
        "qoe": {
            **quality([reader.quality(reply) for reply in done]),
            "rate": reader.rate,
            "ttft_s": reader.ttft_s,
        },
        "errors": dict(Counter(reply.error for reply in run.replies if reply.error is not None).most_common()),
        "late": {"requests": sum(one > LATE_S for one in late), **spread(late)},
    }


def answers(run: Run, reader: Reader) -> list[dict[str, Any]]:
    """Return one object per request that was due, ready for JSON."""
    return [_answer(reply, run.begun, reader) for reply in run.replies]


def _answer(reply: Reply, begun: float, reader: Reader) -> dict[str, Any]:
    sources = reply.by_source()
    gaps = np.diff(reply.token_times)
    return {
        "index": reply.index,
        "due_s": short(reply.due - begun),
        "late_s": None if reply.sent is None else short(reply.late),
        "ttft_s": short(reply.ttft),
        "seconds": None if reply.finished is None else short(reply.finished - reply.due),
        "longest_gap_s": short(float(gaps.max())) if gaps.size else None,
        "qoe": short(reader.quality(reply)) if reply.ok and reply.token_times else None,
        "prompt_tokens": reply.prompt_tokens,
        "cloud_tokens": sources[Source.CLOUD],
        "device_tokens": sources[Source.DEVICE],
        "mode": reply.mode,
        "finish_reason": reply.finish_reason,
        "error": reply.error,
    }


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    """Return median, 99th percentile and maximum; null where there is nothing."""
    found = np.asarray(values, dtype=float)
    if not found.size:
        return {"p50": None, "p99": None, "max": None}
    p50, p99 = np.percentile(found, (50, 99))
    return {"p50": short(p50), "p99": short(p99), "max": short(found.max())}


def quality(values: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    """Return mean, median and 1st percentile; null where there is nothing."""
    if not len(values):
        return {"mean": None, "p50": None, "p1": None}
    p50, p1 = np.percentile(values, (50, 1))
    return {"mean": short(float(np.mean(values))), "p50": short(p50), "p1": short(p1)}


def short(value: float | None) -> float | None:
    """Return `value` to a hundredth of a millisecond."""
    return None if value is None else round(float(value), 5)

"""What the demo has just shown, in a sentence or two, computed from what was measured."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from pdd_cli.demo.ways import Way
from pdd_core.qoe import STALL_GAPS
from pdd_core.timeline import Source

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pdd_cli.demo.facts import Facts
    from pdd_cli.demo.ways import Outcomes
    from pdd_llamacpp_adapter import Outcome

SOONER = 0.95
"""Below this share of the other's TTFT it is no coincidence."""


def verdict(facts: Facts, outcomes: Outcomes) -> str:
    """Return a sentence about the handoff, and one about that with the KV cache, if there was one.

    They say so where it did not pay.
    """
    with_kv = outcomes.get(Way.KV_HANDOFF)
    second = "" if with_kv is None else f" {_with_kv(facts, outcomes[Way.HANDOFF], with_kv)}"
    return _handoff(facts, outcomes) + second


def _handoff(facts: Facts, outcomes: Outcomes) -> str:
    handoff, alone = outcomes[Way.HANDOFF], outcomes[Way.DEVICE_ONLY]
    first, first_alone = handoff.timeline.ttft, alone.timeline.ttft
    if handoff.cloud_error is not None:
        return f"The cloud failed ({handoff.cloud_error}), so this run says nothing about a handoff."
    if first is None or first_alone is None:
        return "One of the modes gave no token, so there is nothing to compare."
    sooner = first < SOONER * first_alone
    from_device = handoff.timeline.count(Source.DEVICE)
    smooth = not _stalled(handoff, facts.rate)
    match sooner, smooth and from_device > 0:
        case True, True:
            opening = "The handoff paid"
        case True, False:
            opening = "The handoff paid only in part"
        case _:
            opening = "The handoff did not pay here"
    return (
        f"{opening}: its answer began after {first:.1f} s, {_compared(first, first_alone)} the device alone "
        f"({first_alone:.1f} s), {_flow(handoff, facts.rate)}, and {_share(handoff, from_device)}; "
        f"{_agreement(outcome for way, outcome in outcomes.items() if way is not Way.KV_HANDOFF)}."
    )


def _with_kv(facts: Facts, handoff: Outcome, with_kv: Outcome) -> str:
    report, over = with_kv.kv, with_kv.took_over_at
    if with_kv.cloud_error is not None:
        return f"The cloud failed in the handoff with the KV cache ({with_kv.cloud_error})."
    if report is None or not report.cells:
        why = "" if report is None or report.reason is None else f" ({report.reason})"
        return f"The KV cache did not reach the device{why}, which read the prompt itself."
    came = f"With {report.cells:,} of {with_kv.prompt_tokens:,} cells from the cloud ({report.bytes / 1e6:.1f} MB)"
    if over is None:
        return f"{came}, the device still did not take over before the answer ended."
    instead = "" if handoff.took_over_at is None else f" instead of {handoff.took_over_at:.1f} s"
    cloud, before = with_kv.timeline.count(Source.CLOUD), handoff.timeline.count(Source.CLOUD)
    return (
        f"{came}, the device took over after {over:.1f} s{instead}, the cloud's part was {cloud} tokens instead "
        f"of {before}, {_flow(with_kv, facts.rate)}, and {_same(handoff, with_kv)}."
    )


def _same(handoff: Outcome, with_kv: Outcome) -> str:
    a, b = ([token.token_id for token in one.timeline.tokens] for one in (handoff, with_kv))
    if a == b:
        return "the answer is that of the handoff, token for token"
    return f"the answer is that of the handoff for {_common([a, b])} tokens and then differs"


def _compared(first: float, first_alone: float) -> str:
    change = round(100 * (1 - first / first_alone))
    if change > 0:
        return f"{change} % sooner than on"
    return f"{-change} % later than on" if change < 0 else "no sooner than on"


def _stalled(outcome: Outcome, rate: float) -> bool:
    return (outcome.timeline.tpot_max or 0.0) > STALL_GAPS / rate


def _flow(outcome: Outcome, rate: float) -> str:
    longest = f"{(outcome.timeline.tpot_max or 0.0) * 1000:.0f} ms"
    if _stalled(outcome, rate):
        return f"it stalled (longest gap {longest} where {1000 / rate:.0f} ms were asked for)"
    return f"it never stalled (longest gap {longest})"


def _share(outcome: Outcome, from_device: int) -> str:
    total = len(outcome.timeline.tokens)
    if not from_device:
        return f"the cloud made all {total} tokens because the answer ended before the device had caught up"
    return f"the device made {from_device} of its {total} tokens ({100 * from_device / total:.0f} %)"


def _agreement(outcomes: Iterable[Outcome]) -> str:
    answers = [[token.token_id for token in outcome.timeline.tokens] for outcome in outcomes]
    if all(answer == answers[0] for answer in answers):
        return "all three answers are the same, token for token"
    return f"the three answers are the same for {_common(answers)} tokens and then differ"


def _common(answers: list[list[int]]) -> int:
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*answers, strict=False)))

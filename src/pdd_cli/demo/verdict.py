"""One sentence that says what the demo has just shown, computed from what was measured."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from pdd_core.qoe import STALL_GAPS
from pdd_core.timeline import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_cli.demo.facts import Facts
    from pdd_llamacpp_adapter import Outcome

SOONER = 0.95
"""Below this share of the other's TTFT it is no coincidence."""


def verdict(facts: Facts, outcomes: Sequence[Outcome]) -> str:
    """Return the sentence. It says so where the handoff did not pay."""
    by_mode = {str(outcome.mode): outcome for outcome in outcomes}
    handoff, alone = by_mode["handoff"], by_mode["device_only"]
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
        f"{_agreement(outcomes)}."
    )


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


def _agreement(outcomes: Sequence[Outcome]) -> str:
    answers = [[token.token_id for token in outcome.timeline.tokens] for outcome in outcomes]
    if all(answer == answers[0] for answer in answers):
        return "all three answers are the same, token for token"
    same = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*answers, strict=False)))
    return f"the three answers are the same for {same} tokens and then differ"

"""How to ask the cloud to go on with an answer that has begun."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pdd_core.optin import MAX_DECODE_BUDGET

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_llamacpp_adapter.request import AnswerRequest

NOT_REPEATED = "not_repeated"
"""Code of the `CloudRefused` for an answer that the cloud made again and differently."""
_GREEDY_BELOW = 1e-5
"""vLLM's ``_SAMPLING_EPS``."""


@dataclass(frozen=True, slots=True)
class LegPlan:
    """One request to the cloud: a leg of the answer."""

    request: AnswerRequest
    repeats: int = 0
    """Tokens of the answer that this leg makes again before the first new one."""


def plan_leg(
    request: AnswerRequest, ids: Sequence[int], *, budget: int | None, repeatable: bool = True
) -> LegPlan | None:
    """Return the leg that goes on behind the answer's `ids`; None if the cloud cannot be asked for it.

    Where the tokens so far may as well be part of the prompt, they are: the cloud's prefix cache makes that cheap.
    Penalties, bad words and grammars look at the output alone, and start anew with a new prompt. There the cloud
    has to make the answer again from its beginning, which it does equally only if nothing in it is random.

    Args:
        request: the answer's.
        ids: the answer so far.
        budget: new tokens that the cloud may decode; None leaves that to its policy.
        repeatable: the cloud has not failed to make the answer again. Once it has, penalties that start anew are
            better than no answer; a grammar that does so is not.
    """
    done = len(ids)
    if not done:
        return LegPlan(_with_budget(request, budget, least=request.least_budget))
    if not depends_on_output(request) or not (repeatable or request.grammar):
        return LegPlan(
            replace(
                _with_budget(request, budget),
                prompt_token_ids=(*request.prompt_token_ids, *ids),
                max_tokens=request.max_tokens - done,
                min_tokens=max(0, request.min_tokens - done),
                seed=None if request.seed is None else _later_seed(request.seed, done),
            )
        )
    if request.temperature >= _GREEDY_BELOW and request.seed is None:
        return None
    return LegPlan(_with_budget(request, None if budget is None else budget + done), repeats=done)


def depends_on_output(request: AnswerRequest) -> bool:
    """Whether what may follow depends on where the output began, and not on the text alone."""
    return bool(request.grammar or request.presence_penalty or request.frequency_penalty or request.bad_words)


def _with_budget(request: AnswerRequest, budget: int | None, *, least: int | None = None) -> AnswerRequest:
    """Return `request` with another budget; of a further leg's, no part is known to be superfluous."""
    bounded = None if budget is None else min(budget, MAX_DECODE_BUDGET)
    known = least is not None and bounded is not None and least <= bounded
    return replace(request, decode_budget=bounded, least_budget=least if known else None)


def _later_seed(seed: int, position: int) -> int:
    """Return a seed for the noise behind `position`: the same again would repeat the beginning's noise."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1

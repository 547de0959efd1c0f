"""The hooks a policy plugin can implement. Each is resolved once per request, or a few times; never per token.

Implement one in a module of your own and name that module in the entry-point group ``pdd``::

    from pdd_core import hookimpl

    @hookimpl
    def pdd_decode_budget(request, load):
        return 8 if load.running > 32 else None
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pluggy

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_core.planner.types import CloudState, DeviceState, Plan, PlanRequest
    from pdd_core.refinement.prompt import RefinePrompt
    from pdd_core.refinement.scores import PromptScores

PROJECT = "pdd"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class BudgetRequest:
    """An opted-in request, as the scheduler sees it: on admission, and again when the load has changed."""

    handoff_id: str
    """The request's, as its client chose it."""
    num_prompt_tokens: int
    """Tokens of the whole prompt."""
    max_tokens: int
    """The client's own limit on the answer."""
    decode_budget: int | None
    """The budget the client asked for, if it did."""
    priority: int
    """vLLM's: a request with a lower value goes first."""
    least_budget: int | None = None
    """Below this budget the user would wait, says the client; None if it does not say."""
    tenant: str | None = None
    """The tenant that the client, or a gateway before the server, has named. Nobody has checked it."""
    num_output_tokens: int = 0
    """Tokens decoded so far, 0 on admission. A budget below this and what is in flight is raised to it."""
    current_budget: int | None = None
    """The budget that holds until this decision; None on admission."""


@dataclass(frozen=True, slots=True)
class CloudLoad:
    """What the scheduler holds at this moment."""

    running: int
    """Requests in the running batch."""
    waiting: int
    """Requests in line."""
    kv_cache_usage: float
    """Share of KV blocks in use, 0 to 1."""
    capacity: int = 0
    """Most requests that run at once (vLLM's `max_num_seqs`); 0 if unknown."""
    waited_s: float = 0.0
    """Seconds since the arrival of the request that is next in line; 0 if none waits."""
    pressure: float = 0.0
    """How hard pressed the server is, 0 to 1 in a few levels that do not flap. Policies are asked again when it
    changes."""


@dataclass(frozen=True, slots=True)
class PaceRequest:
    """A request on the device, before its first token."""

    num_prompt_tokens: int
    """Tokens of the whole prompt."""
    max_tokens: int
    """The longest the answer can get, in tokens."""


FLUSH_WITHIN_S = 0.5
"""Seconds by which the pacing may delay a finished answer, unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class PaceTarget:
    """How the user wants the answer shown.

    Raises:
        ConfigurationError: a rate or gap that is not positive, or a negative bound.
    """

    rate: float
    """Tokens per second at most; ``inf`` shows each token as it comes."""
    max_gap: float = 1.0
    """Seconds to which a pacer may stretch a gap while it has a token at hand, to make the buffer last. One second
    is about the limit for a user's thought to stay uninterrupted (Nielsen, Usability Engineering, 1993). Where
    1 / `rate` is longer, that holds."""
    flush_within: float = FLUSH_WITHIN_S
    """Seconds after the end of the answer by which all of it is shown, if need be faster than `rate`; 0 shows at
    once what is left, ``inf`` keeps to `rate`."""

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ConfigurationError(f"rate must be a positive number of tokens per second, not {self.rate}")
        if not self.max_gap > 0:
            raise ConfigurationError(f"max_gap must be a positive number of seconds, not {self.max_gap}")
        if not self.flush_within >= 0:
            raise ConfigurationError(f"flush_within must be a number of seconds >= 0, not {self.flush_within}")


class Pacer(Protocol):
    """Shows one answer. Not shared between answers."""

    def due(
        self,
        now: float,
        *,
        shown: int,
        shown_at: float | None,
        buffered: int,
        complete: bool,
        cloud_left: int | None,
        cloud_step: float | None,
        ready_in: float | None,
        device_step: float | None,
        idle: float,
    ) -> float:
        """Return when to show the next token, in the clock of `now` (seconds). At or before `now` means at once.

        Asked when the token is at hand and the one before it has been shown; asked again, for the same token,
        whenever the state of the answer changes while it waits. The last result counts; a wait that ends shows the
        token. So asking must not commit to anything: that a token was shown is seen from `shown` and `shown_at`.
        The first token of an answer is shown on arrival: a pacer need not be asked about it, nor heard.

        All arguments but `now` are keywords, and all are given each time; ``**_`` takes those of no interest.
        Estimates may be wrong and may change from call to call.

        Args:
            now: seconds since the request began.
            shown: tokens of the answer that have been shown.
            shown_at: when the last of them was shown; None before the first.
            buffered: tokens at hand that have not been shown, >= 1.
            complete: True when no token will follow the buffered ones.
            cloud_left: tokens that the cloud may still add if the device does not take over before; 0 once it adds
                no more, None if its budget is not known.
            cloud_step: seconds from one of the cloud's tokens to the next, an estimate; None before there is one.
            ready_in: the device's own estimate of the seconds until it has caught up; 0 after the take-over, None
                while it has no estimate or takes no part.
            device_step: seconds in which the device makes a token, an estimate; None before there is one.
            idle: seconds since the last token arrived, from either side.
        """


class PDDSpecs(Protocol):
    """All hooks. An implementation may take fewer arguments than the spec names."""

    @hookspec(firstresult=True)
    def pdd_decode_budget(self, request: BudgetRequest, load: CloudLoad) -> int | None:
        """Return how many tokens the cloud may decode (>= 1). Stops at the first result that is not None.

        Asked on admission, and again when ``load.pressure`` has changed: then the result holds for what is left.
        """

    @hookspec(firstresult=True)
    def pdd_plan(self, request: PlanRequest, device: DeviceState, cloud: CloudState) -> Plan | None:
        """Return who makes an answer and how. Stops at the first result that is not None."""

    @hookspec(firstresult=True)
    def pdd_pace(self, request: PaceRequest, target: PaceTarget) -> Pacer | None:
        """Return the pacer of one answer. Stops at the first result that is not None."""

    @hookspec(firstresult=True)
    def pdd_refine(self, scores: PromptScores | None, prompt: RefinePrompt, ratio: float) -> Sequence[int] | None:
        """Return the indices of the prompt tokens that stay, increasing. Stops at the first that is not None.

        `scores` is None where no attention was captured. `ratio` is the share of the tokens to keep, above 0 and
        at most 1; ``prompt.protected`` must be among them, and counts. The result is a list or tuple of ints, and
        is checked.
        """

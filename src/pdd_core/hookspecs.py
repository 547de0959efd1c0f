"""The hooks that a policy plugin can implement. Each is called once or a few times per request, never per token.

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
    """An opted-in request in the scheduler: on admission, and again when the load has changed."""

    handoff_id: str
    """The id that the client chose."""
    num_prompt_tokens: int
    """Tokens of the whole prompt."""
    max_tokens: int
    """The client's limit on the answer, in tokens."""
    decode_budget: int | None
    """The budget that the client asked for, in tokens; None if it named none."""
    priority: int
    """vLLM's priority: a lower value is more urgent."""
    least_budget: int | None = None
    """The budget below which the user would wait, by the client's estimate; None if it named none."""
    tenant: str | None = None
    """The tenant that the client or a gateway in front of the server named. Nobody has checked it."""
    num_output_tokens: int = 0
    """Tokens decoded so far, 0 on admission. A budget below these and those in flight is raised to them."""
    current_budget: int | None = None
    """The budget before this decision, in tokens; None on admission."""


@dataclass(frozen=True, slots=True)
class CloudLoad:
    """How loaded the scheduler is at this moment."""

    running: int
    """Requests in the batch."""
    waiting: int
    """Requests that wait for a slot in the batch."""
    kv_cache_usage: float
    """Share of the KV cache blocks in use, 0 to 1."""
    capacity: int = 0
    """The most requests that run at once (vLLM's `max_num_seqs`); 0 if unknown."""
    waited_s: float = 0.0
    """Seconds since the next request in line arrived; 0 if none waits."""
    pressure: float = 0.0
    """How scarce the scarcest resource is, from 0 to 1, in a few levels with hysteresis. Policies are asked again
    when it changes."""


@dataclass(frozen=True, slots=True)
class PaceRequest:
    """A request on the device, before its first token."""

    num_prompt_tokens: int
    """Tokens of the whole prompt."""
    max_tokens: int
    """The longest that the answer can get, in tokens."""


FLUSH_WITHIN_S = 0.5
"""The default of `PaceTarget.flush_within`, in seconds."""


@dataclass(frozen=True, slots=True)
class PaceTarget:
    """How the user wants the answer shown.

    Raises:
        ConfigurationError: a rate or gap that is not positive, or a negative bound.
    """

    rate: float
    """The most tokens per second; ``inf`` shows each token as it comes."""
    max_gap: float = 1.0
    """The longest gap, in seconds, to which a pacer may hold back a buffered token so that the buffer lasts. After
    about one second a user's flow of thought is interrupted (Nielsen, Usability Engineering, 1993). If 1 / `rate`
    is longer, that is the limit."""
    flush_within: float = FLUSH_WITHIN_S
    """Seconds after the end of the answer by which all of it is shown, if necessary faster than `rate`. 0 shows
    the remaining tokens at once; ``inf`` keeps to `rate`."""

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ConfigurationError(f"rate must be a positive number of tokens per second, not {self.rate}")
        if not self.max_gap > 0:
            raise ConfigurationError(f"max_gap must be a positive number of seconds, not {self.max_gap}")
        if not self.flush_within >= 0:
            raise ConfigurationError(f"flush_within must be a number of seconds >= 0, not {self.flush_within}")


class Pacer(Protocol):
    """Decides when each token of one answer is shown. Each answer has its own pacer."""

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
        """Return when to show the next token, in seconds on the clock of `now`. At or before `now` means at once.

        The session calls this when the token is buffered and the one before it has been shown. It calls again for
        the same token whenever the state of the answer changes in the meantime. The last result counts: when that
        time comes, the token is shown. So a pacer must not assume that an earlier result was followed; `shown` and
        `shown_at` say whether a token was shown. The first token of an answer is shown on arrival, whatever this
        returns.

        All arguments but `now` are keywords, and all are passed each time; ``**_`` takes the others.
        Estimates may be wrong, and may change from call to call.

        Args:
            now: seconds since the request began.
            shown: tokens of the answer that have been shown.
            shown_at: when the last of them was shown, on the clock of `now`; None before the first.
            buffered: received tokens that have not been shown, >= 1.
            complete: True when no token will follow the buffered ones.
            cloud_left: tokens that the cloud may still send if the device does not take over before; 0 if it sends
                no more, None if its budget is not known.
            cloud_step: estimated seconds from one cloud token to the next; None before there is an estimate.
            ready_in: the device's estimate of the seconds until it has caught up; 0 after the take-over, None if
                it has no estimate or takes no part.
            device_step: estimated seconds per token of the device; None before there is an estimate.
            idle: seconds since the last token arrived, from either side.
        """


class PDDSpecs(Protocol):
    """All hooks. An implementation may take fewer arguments than listed here."""

    @hookspec(firstresult=True)
    def pdd_decode_budget(self, request: BudgetRequest, load: CloudLoad) -> int | None:
        """Return how many tokens the cloud may decode, at least 1, or None to leave it to the next policy.

        Called on admission, and again when ``load.pressure`` has changed. The result counts from the first token
        of the answer.
        """

    @hookspec(firstresult=True)
    def pdd_plan(self, request: PlanRequest, device: DeviceState, cloud: CloudState) -> Plan | None:
        """Return who makes an answer and how, or None to leave it to the next policy."""

    @hookspec(firstresult=True)
    def pdd_pace(self, request: PaceRequest, target: PaceTarget) -> Pacer | None:
        """Return a new pacer for one answer, or None to leave it to the next policy."""

    @hookspec(firstresult=True)
    def pdd_refine(self, scores: PromptScores | None, prompt: RefinePrompt, ratio: float) -> Sequence[int] | None:
        """Return the indices of the prompt tokens to keep, or None to leave it to the next policy.

        `scores` is None if no attention was captured. `ratio` is the share of the tokens to keep, above 0 and at
        most 1. The tokens of ``prompt.protected`` must be kept, and count towards it. The result is a list or
        tuple of ints that increase strictly. It is checked.
        """

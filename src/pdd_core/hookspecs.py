"""The hooks a policy plugin can implement. Each is resolved once per request, never per token.

Implement one in a module of your own and name that module in the entry-point group ``pdd``::

    from pdd_core import hookimpl

    @hookimpl
    def pdd_decode_budget(request, load):
        return 8 if load.running > 32 else None
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import pluggy

PROJECT = "pdd"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class BudgetRequest:
    """An opted-in request, as the scheduler sees it on admission."""

    handoff_id: str
    num_prompt_tokens: int
    max_tokens: int
    """The client's own limit on the answer."""
    decode_budget: int | None
    """The budget the client asked for, if it did."""
    priority: int


@dataclass(frozen=True, slots=True)
class CloudLoad:
    """What the scheduler holds at this moment."""

    running: int
    waiting: int
    kv_cache_usage: float
    """Share of KV blocks in use, 0 to 1."""


@dataclass(frozen=True, slots=True)
class PaceRequest:
    """A request on the device, before its first token."""

    num_prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class PaceTarget:
    """How the user wants the answer shown."""

    rate: float
    """Tokens per second; ``inf`` shows each token as it comes."""


class Pacer(Protocol):
    """Shows one answer. Not shared between answers."""

    def due(self, now: float, *, buffered: int, complete: bool, ready_in: float | None) -> float:
        """Return when to show the next token, in the clock of `now` (seconds). At or before `now` means at once.

        Called when a token is at hand; the first call of an answer must return `now` or earlier.

        Args:
            now: the current time.
            buffered: tokens at hand that have not been shown, >= 1.
            complete: True when no token will follow the buffered ones.
            ready_in: the device's own estimate of the seconds until it has caught up; 0 after the take-over,
                None while it has no estimate or takes no part.
        """


class PDDSpecs(Protocol):
    """All hooks. An implementation may take fewer arguments than the spec names."""

    @hookspec(firstresult=True)
    def pdd_decode_budget(self, request: BudgetRequest, load: CloudLoad) -> int | None:
        """Return how many tokens the cloud may decode (>= 1). Stops at the first result that is not None."""

    @hookspec(firstresult=True)
    def pdd_pace(self, request: PaceRequest, target: PaceTarget) -> Pacer | None:
        """Return the pacer of one answer. Stops at the first result that is not None."""

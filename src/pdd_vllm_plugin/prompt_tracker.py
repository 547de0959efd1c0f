"""Follows the scheduler: which steps compute the prompts of requests that a feature of the worker looks after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pdd_core.errors import InvalidOptIn
from pdd_core.optin import HANDOFF, OptIn, parse_opt_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm.v1.core.sched.output import SchedulerOutput

Wish = Callable[[Any, OptIn], bool]
"""Whether a feature looks after a request, by vLLM's ``NewRequestData`` and the opt-in."""


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """The part of a request's prompt that one step computes. Positions count from the prompt's first token."""

    request_id: str
    handoff_id: str
    features: frozenset[str]
    """Those that look after the request."""
    prompt_tokens: int
    start: int
    """Position of the first token that the step computes for this request."""
    tokens: int
    """How many it computes."""
    block_ids: tuple[tuple[int, ...], ...]
    """Per KV cache group: the scheduler's block ids of this request, up to the step's last token."""
    extra_args: Mapping[str, Any] = field(default_factory=dict)
    """The request's, of vLLM's ``SamplingParams``."""

    @property
    def completes(self) -> bool:
        """Is the prompt all computed with this step?"""
        return self.start + self.tokens >= self.prompt_tokens


@dataclass(slots=True)
class _Followed:
    handoff_id: str
    features: frozenset[str]
    prompt_tokens: int
    extra_args: Mapping[str, Any]
    block_ids: list[list[int]] = field(default_factory=list)
    done: bool = False
    """The prompt was computed to its end: what a preempted request repeats later counts no more."""


class PromptTracker:
    """Remembers the requests that are looked after between their first step and their last.

    Args:
        wishes: by a feature's name.
    """

    def __init__(self, wishes: Mapping[str, Wish]) -> None:
        self._wishes = dict(wishes)
        self._followed: dict[str, _Followed] = {}

    def __len__(self) -> int:
        return len(self._followed)

    def step(self, scheduler_output: SchedulerOutput) -> tuple[PromptChunk, ...]:
        """Follow a step; return what it computes of followed prompts, which in most steps is nothing."""
        if self._followed:
            for request_id in scheduler_output.finished_req_ids:
                self._followed.pop(request_id, None)
        chunks = list(self._begun(scheduler_output))
        if self._followed:
            chunks.extend(self._continued(scheduler_output))
        return tuple(chunks)

    def _looked_at(self, new: Any) -> _Followed | None:
        params = new.sampling_params
        if params is None or not params.extra_args or HANDOFF not in params.extra_args:
            return None
        try:
            opt_in = parse_opt_in(params.extra_args)
        except InvalidOptIn:
            return None  # refused in the API server, or no endpoint plugin: nobody could fetch anything
        if opt_in is None:
            return None
        features = frozenset(name for name, wants in self._wishes.items() if wants(new, opt_in))
        length = len(new.prompt_token_ids or ())
        return _Followed(opt_in.handoff_id, features, length, params.extra_args) if features else None

    def _begun(self, scheduler_output: SchedulerOutput) -> Iterator[PromptChunk]:
        for new in scheduler_output.scheduled_new_reqs:
            # Model runner V2 gets a resumed request as a new one.
            followed = self._followed.get(new.req_id) or self._looked_at(new)
            if followed is not None:
                self._followed[new.req_id] = followed
                followed.block_ids = [list(ids) for ids in new.block_ids]
                yield from self._chunk(new.req_id, followed, new.num_computed_tokens, scheduler_output)

    def _continued(self, scheduler_output: SchedulerOutput) -> Iterator[PromptChunk]:
        cached = scheduler_output.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            followed = self._followed.get(request_id)
            if followed is None or followed.done:
                continue
            fresh = cached.new_block_ids[index] or ()
            if request_id in cached.resumed_req_ids:
                followed.block_ids = [list(ids) for ids in fresh]
            else:
                for ids, more in zip(followed.block_ids, fresh, strict=False):
                    ids.extend(more)
            yield from self._chunk(request_id, followed, cached.num_computed_tokens[index], scheduler_output)

    def _chunk(
        self, request_id: str, followed: _Followed, start: int, scheduler_output: SchedulerOutput
    ) -> Iterator[PromptChunk]:
        tokens = scheduler_output.num_scheduled_tokens.get(request_id, 0)
        if followed.done or not tokens:
            return
        blocks = tuple(tuple(ids) for ids in followed.block_ids)
        chunk = PromptChunk(
            request_id,
            followed.handoff_id,
            followed.features,
            followed.prompt_tokens,
            start,
            tokens,
            blocks,
            followed.extra_args,
        )
        followed.done = chunk.completes
        yield chunk

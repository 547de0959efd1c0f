"""Follows the scheduler: which of a step's tokens are the window of a request that wants scores: its question."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pdd_core.errors import InvalidOptIn
from pdd_core.optin import REFINE_RATIO, parse_opt_in
from pdd_vllm_plugin.question_window import window_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm.v1.core.sched.output import SchedulerOutput


@dataclass(frozen=True, slots=True)
class WindowChunk:
    """The part of a request's window that one step computes. Positions count from the prompt's first token."""

    request_id: str
    handoff_id: str
    prompt_tokens: int
    start: int
    """Position of the first token that the step computes for this request."""
    tokens: int
    """How many it computes."""
    first: int
    """Position of the first query that counts."""
    last: int
    """Position behind the last query that counts."""
    block_ids: tuple[tuple[int, ...], ...]
    """Per KV cache group: the scheduler's block ids of this request, up to the step's last token."""
    window: int = 0
    """Tokens of the whole window; 0 for as many as are configured."""

    @property
    def completes(self) -> bool:
        """Is the prompt all computed with this step?"""
        return self.last == self.prompt_tokens


@dataclass(slots=True)
class _Followed:
    handoff_id: str
    prompt_tokens: int
    window: int
    block_ids: list[list[int]] = field(default_factory=list)
    done: bool = False
    """The prompt was computed to its end: what a preempted request repeats later counts no more."""


class WindowTracker:
    """Remembers the opted-in requests between their first step and their last.

    Args:
        window: how many of a prompt's last tokens count at most: a request says how many its question has.
        most: tokens of the longest prompt that is refined; longer ones are not followed.
    """

    def __init__(self, window: int, *, most: int) -> None:
        self._window = window
        self._most = most
        self._followed: dict[str, _Followed] = {}

    def __len__(self) -> int:
        return len(self._followed)

    def step(self, scheduler_output: SchedulerOutput) -> tuple[WindowChunk, ...]:
        """Follow a step; return the parts of it that count, which in most steps are none."""
        for request_id in scheduler_output.finished_req_ids:
            self._followed.pop(request_id, None)
        chunks = list(self._begun(scheduler_output))
        if self._followed:
            chunks.extend(self._continued(scheduler_output))
        return tuple(chunks)

    def _wish_of(self, new: Any) -> _Followed | None:
        params = new.sampling_params
        if params is None or not params.extra_args or REFINE_RATIO not in params.extra_args:
            return None
        try:
            opt_in = parse_opt_in(params.extra_args)
        except InvalidOptIn:
            return None  # refused in the API server, or no endpoint plugin: nobody could fetch the scores
        length = len(new.prompt_token_ids or ())
        if opt_in is None or not 0 < length <= self._most:
            return None
        return _Followed(opt_in.handoff_id, length, window_of(params.extra_args, most=self._window))

    def _begun(self, scheduler_output: SchedulerOutput) -> Iterator[WindowChunk]:
        for new in scheduler_output.scheduled_new_reqs:
            # Model runner V2 gets a resumed request as a new one.
            followed = self._followed.get(new.req_id) or self._wish_of(new)
            if followed is not None:
                self._followed[new.req_id] = followed
                followed.block_ids = [list(ids) for ids in new.block_ids]
                yield from self._chunk(new.req_id, followed, new.num_computed_tokens, scheduler_output)

    def _continued(self, scheduler_output: SchedulerOutput) -> Iterator[WindowChunk]:
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
    ) -> Iterator[WindowChunk]:
        tokens = scheduler_output.num_scheduled_tokens.get(request_id, 0)
        length = followed.prompt_tokens
        first, last = max(length - followed.window, start), min(length, start + tokens)
        if followed.done or first >= last:
            return
        followed.done = last == length
        blocks = tuple(tuple(ids) for ids in followed.block_ids)
        yield WindowChunk(
            request_id, followed.handoff_id, length, start, tokens, first, last, blocks, followed.window
        )

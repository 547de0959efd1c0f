"""Which of a step's tokens are the window of a request that wants scores: the question at its prompt's end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pdd_vllm_plugin.question_window import window_of

if TYPE_CHECKING:
    from pdd_core.optin import OptIn
    from pdd_vllm_plugin.prompt_tracker import PromptChunk, Wish

FEATURE = "refine"


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


def wants_scores(most: int) -> Wish:
    """Return which requests are followed: those that want a refined prompt, of at most `most` tokens."""

    def wants(new: Any, opt_in: OptIn) -> bool:
        return opt_in.refine_ratio is not None and 0 < len(new.prompt_token_ids or ()) <= most

    return wants


def windows(chunks: tuple[PromptChunk, ...], most: int) -> tuple[WindowChunk, ...]:
    """Return the parts of the prompts' windows in `chunks`, which in most steps are none.

    Args:
        chunks: what a step computes of the prompts that are followed.
        most: tokens of a window, where the request does not say that its question has fewer.
    """
    found = []
    for chunk in chunks:
        length, end = chunk.prompt_tokens, chunk.start + chunk.tokens
        window = window_of(chunk.extra_args, most=most)
        first, last = max(length - window, chunk.start), min(length, end)
        if FEATURE in chunk.features and first < last:
            where = (chunk.start, chunk.tokens, first, last, chunk.block_ids, window)
            found.append(WindowChunk(chunk.request_id, chunk.handoff_id, length, *where))
    return tuple(found)

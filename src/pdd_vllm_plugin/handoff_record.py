"""What the API server remembers of one opted-in request."""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from pdd_core.handoff import DecodeBudget, HandoffState, KVCells, NoRefinement, Refinement, Status
from pdd_core.optin import STOP_REASON
from pdd_vllm_plugin.held_bytes import LOGPROB, NUMBER, SLOT, SPAN, held_bytes
from pdd_vllm_plugin.kv.offer import NOT_REQUESTED as NO_KV_REQUESTED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pdd_core.kv.geometry import NoKV
    from pdd_core.optin import OptIn

_ID_BYTES = 4
_LEAST_LOGPROB = -9999.0
"""As in vLLM's own answers: JSON has no infinity. (``max`` takes it for NaN, too, as it comes first.)"""
NOT_REQUESTED = NoRefinement(reason="not_requested", message="the request names no pdd_refine_ratio")
NOT_ENABLED = NoRefinement(
    reason="not_enabled",
    message="this server refines no prompts: start it with --worker-cls pdd_vllm_plugin.worker.PDDWorker",
)
PENDING = NoRefinement(reason="pending", message="the prompt is still being processed; ask again with ?wait=S")
_ABORTED = frozenset({"abort", "error"})


def _ids() -> array[int]:
    # 4 bytes per id: a list of Python ints takes nine times as much, and long prompts are kept for minutes
    return array("I")


@dataclass(slots=True)
class HandoffRecord:
    """State of one request, written by the recorder in the same event-loop turn that streams a token.

    So a reader sees exactly the ids that have been streamed: never more, never a placeholder. Of a request that is
    not streamed, it sees those that vLLM has taken in.
    """

    opt_in: OptIn
    completion_id: str
    engine_request_id: str
    """Unique, unlike the completion's id, which a client can choose (``X-Request-Id``)."""
    model: str
    tokenizer: str
    sampling_params: Mapping[str, Any]
    created: float
    """Unix seconds."""
    touched: float
    """Monotonic seconds of the last change: time to live counts from here once the request has ended."""
    status: Status = Status.RUNNING
    started: bool = False
    """False between vLLM's call of ``generate`` and its first iteration, which may never come."""
    cancelled: bool = False
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_token_ids: array[int] = field(default_factory=_ids)
    output_token_ids: array[int] = field(default_factory=_ids)
    output_logprobs: list[dict[int, float]] | None = None
    text: list[str] = field(default_factory=list)
    decode_budget: DecodeBudget | None = None
    budget_report: Mapping[str, Any] | None = None
    """What the scheduler last told of the budget: see `BudgetedRequest.report`."""
    changed: anyio.Event = field(default_factory=anyio.Event)
    """Set when the status changes."""
    refinement: Refinement | NoRefinement = NOT_REQUESTED
    refining: bool = False
    """The refined prompt is being made."""
    refined: anyio.Event = field(default_factory=anyio.Event)
    """Set when it is known what becomes of the refinement."""
    kv: KVCells | NoKV = NO_KV_REQUESTED
    """What is known of the prompt's cells."""
    kv_asked: bool = False
    """The workers were asked to keep them, whatever is known of them since."""
    kv_found: bool = False
    """The cells were there once: if they are not, they are gone."""
    stored: Refinement | NoRefinement | None = None
    """With what refinement it was given to the shared store; None: it was not."""
    _text_bytes: int = 0
    """Of `text`."""
    _logprob_bytes: int = 0
    """Of `output_logprobs`."""
    _given_bytes: int | None = None
    """Of what came with the request and stays as it is; None: nobody has asked yet."""

    @property
    def engine(self) -> int | None:
        """Rank of the engine that has the request, once its scheduler has told it."""
        return None if self.budget_report is None else self.budget_report["engine"]

    @property
    def num_tokens(self) -> int:
        """Token ids held."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def size(self) -> int:
        """What is held, in token ids of 4 bytes: the ids, and all else whose length a client decides."""
        if self._given_bytes is None:
            given = sum(map(held_bytes, self.sampling_params.values()))
            self._given_bytes = given + SPAN * len(self.opt_in.protect)
        held = self._given_bytes + self._text_bytes + self._logprob_bytes
        if isinstance(self.refinement, Refinement):
            held += 2 * NUMBER * len(self.refinement.kept_indices) + SPAN * len(self.refinement.protected)
        return self.num_tokens + held // _ID_BYTES

    def add_output(self, completion: Any, *, delta: bool) -> None:
        """Take in one ``CompletionOutput``: new tokens only if `delta`, else the whole answer so far."""
        known = 0 if delta else len(self.output_token_ids)
        if not delta:
            self.text.clear()
            self._text_bytes = 0
        self.output_token_ids.extend(completion.token_ids[known:])
        if completion.text:
            self.text.append(completion.text)
            self._text_bytes += sys.getsizeof(completion.text) + SLOT
        if completion.logprobs:
            rows = [
                {token: max(_LEAST_LOGPROB, entry.logprob) for token, entry in row.items()}
                for row in completion.logprobs[known:]
            ]
            self._logprob_bytes += sum(sys.getsizeof(row) + SLOT + LOGPROB * len(row) for row in rows)
            if self.output_logprobs is None:
                self.output_logprobs = []
            self.output_logprobs += rows
        if completion.finish_reason is not None:
            self.end(completion.finish_reason, completion.stop_reason)

    def end(self, finish_reason: str | None, stop_reason: int | str | None = None) -> None:
        """Record how the cloud's part ended. The first ending counts."""
        if self.status is not Status.RUNNING:
            return
        self.finish_reason, self.stop_reason = finish_reason, stop_reason
        if finish_reason is None or finish_reason in _ABORTED:
            self.status = Status.ABORTED
        elif stop_reason == STOP_REASON:
            self.status = Status.HANDED_OFF
        else:
            self.status = Status.FINISHED
        # a string for each token takes ten times as much
        self.text = ["".join(self.text)] if self.text else []
        self._text_bytes = sum(map(sys.getsizeof, self.text))
        self.changed.set()
        # With an output token it is about to begin, also when that token is the answer's last (a budget of 1).
        if not self.output_token_ids:
            self.refined_as(NoRefinement(reason="failed", message="the request ended before its first token"))

    @property
    def refinement_pending(self) -> bool:
        """Whether a refined prompt may still come."""
        return isinstance(self.refinement, NoRefinement) and self.refinement.reason == "pending"

    def refined_as(self, refinement: Refinement | NoRefinement) -> None:
        """Record what became of the refinement."""
        if self.refinement_pending:
            self.refinement = refinement
        self.refined.set()

    def state(self, *, expires: float, after: int = 0) -> HandoffState:
        """Return the state as it goes over the wire, output ids from `after` on."""
        return HandoffState(
            handoff_id=self.opt_in.handoff_id,
            request_id=self.completion_id,
            model=self.model,
            tokenizer=self.tokenizer,
            created=self.created,
            expires=expires,
            status=self.status,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            prompt_token_ids=self.prompt_token_ids.tolist(),
            output_token_ids=self.output_token_ids[after:].tolist(),
            after=after,
            output_logprobs=self.output_logprobs[after:] if self.output_logprobs is not None else None,
            sampling_params=dict(self.sampling_params),
            decode_budget=self.decode_budget,
            refinement=self.refinement,
            kv=self.kv,
        )

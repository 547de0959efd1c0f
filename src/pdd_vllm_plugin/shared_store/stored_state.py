"""One ended state as it lies in the store, and the answers that are made of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from pdd_core.handoff import HandoffState, NoRefinement
from pdd_core.state_request import Verb
from pdd_vllm_plugin import openai_json
from pdd_vllm_plugin.shared_store.names import seal, unseal

if TYPE_CHECKING:
    from pdd_core.state_request import StateRequest
    from pdd_vllm_plugin.handoff_record import HandoffRecord


class StoredState(BaseModel):
    """The value, before it is sealed with the handoff id."""

    state: HandoffState
    text: str
    """Of the answer: OpenAI's shape has it, and the state does not."""

    @property
    def pending(self) -> bool:
        """Whether its refined prompt was still being made."""
        refinement = self.state.refinement
        return isinstance(refinement, NoRefinement) and refinement.reason == "pending"

    def answer(self, request: StateRequest) -> Response:
        """Answer `Verb.READ` or `Verb.RETRIEVE` as the server does that has the record."""
        if request.verb is Verb.RETRIEVE:
            return JSONResponse(openai_json.chat_completion(self.state, self.text))
        state, after = self.state, request.after
        if after:
            logprobs = None if state.output_logprobs is None else state.output_logprobs[after:]
            later = {
                "after": after,
                "output_token_ids": state.output_token_ids[after:],
                "output_logprobs": logprobs,
            }
            state = state.model_copy(update=later)
        return Response(state.model_dump_json(), media_type="application/json")


def encode(record: HandoffRecord, *, expires_in: float) -> bytes:
    """Return the value of an ended record: about 7 bytes per token id, in milliseconds per 100,000 of them."""
    state = record.state(expires=time.time() + expires_in)
    value = StoredState.model_construct(state=state, text="".join(record.text))
    return seal(record.opt_in.handoff_id, value.model_dump_json().encode())


def decode(handoff_id: str, value: bytes) -> StoredState:
    """Return what `encode` was given.

    Raises:
        ValueError: it was not written by `encode`, or for another id.
        SchemaVersionError: it was written by another major version.
    """
    return StoredState.model_validate_json(unseal(handoff_id, value))

"""One ended state as it lies in the store, and the answers that are made of it."""

from __future__ import annotations

import time
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from pdd_core.handoff import HandoffState, KVCells, NoRefinement
from pdd_core.kv.geometry import NoKV
from pdd_core.state_request import Verb
from pdd_vllm_plugin import openai_json
from pdd_vllm_plugin.shared_store.names import seal, unseal

if TYPE_CHECKING:
    from pdd_core.state_request import StateRequest
    from pdd_vllm_plugin.handoff_record import HandoffRecord

ELSEWHERE = NoKV(reason="gone", message="the cells can be had from the server that computed them, and no other")
_LENGTH = 4
"""Bytes of the length of the JSON, which comes first."""
_ID = "<u4"


class StoredState(BaseModel):
    """A value, but for its token ids: these follow as they lie in memory, which costs next to nothing."""

    state: HandoffState
    text: str
    """Of the answer: OpenAI's shape has it, and the state does not."""
    prompt_tokens: int
    """How many of the ids that follow are the prompt's."""

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
    """Return the value of an ended record, sealed: 4 bytes per token id, and the rest as JSON.

    It is quick also for long prompts: as long as Python works here, the streams in the other thread wait.
    """
    none = array("I")
    rest = replace(record, prompt_token_ids=none, output_token_ids=none)
    if isinstance(record.kv, KVCells):
        rest.kv = ELSEWHERE
    head = StoredState(
        state=rest.state(expires=time.time() + expires_in),
        text="".join(record.text),
        prompt_tokens=len(record.prompt_token_ids),
    )
    json = head.model_dump_json().encode()
    ids = [np.asarray(ids, _ID).tobytes() for ids in (record.prompt_token_ids, record.output_token_ids)]
    return seal(record.opt_in.handoff_id, b"".join([len(json).to_bytes(_LENGTH), json, *ids]))


def decode(handoff_id: str, value: bytes) -> StoredState:
    """Return what `encode` was given.

    Raises:
        ValueError: it was not written by `encode`, or for another id.
        SchemaVersionError: it was written by another major version.
    """
    content = unseal(handoff_id, value)
    end = _LENGTH + int.from_bytes(content[:_LENGTH])
    head = StoredState.model_validate_json(content[_LENGTH:end])
    ids = np.frombuffer(content[end:], _ID).tolist()
    prompt, output = ids[: head.prompt_tokens], ids[head.prompt_tokens :]
    state = head.state.model_copy(update={"prompt_token_ids": prompt, "output_token_ids": output})
    return head.model_copy(update={"state": state})

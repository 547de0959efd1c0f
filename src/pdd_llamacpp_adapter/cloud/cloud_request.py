"""A request in the fields of vLLM's ``/v1/completions``: the chat route's parsers would swallow token ids."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pdd_llamacpp_adapter.request import GrammarKind

if TYPE_CHECKING:
    from pdd_core.optin import OptIn
    from pdd_llamacpp_adapter.request import AnswerRequest, Grammar


def openai_fields(request: AnswerRequest) -> dict[str, Any]:
    """Return the fields that OpenAI's API has too."""
    fields: dict[str, Any] = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
    }
    optional = {
        "seed": request.seed,
        "stop": list(request.stop) or None,
        "logprobs": request.logprobs,
        "logit_bias": {str(token): bias for token, bias in request.logit_bias.items()} or None,
    }
    return fields | {name: value for name, value in optional.items() if value is not None}


def vllm_fields(request: AnswerRequest, opt_in: OptIn | None) -> dict[str, Any]:
    """Return vLLM's own fields. All sampling fields are sent: a model's generation_config would fill the gaps."""
    body: dict[str, Any] = {
        "top_k": request.top_k,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "min_tokens": request.min_tokens,
        "stop_token_ids": list(request.stop_token_ids),
        "return_token_ids": True,
    }
    if request.ignore_eos:
        body["ignore_eos"] = True
    if request.logprobs is not None:
        body["return_tokens_as_token_ids"] = True
    if request.grammar is not None:
        body["structured_outputs"] = _structured_outputs(request.grammar)
    if opt_in is not None:
        body["vllm_xargs"] = opt_in.xargs()
    if request.cache_salt is not None:
        body["cache_salt"] = request.cache_salt
    return body


def _structured_outputs(grammar: Grammar) -> dict[str, Any]:
    """Return vLLM's ``StructuredOutputsParams``."""
    match grammar.kind:
        case GrammarKind.JSON:
            return {"json": json.loads(grammar.text)}
        case GrammarKind.JSON_OBJECT:
            return {"json_object": True}
        case kind:
            return {kind.value: grammar.text}

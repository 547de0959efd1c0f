"""A request in the fields of vLLM's ``/v1/completions``: the chat route's parsers would swallow token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pdd_core.optin import TOKENIZER
from pdd_llamacpp_adapter.request import GrammarKind, SamplingParams

if TYPE_CHECKING:
    from pdd_core.optin import OptIn
    from pdd_llamacpp_adapter.request import AnswerRequest, Grammar

_IF_SET = frozenset({"stop", "logit_bias", "ignore_eos", "bad_words", "include_stop_str_in_output"})
"""Sampling parameters that are not sent while they are empty."""


def body_fields(request: AnswerRequest, opt_in: OptIn | None, *, tokenizer: str | None = None) -> dict[str, Any]:
    """Return the body's fields, but for `model`, `prompt` and `stream`.

    `tokenizer` is the digest that the cloud is to have, if it knows the field; one that has another refuses.
    """
    body = {"max_tokens": request.max_tokens, **_sampling(request), "return_token_ids": True}
    # each event then says how many tokens it makes: `cloud_stream.py` notices one that is lost or comes twice
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    if request.logprobs is not None:
        body |= {"logprobs": request.logprobs, "return_tokens_as_token_ids": True}
    if request.grammar is not None:
        body["structured_outputs"] = _structured_outputs(request.grammar)
    xargs: dict[str, Any] = {} if opt_in is None else opt_in.xargs()
    if tokenizer is not None:
        xargs[TOKENIZER] = tokenizer
    if xargs:
        body["vllm_xargs"] = xargs
    if request.cache_salt is not None:
        body["cache_salt"] = request.cache_salt
    return body


def _sampling(request: SamplingParams) -> dict[str, Any]:
    """Return the sampling parameters, defaults too: a model's generation_config would fill the gaps."""
    values = {parameter.name: getattr(request, parameter.name) for parameter in fields(SamplingParams)}
    return {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if value is not None and (value or name not in _IF_SET)
    }


def _structured_outputs(grammar: Grammar) -> dict[str, Any]:
    """Return vLLM's ``StructuredOutputsParams``."""
    match grammar.kind:
        case GrammarKind.JSON:
            return {"json": json.loads(grammar.text)}
        case GrammarKind.JSON_OBJECT:
            return {"json_object": True}
        case GrammarKind.CHOICE:
            return {"choice": json.loads(grammar.text)}
        case kind:
            return {kind.value: grammar.text}

"""What becomes of every field that OpenAI's or vLLM's API has in a request for an answer.

A field is obeyed, or it is refused by name, or it has no meaning here. None that changes an answer is dropped.
The bodies refuse by this table (`refuse_fields`), and docs/reference/fields.md is written from it. Tests compare
it with the bodies, and with the request models of the installed openai and vLLM. A field inside another has a dot
in its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pdd_core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping


class Fate(StrEnum):
    """What becomes of a field."""

    OBEYED = "obeyed"
    REFUSED = "refused"
    """Unless its value asks for nothing."""
    NO_MEANING = "no meaning here"
    """The answer is the same with and without it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One field's fate."""

    fate: Fate
    note: str = ""
    """What is particular about it, why it is refused, or why it has no meaning."""
    passes: tuple[Any, ...] = ()
    """Of a refused field, the values besides null that ask for nothing."""


def _obeyed(names: str, note: str = "") -> dict[str, Row]:
    return dict.fromkeys(names.split(), Row(Fate.OBEYED, note))


def _refused(name: str, why: str, *passes: Any) -> dict[str, Row]:
    return {name: Row(Fate.REFUSED, why, passes)}


def _no_meaning(names: str, why: str) -> dict[str, Row]:
    return dict.fromkeys(names.split(), Row(Fate.NO_MEANING, why))


_GUIDED = {
    name: Row(Fate.REFUSED, f"use structured_outputs.{name.removeprefix('guided_')}")
    for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
} | {
    name: Row(Fate.REFUSED, "the cloud's engine is chosen where vLLM is started")
    for name in ("guided_decoding_backend", "guided_whitespace_pattern")
}
"""Fields that vLLM had until 0.12: it ignores them now, and the answer is not constrained."""

_SHARED = {
    **_obeyed("model", "the served model's name, `default`, or left out"),
    **_obeyed("temperature top_p frequency_penalty presence_penalty logit_bias seed stop"),
    **_obeyed("top_k min_p repetition_penalty min_tokens stop_token_ids ignore_eos"),
    **_obeyed("allowed_token_ids bad_words include_stop_str_in_output", "as in vLLM, on both engines"),
    **_obeyed("structured_outputs", "`json`, `json_object`, `regex`, `choice`, `grammar` (Lark)"),
    **_obeyed("cache_salt", "in the cloud's prefix cache; the device has one user"),
    **_obeyed("stream stream_options stream_options.include_usage"),
    **_obeyed("n", "1: one answer is made at a time"),
    **_obeyed("user prompt_cache_key", "tells the planner which answers are alike"),
    **_refused("structured_outputs.structural_tag", "the device's grammars have no structural tags"),
    **_refused("structured_outputs.whitespace_pattern", "white space is as the cloud's settings have it"),
    **_refused("structured_outputs.disable_any_whitespace", "a setting of the cloud's vLLM", False),
    **_refused("structured_outputs.disable_additional_properties", "a setting of the cloud's vLLM", False),
    **_GUIDED,
    **_refused("use_beam_search", "an answer is one sequence of tokens", False),
    **_refused("best_of", "one answer is made at a time", 1),
    **_refused("length_penalty", "it belongs to beam search", 1, 1.0),
    **_refused("watermarking", "the device writes no watermark", False),
    **_refused("prompt_logprobs", "the logprobs of a prompt are not computed"),
    **_refused("logprob_token_ids", "the logprobs of chosen tokens are not computed; use top_logprobs", []),
    **_refused("logits_processors", "no code of a request's is run", []),
    **_refused("skip_special_tokens", "control tokens are never shown", True),
    **_refused("spaces_between_special_tokens", "control tokens are never shown", True),
    **_refused("truncate_prompt_tokens", "no part of a prompt is dropped"),
    **_refused("thinking_token_budget", "the length of thoughts cannot be bounded; use max_tokens"),
    **_refused("repetition_detection", "repetition does not end an answer; use frequency_penalty", {}),
    **_refused("priority", "requests are answered in the order in which they come", 0),
    **_refused("kv_transfer_params", "the cloud's part is requested by this server itself", {}),
    **_refused("ec_transfer_params", "the cloud's part is requested by this server itself", {}),
    **_refused("vllm_xargs", "the cloud's part is requested by this server itself", {}),
    **_refused("mm_processor_kwargs", "this model takes only text", {}),
    **_refused("media_io_kwargs", "this model takes only text", {}),
    **_refused("prompt_embeds", "a prompt is text or token ids"),
    **_refused("return_prompt_text", "the prompt is not returned as text; use return_token_ids", False),
    **_no_meaning("truncation_side", "it belongs to truncate_prompt_tokens"),
    **_no_meaning("return_token_offsets mm_payload return_mm_kwargs", "for routes of vLLM's that only render"),
    **_no_meaning("routed_experts_prompt_start", "experts are not returned, in vLLM either unless it is told to"),
    **_no_meaning("request_id session_id", "names a request in the server's books; send the header x-request-id"),
    **_no_meaning("stream_interval", "each token is streamed when it is shown"),
    **_no_meaning("stream_options.include_obfuscation", "a padding against listeners"),
    **_no_meaning("metadata safety_identifier", "nobody keeps books by it"),
    **_no_meaning("store", "what is kept, and for how long, is the server's setting"),
    **_no_meaning("service_tier", "there is one tier"),
    **_no_meaning("prompt_cache_options prompt_cache_retention", "prompts stay as long as there is room"),
}  # fmt: skip

_OPENAI_CHAT = {
    **_obeyed("tools tool_choice parallel_tool_calls top_logprobs"),
    **_obeyed("chat_template_kwargs"),
    **_refused("moderation", "there is no moderation"),
}

_ID_FIELDS = _obeyed("return_token_ids return_tokens_as_token_ids stream_options.continuous_usage_stats")

CHAT: Mapping[str, Row] = {
    **_SHARED,
    **_OPENAI_CHAT,
    **_ID_FIELDS,
    **_obeyed("messages max_tokens max_completion_tokens logprobs"),
    **_obeyed("response_format", "`text`, `json_object`, also with `schema` as in llama.cpp, `json_schema`"),
    **_obeyed("functions function_call", "answered by `function_call`, one call at most"),
    **_obeyed("modalities", "`text`"),
    **_obeyed("echo", "the last message, if it is the assistant's, comes first"),
    **_obeyed("include_reasoning"),
    **_obeyed("pdd", "`tokens`: chunks say who made them; `rate`, `plan`, `refine`: settings for this answer"),
    **_obeyed("add_generation_prompt continue_final_message add_special_tokens documents reasoning_effort"),
    **_refused("chat_template", "the model's own template is used"),
    **_refused("audio", "this model makes only text"),
    **_refused("web_search_options", "nothing is searched"),
    **_refused("verbosity", "a model of this kind has no such control; say it in a message", "medium"),
    **_no_meaning("prediction", "it makes an answer faster, not different"),
}

COMPLETIONS: Mapping[str, Row] = {
    **_SHARED,
    **_ID_FIELDS,
    **_obeyed("prompt max_tokens logprobs response_format"),
    **_obeyed("echo", "without logprobs"),
    **_refused("pdd", "a field of chat completions", {}),
    **_obeyed("suffix", "for a model with fill-in-the-middle tokens; else refused"),
    **_obeyed("add_special_tokens"),
}

RESPONSES: Mapping[str, Row] = {
    **_SHARED,
    **_OPENAI_CHAT,
    **_refused("pdd", "a field of chat completions", {}),
    **_obeyed("input instructions max_output_tokens text text.format"),
    **_obeyed("metadata", "returned with the response"),
    **_obeyed("include", "`message.output_text.logprobs`; the others are of tools that are not run here"),
    **_obeyed("truncation", "nothing is dropped: what does not fit is refused, with `auto`, too"),
    **_obeyed("reasoning", "`effort` as `reasoning_effort` in a chat; summaries are not made"),
    **_obeyed("include_reasoning"),
    **_refused("previous_response_id", "nothing is stored here, send the whole conversation as input"),
    **_refused("conversation", "nothing is stored here, send the whole conversation as input"),
    **_refused("prompt", "nothing is stored here, send the prompt's text as instructions and input"),
    **_refused("previous_input_messages", "send the whole conversation as input", []),
    **_refused("background", "a response is not kept for later", False),
    **_refused("background_options", "a response is not kept for later"),
    **_refused("context_management", "no part of the input is dropped or summed up", []),
    **_refused("enable_response_messages", "the messages are not returned", False),
    **_refused("text.verbosity", "a model of this kind has no such control; say it in a message", "medium"),
    **_refused("access_programs", "there are none here"),
    **_refused("image", "this model makes only text"),
    **_no_meaning("max_tool_calls", "it bounds OpenAI's own tools, which are not run here"),
}


def refuse_fields(body: Mapping[str, Any], table: Mapping[str, Row]) -> None:
    """Refuse what `table` says is refused, unless its value asks for nothing.

    Raises:
        InvalidRequest: there is such a field; `param` is its name.
    """
    for name, row in table.items():
        outer, _, inner = name.partition(".")
        if row.fate is not Fate.REFUSED or outer not in body:
            continue
        value = body[outer]
        if inner:
            value = value.get(inner) if isinstance(value, dict) else None
        if value is None or any(type(value) is type(one) and value == one for one in row.passes):
            continue
        passing = "".join(f", except as {one!r}" for one in row.passes[:1])
        message = f"{name} is not supported{passing}: {row.note}"
        raise InvalidRequest(message, param=name, code="unsupported_parameter")

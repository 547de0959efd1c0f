"""What a request is told of its cells when it begins: that they will be there, or why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_core.handoff import KVCells
from pdd_core.kv.geometry import NoKV
from pdd_core.optin import KV

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pdd_core.optin import OptIn
    from pdd_vllm_plugin.config import PDDConfig
    from pdd_vllm_plugin.kv.shelves import Shelves

NOT_REQUESTED = NoKV(reason="not_requested", message=f"the request does not name {KV}")
LORA = NoKV(reason="lora", message="the request is for a LoRA adapter, whose keys and values are not the model's")
MULTIMODAL = NoKV(reason="multimodal", message="the prompt is not made of tokens alone")
SHORT = NoKV(reason="not_captured", message="the prompt has one token, which the device has to process")
_NOT_TOKENS = ("mm_kwargs", "multi_modal_data", "prompt_embeds", "encoder_prompt")
"""Keys of vLLM's ``EngineInput`` (vllm.inputs.engine) that say so."""


def offer(opt_in: OptIn, prompt: Any, lora: Any, *, shelves: Shelves | NoKV, config: PDDConfig) -> KVCells | NoKV:
    """Return what becomes of a request's cells, before its length is looked at: see `offer_of`."""
    if not opt_in.kv:
        return NOT_REQUESTED
    if isinstance(shelves, NoKV):
        return shelves
    if lora is not None:
        return LORA
    parts: Mapping[str, Any] = prompt if isinstance(prompt, dict) else {}
    if any(parts.get(name) is not None for name in _NOT_TOKENS):
        return MULTIMODAL
    return offer_of(len(parts.get("prompt_token_ids") or ()), config)


def offer_of(prompt_tokens: int, config: PDDConfig) -> KVCells | NoKV:
    """Return what becomes of the cells of a prompt of so many tokens; 0: that is not known yet."""
    if prompt_tokens > config.kv_max_prompt_tokens:
        most = f"additional_config.pdd.kv_max_prompt_tokens ({config.kv_max_prompt_tokens})"
        return NoKV(reason="too_long", message=f"the prompt has {prompt_tokens} tokens, more than {most}")
    return SHORT if prompt_tokens == 1 else KVCells(tokens=max(0, prompt_tokens - 1))


def without_kv(sampling_params: Any) -> Any:
    """Return the parameters without the wish, so that no worker packs cells that nobody is given."""
    params = sampling_params.clone()
    params.extra_args = {name: value for name, value in params.extra_args.items() if name != KV}
    return params

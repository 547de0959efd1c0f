"""Which servers can hand no cells over, as far as their configuration shows it.

What only the loaded model shows (sliding windows, the attention backend), the workers tell in `pdd_kv_shelf`.
"""

from __future__ import annotations

from typing import Any

_CACHES = frozenset({"auto", "float32", "float16", "bfloat16"})


def why_unsupported(vllm_config: Any) -> str | None:
    """Return why the model or the settings of this server allow no cells, and what to do; None if they do."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    kinds = (
        ("use_mla", "has latent attention (MLA)"),
        ("is_attention_free", "has no attention"),
        ("is_hybrid", "has layers that are not attention"),
        ("has_inner_state", "has a recurrent state"),
        ("is_encoder_decoder", "has an encoder"),
        ("uses_mrope", "has positions of several dimensions (M-RoPE)"),
        ("uses_alibi", "has no rotary positions (ALiBi)"),
    )
    for name, what in kinds:
        if getattr(model, name, False):
            return f"the model {what}: its cells cannot be handed over"
    dtype = str(vllm_config.cache_config.cache_dtype)
    if dtype not in _CACHES:
        return f"--kv-cache-dtype {dtype} is not supported: set it to auto"
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            return f"--{name.replace('_', '-')} above 1 is not supported: set it to 1"
    return None

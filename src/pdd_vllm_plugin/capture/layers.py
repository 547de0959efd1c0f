"""Which layers are captured, and whether that works with this server's settings. Looked at once, at start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_core.errors import UnsupportedDeployment
from pdd_core.refinement.capture import choose_layers
from pdd_vllm_plugin.capture.backends import CapturingImpl
from pdd_vllm_plugin.capture.capture_layer import CaptureLayer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pdd_vllm_plugin.capture.layout import CacheLayout

OFF = 'or switch refinement off: --additional-config \'{"pdd": {"refine": "off"}}\''


def refuse_unsupported(vllm_config: Any) -> None:
    """Refuse settings under which attention would pass unseen, or could not be read.

    Raises:
        UnsupportedDeployment: names the setting to change.
    """
    if getattr(vllm_config.model_config, "use_mla", False):
        _refuse(f"models with latent attention (MLA) are not supported: leave --worker-cls out, {OFF}")
    dtype = str(vllm_config.cache_config.cache_dtype)
    if dtype not in {"auto", "float32", "float16", "bfloat16"}:
        _refuse(f"--kv-cache-dtype {dtype} is not supported: set it to auto, {OFF}")
    if getattr(vllm_config.parallel_config, "decode_context_parallel_size", 1) > 1:
        _refuse(f"--decode-context-parallel-size above 1 is not supported: set it to 1, {OFF}")
    compilation = vllm_config.compilation_config
    mixed = compilation.cudagraph_mode.mixed_mode().name if compilation.cudagraph_mode is not None else "NONE"
    if mixed == "FULL":
        _refuse(f"cudagraph_mode FULL hides prefills from Python: set FULL_AND_PIECEWISE or PIECEWISE, {OFF}")
    fused = getattr(compilation.pass_config, "fuse_attn_quant", False)
    if fused:
        _refuse(f"the fused pass fuse_attn_quant hides attention from Python: switch it off, {OFF}")


def of_target(attention_layers: Mapping[str, Any], drafter: Any | None) -> dict[str, Any]:
    """Return the layers less those of a model that speculates: vLLM has both models' in one dict.

    Args:
        attention_layers: by name, as vLLM registers them.
        drafter: the model that speculates, if there is one and this vLLM tells it. Where it does not, the names
            of a draft model's layers begin with ``draft_model.``; others go on in the numbers behind the target's,
            which `layers_of` leaves out.
    """
    drafting = set() if drafter is None else set(map(id, drafter.modules()))
    return {
        name: layer
        for name, layer in attention_layers.items()
        if id(layer) not in drafting and not name.startswith("draft_model.")
    }


def layers_of(vllm_config: Any, attention_layers: Mapping[str, Any], depths: Sequence[float]) -> dict[str, int]:
    """Return the layers to capture by name, with their numbers; those of this rank.

    Raises:
        UnsupportedDeployment: no layer can be captured, or the layers' names do not tell which is which.
    """
    seen = {name: layer for name, layer in attention_layers.items() if isinstance(layer.impl, CapturingImpl)}
    if not seen:
        backends = sorted({type(layer.impl).__name__ for layer in attention_layers.values()}) or ["none"]
        _refuse(
            f"the attention backend ({', '.join(backends)}) is not supported: "
            f"set --attention-backend FLASH_ATTN or TRITON_ATTN, {OFF}"
        )
    total = int(vllm_config.model_config.hf_text_config.num_hidden_layers)
    numbers = _numbers([name for name, layer in seen.items() if attends_to_all(layer, vllm_config)], total)
    if not numbers:
        _refuse(f"no layer of this model attends to its whole prompt: leave --worker-cls out, {OFF}")
    # a pipeline rank sees its own layers only, and none of it may be chosen
    split = vllm_config.parallel_config.pipeline_parallel_size > 1
    chosen = choose_layers(depths, range(total) if split else sorted(numbers), total)
    return {numbers[index]: index for index in chosen if index in numbers}


def capture_layers(
    chosen: Mapping[str, int], attention_layers: Mapping[str, Any], groups: Sequence[Any]
) -> dict[str, CaptureLayer]:
    """Return the chosen layers with their caches' layouts. `groups` is vLLM's ``KVCacheConfig.kv_cache_groups``.

    Raises:
        UnsupportedDeployment: a cache whose keys cannot be read.
    """
    from pdd_vllm_plugin.capture.layout import probe_layout

    result: dict[str, CaptureLayer] = {}
    layouts: dict[Any, CacheLayout] = {}
    for name, index in chosen.items():
        layer = attention_layers[name]
        number, group = next((n, group) for n, group in enumerate(groups) if name in group.layer_names)
        kind = (tuple(layer.kv_cache.shape), tuple(layer.kv_cache.stride()))
        if kind not in layouts:
            layouts[kind] = probe_layout(layer, layer.impl, layer.kv_cache)
        result[name] = CaptureLayer(index, layouts[kind], number, int(group.kv_cache_spec.block_size))
    return result


def _numbers(names: Iterable[str], total: int) -> dict[int, str]:
    """Return the layers by number, less those behind the model's `total`."""
    numbers: dict[int, str] = {}
    for name in names:
        found = [int(part) for part in name.split(".") if part.isdecimal()]
        if len(found) != 1:
            _refuse(f"the layer {name} has no single number: leave --worker-cls out, {OFF}")
        if found[0] in numbers:
            both = f"{numbers[found[0]]} and {name}"
            _refuse(f"the layers {both} have one number: leave --worker-cls out, {OFF}")
        if found[0] < total:
            numbers[found[0]] = name
    return numbers


def attends_to_all(layer: Any, vllm_config: Any) -> bool:
    """Whether a layer is plain causal attention over everything before, with keys of its own."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    impl = layer.impl
    window = getattr(impl, "sliding_window", None)
    full = window is None or window == -1 or window == (-1, -1)
    plain = getattr(impl, "alibi_slopes", None) is None
    own_cache = getattr(impl, "kv_sharing_target_layer_name", None) is None
    # vLLM's AttentionType compares as a string and does not print as one; only a decoder has a spec to ask for
    if not (full and plain and own_cache and getattr(impl, "attn_type", "decoder") == "decoder"):
        return False
    spec = layer.get_kv_cache_spec(vllm_config)
    # No subclass: those of chunks, sinks and reference windows go by other rules, which the impl does not show.
    limits = [getattr(spec, name, None) for name in ("sliding_window", "attention_chunk_size", "non_causal")]
    return type(spec) is FullAttentionSpec and not any(limits)


def _refuse(reason: str) -> None:
    raise UnsupportedDeployment(f"attention cannot be captured: {reason}")

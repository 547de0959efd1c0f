"""`LlamaParams` as llama.cpp's own structures."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions

if TYPE_CHECKING:
    from pdd_core.llama_params import LlamaParams
    from pdd_llamacpp_adapter.engine.hardware.placement import Placement

GGML_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30,
}  # fmt: skip
"""``enum ggml_type``: llama_cpp names only some."""
_FLASH = {
    "auto": L.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": L.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": L.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_SPLIT = {
    "none": L.LLAMA_SPLIT_MODE_NONE,
    "layer": L.LLAMA_SPLIT_MODE_LAYER,
    "row": L.LLAMA_SPLIT_MODE_ROW,
    "tensor": L.LLAMA_SPLIT_MODE_TENSOR,
}
_SCALING = {
    "none": L.LLAMA_ROPE_SCALING_TYPE_NONE,
    "linear": L.LLAMA_ROPE_SCALING_TYPE_LINEAR,
    "yarn": L.LLAMA_ROPE_SCALING_TYPE_YARN,
}
NUMA = {
    "distribute": L.GGML_NUMA_STRATEGY_DISTRIBUTE,
    "isolate": L.GGML_NUMA_STRATEGY_ISOLATE,
    "numactl": L.GGML_NUMA_STRATEGY_NUMACTL,
}
_LOAD = {
    (True, False): L.LLAMA_LOAD_MODE_AUTO,
    (True, True): L.LLAMA_LOAD_MODE_MMAP_MLOCK,
    (False, False): L.LLAMA_LOAD_MODE_NONE,
    (False, True): L.LLAMA_LOAD_MODE_MLOCK,
}
"""By `mmap` and `mlock`."""
_OVERRIDE = {
    "int": (L.LLAMA_KV_OVERRIDE_TYPE_INT, "val_i64"),
    "float": (L.LLAMA_KV_OVERRIDE_TYPE_FLOAT, "val_f64"),
    "bool": (L.LLAMA_KV_OVERRIDE_TYPE_BOOL, "val_bool"),
    "str": (L.LLAMA_KV_OVERRIDE_TYPE_STR, "val_str"),
}


def model_params(params: LlamaParams, placement: Placement) -> tuple[Any, list[Any]]:
    """Return llama_model_params, and the arrays that must live until the model is loaded."""
    made, kept = L.llama_model_default_params(), list[Any]()
    made.n_gpu_layers = placement.gpu_layers
    made.split_mode = _SPLIT[params.split_mode]
    made.load_mode = _LOAD[params.mmap, params.mlock]
    # the list ends with NULL, and an empty one keeps llama.cpp from a GPU that gets no layers
    devices = (ctypes.c_void_p * (len(placement.gpus) + 1))(*(gpu.handle for gpu in placement.gpus), None)
    made.devices = ctypes.cast(devices, ctypes.c_void_p)
    kept.append(devices)
    if params.shares:
        room = max(int(L.llama_max_devices()), len(params.shares))
        shares = (ctypes.c_float * room)(*params.shares)
        made.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
        kept.append(shares)
    if params.overrides:
        overrides = (L.llama_model_kv_override * (len(params.overrides) + 1))()  # the last one has an empty key
        for one, (key, kind, value) in zip(overrides, params.overrides, strict=False):
            one.tag, field = _OVERRIDE[kind]
            one.key = key.encode()
            setattr(one.value, field, value.encode() if isinstance(value, str) else value)
        made.kv_overrides = ctypes.cast(overrides, ctypes.POINTER(L.llama_model_kv_override))
        kept.append(overrides)
    return made, kept


def context_params(params: LlamaParams, *, outputs: int) -> Any:
    """Return llama_context_params; a batch has logits of at most `outputs` tokens."""
    made = L.llama_context_default_params()
    made.n_ctx = params.cells
    made.n_batch, made.n_ubatch = params.batch_size, params.ubatch  # it keeps both within n_ctx
    made.n_outputs_max = min(outputs, params.batch_size)
    made.n_threads = made.n_threads_batch = 1
    made.flash_attn_type = _FLASH[params.flash_attn]
    made.type_k, made.type_v = GGML_TYPES[params.cache_type_k], GGML_TYPES[params.cache_type_v]
    made.swa_full = params.swa_full
    if params.rope_scaling is not None:
        made.rope_scaling_type = _SCALING[params.rope_scaling]
    given = {name: getattr(params, name) for name in _NUMBERS} | {"rope_freq_scale": params.freq_scale}
    for name, value in given.items():
        if value is not None:
            setattr(made, name, value)
    return made


_NUMBERS = (
    "rope_freq_base", "yarn_orig_ctx", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_slow", "yarn_beta_fast",
)  # fmt: skip


def add_adapters(context: Any, model: Any, params: LlamaParams) -> str | None:
    """Have `context` compute with the LoRA adapters; return the file that cannot be had. The model frees them."""
    handles = []
    for path, _ in params.adapters:
        # llama.cpp leaves exceptions about tensors that do not fit to this call, and returns NULL
        handle = L.llama_adapter_lora_init(model, str(path).encode())
        if not handle:
            return str(path)
        handles.append(handle)
    if handles:
        scales = (ctypes.c_float * len(handles))(*(scale for _, scale in params.adapters))
        L.llama_set_adapters_lora(
            context, (L.llama_adapter_lora_p_ctypes * len(handles))(*handles), len(handles), scales
        )
    return None

"""The settings of llama.cpp on the device, under llama-server's names: the one place that lists them.

`ServeSettings` has them as settings of its own; the command line and the docs are made of this list.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from pydantic_core import ErrorDetails

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
QUANTISED = frozenset({"q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"})
"""Cache types whose rows are blocks with a scale."""
BATCH, UBATCH = 2048, 512
"""Tokens of one llama_decode, and of one of its steps, unless told otherwise: llama-server's. A GPU waits between
two calls."""
_SLOWNESS_FREE = frozenset({"n_ctx", "parallel", "chat_template", "chat_template_file", "mlock", "mmap"})
"""Fields that do not change how fast a token is computed."""
_OVERRIDES: dict[str, Callable[[str], int | float | bool | str]] = {
    "int": int,
    "float": float,
    "bool": {"true": True, "false": False}.__getitem__,
    "str": str,
}


class LlamaParams(BaseModel):
    """How llama.cpp computes. One object travels from the settings to the engine.

    Pydantic's, since `ServeSettings` is made of it; frozen as every value. Lists are text with commas, as on
    llama-server's command line, and may be lists in a TOML file.

    Raises:
        ConfigurationError: values that cannot work together; the message names them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    n_ctx: int = Field(default=4096, ge=64)
    """PDD_N_CTX: tokens of prompt and answer that the device's context holds, for each answer of `parallel`."""
    parallel: int = Field(default=1, ge=1, le=32)
    """PDD_PARALLEL: answers that the device makes at the same time. They share the work of each step, and each has
    memory for `n_ctx` tokens of its own. More wait."""
    gpu_layers: Literal["auto", "all"] | NonNegativeInt = "auto"
    """PDD_GPU_LAYERS: layers of the model in GPU memory, the output counted as one. ``auto``: as many as fit, none
    without a GPU. A number, or ``all``, is refused if it cannot be had."""
    device: str | None = None
    """PDD_DEVICE: the GPUs to use, by llama.cpp's names, such as `CUDA0,CUDA1`; `none` uses none. Unset: all."""
    main_gpu: NonNegativeInt = 0
    """PDD_MAIN_GPU: the GPU that has all of the model with `split_mode` none, by its index among those used."""
    split_mode: Literal["none", "layer", "row", "tensor"] = "layer"
    """PDD_SPLIT_MODE: how several GPUs share a model: ``none`` (one has all), ``layer``, ``row`` or ``tensor``."""
    tensor_split: str | None = None
    """PDD_TENSOR_SPLIT: shares of the model for each GPU, such as `3,1`. Unset: by their free memory."""
    threads: Literal["auto"] | PositiveInt = "auto"
    """PDD_THREADS: CPU threads. ``auto``: as many as there are physical cores. At the start, fewer are tried for a
    moment, and kept if they are faster, as they are on a busy machine."""
    threads_batch: Literal["auto"] | PositiveInt = "auto"
    """PDD_THREADS_BATCH: CPU threads for prompts. ``auto``: as `threads`. Fewer are tried in the same way."""
    batch_size: PositiveInt = BATCH
    """PDD_BATCH_SIZE: most tokens that one call of llama.cpp processes."""
    ubatch_size: PositiveInt | None = None
    """PDD_UBATCH_SIZE: most tokens that are computed at once. Unset: `batch_size`, but at most 512."""
    cache_type_k: CacheType = "f16"
    """PDD_CACHE_TYPE_K: the type of the KV cache's keys: ``f32``, ``f16``, ``bf16``, ``q8_0``, ``q5_1``, ``q5_0``,
    ``q4_1``, ``q4_0`` or ``iq4_nl``."""
    cache_type_v: CacheType = "f16"
    """PDD_CACHE_TYPE_V: the same of values. Quantised values need `flash_attn` on or auto."""
    flash_attn: Literal["auto", "on", "off"] = "off"
    """PDD_FLASH_ATTN: flash attention: ``on``, ``off``, or ``auto``, where llama.cpp decides. It is faster for
    long prompts, but greedy answers may then differ from the cloud's at near-ties."""
    swa_full: bool = True
    """PDD_SWA_FULL: keep all cells of layers with a sliding window. Without, these layers take less memory, but a
    prompt that changes before the window is read anew."""
    mlock: bool = False
    """PDD_MLOCK: keep the model in memory, never swapped out."""
    mmap: bool = True
    """PDD_MMAP: map the model's file into memory instead of reading it whole."""
    lora: str | None = None
    """PDD_LORA: LoRA adapters, GGUF files with commas between, each with a scale behind a colon if it is not 1:
    `style.gguf,terms.gguf:0.5`. The cloud's model has to have them, too."""
    rope_scaling: Literal["none", "linear", "yarn"] | None = None
    """PDD_ROPE_SCALING: how positions are scaled: ``none``, ``linear`` or ``yarn``. For this and the next ones,
    unset is as the file says, and the cloud's model has to agree."""
    rope_scale: PositiveFloat | None = None
    """PDD_ROPE_SCALE: by how much longer texts may get: 1 / `rope_freq_scale`."""
    rope_freq_base: PositiveFloat | None = None
    """PDD_ROPE_FREQ_BASE: the base of RoPE's frequencies."""
    rope_freq_scale: PositiveFloat | None = None
    """PDD_ROPE_FREQ_SCALE: what RoPE's frequencies are multiplied by."""
    yarn_orig_ctx: PositiveInt | None = None
    """PDD_YARN_ORIG_CTX: YaRN: the context length of the model's training."""
    yarn_ext_factor: float | None = Field(default=None, ge=0)
    """PDD_YARN_EXT_FACTOR: YaRN: the mix of extrapolation; 0 is interpolation alone."""
    yarn_attn_factor: PositiveFloat | None = None
    """PDD_YARN_ATTN_FACTOR: YaRN: what attention is scaled by."""
    yarn_beta_slow: float | None = Field(default=None, ge=0)
    """PDD_YARN_BETA_SLOW: YaRN: the correction of low frequencies."""
    yarn_beta_fast: float | None = Field(default=None, ge=0)
    """PDD_YARN_BETA_FAST: YaRN: the correction of high frequencies."""
    chat_template: str | None = None
    """PDD_CHAT_TEMPLATE: a chat template, as Jinja text, in place of the file's."""
    chat_template_file: Path | None = None
    """PDD_CHAT_TEMPLATE_FILE: a file with a chat template."""
    spec: Literal["lookup", "off"] = "off"
    """PDD_SPEC: speculative decoding. ``lookup``: where an answer repeats prompt or answer, several of the tokens
    that followed there are checked in one step. ``off``: token by token. See docs/device.md#prompt-lookup."""
    numa: Literal["distribute", "isolate", "numactl"] | None = None
    """PDD_NUMA: how threads are placed on a machine with several memory nodes: ``distribute``, ``isolate`` or
    ``numactl``."""
    override_kv: str | None = None
    """PDD_OVERRIDE_KV: fields of the model's file to replace, KEY=TYPE:VALUE with commas between, where TYPE is
    int, float, bool or str: `tokenizer.ggml.add_bos_token=bool:false`."""

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Return them with `fields` set.

        Raises:
            ConfigurationError: a name that does not exist, or a value that cannot work; the message names it.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ConfigurationError("; ".join(problem(one) for one in error.errors())) from error

    def changed(self, **fields: Any) -> LlamaParams:
        """Return them with `fields` set anew. Raises as `of`."""
        return LlamaParams.of(**{**self.model_dump(), **fields})

    @field_validator("device", "tensor_split", "lora", "override_kv", mode="before")
    @classmethod
    def _joined(cls, value: object) -> object:
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else value

    @field_validator("flash_attn", mode="before")
    @classmethod
    def _spelt(cls, value: object) -> object:
        """Take what the setting was before it had three values."""
        return {"true": "on", "1": "on", "false": "off", "0": "off"}.get(str(value).lower(), value)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.ubatch_size is not None and self.ubatch_size > self.batch_size:
            raise ConfigurationError(f"ubatch_size is {self.ubatch_size}, above batch_size {self.batch_size}")
        if self.parallel > self.ubatch:
            raise ConfigurationError(f"parallel is {self.parallel}, above batch_size or ubatch_size {self.ubatch}")
        if self.cache_type_v in QUANTISED and self.flash_attn == "off":
            raise ConfigurationError(f"cache_type_v {self.cache_type_v} needs flash attention: flash_attn = on")
        if self.split_mode == "tensor" and self.flash_attn == "off":
            raise ConfigurationError("split_mode tensor needs flash attention: flash_attn = on")
        if self.rope_scale is not None and self.rope_freq_scale is not None:
            raise ConfigurationError("rope_scale and rope_freq_scale say the same: give one of them")
        if self.chat_template is not None and self.chat_template_file is not None:
            raise ConfigurationError("chat_template and chat_template_file say the same: give one of them")
        if self.device_names == () and self.gpu_layers not in ("auto", 0):
            raise ConfigurationError(f"device is none, so gpu_layers cannot be {self.gpu_layers}")
        _ = self.shares, self.adapters, self.overrides
        return self

    @property
    def device_names(self) -> tuple[str, ...] | None:
        """The GPUs of `device`; None for all, empty for none."""
        if self.device is None:
            return None
        names = tuple(name.strip() for name in self.device.split(",") if name.strip())
        if "none" in names and len(names) > 1:
            raise ConfigurationError(f"device {self.device!r}: none stands alone")
        return () if names == ("none",) else names

    @property
    def shares(self) -> tuple[float, ...]:
        """The numbers of `tensor_split`."""
        if self.tensor_split is None:
            return ()
        try:
            shares = tuple(float(share) for share in self.tensor_split.split(","))
        except ValueError:
            shares = ()
        if not shares or not all(0 <= share < float("inf") for share in shares) or not any(shares):
            raise ConfigurationError(f"tensor_split must be shares such as 3,1, not {self.tensor_split!r}")
        return shares

    @property
    def adapters(self) -> tuple[tuple[Path, float], ...]:
        """The files of `lora`, each with its scale."""
        found = []
        for one in (self.lora or "").split(","):
            file, colon, scale = one.rpartition(":")
            try:
                found.append((Path(file), float(scale)) if colon else (Path(one), 1.0))
            except ValueError:  # a colon of the path's own
                found.append((Path(one), 1.0))
        return tuple((path, scale) for path, scale in found if str(path) != ".")

    @property
    def overrides(self) -> tuple[tuple[str, str, int | float | bool | str], ...]:
        """The fields of `override_kv`: key, type, value."""
        found: list[tuple[str, str, int | float | bool | str]] = []
        for one in filter(None, (self.override_kv or "").split(",")):
            key, _, typed = one.partition("=")
            kind, _, value = typed.partition(":")
            try:
                found.append((key.strip(), kind, _OVERRIDES[kind](value)))
            except (KeyError, ValueError):
                key = ""
            if not 0 < len(key.encode()) < 128 or len(value.encode()) >= 128:
                raise ConfigurationError(
                    f"override_kv must be KEY=TYPE:VALUE, as a=int:1, float, bool or str, not {one!r}"
                )
        return tuple(found)

    @property
    def cells(self) -> int:
        """Tokens that all answers together can have in the context."""
        return self.n_ctx * self.parallel

    @property
    def ubatch(self) -> int:
        """`ubatch_size`, or what it is when unset."""
        return min(self.batch_size, UBATCH) if self.ubatch_size is None else self.ubatch_size

    @property
    def freq_scale(self) -> float | None:
        """`rope_freq_scale`, however it was given."""
        return 1.0 / self.rope_scale if self.rope_scale is not None else self.rope_freq_scale

    @property
    def other_model(self) -> tuple[str, ...]:
        """The settings that are given here and make the model another one than its file's."""
        names = [name for name in type(self).model_fields if name.startswith(("rope_", "yarn_"))]
        return tuple(name for name in ("lora", *names, "override_kv") if getattr(self, name) is not None)

    @property
    def speed_key(self) -> str:
        """What changes how fast the device is, as text: what was learnt under another is not of this device."""
        return self.model_dump_json(exclude=set(_SLOWNESS_FREE), exclude_defaults=True)


def problem(error: ErrorDetails) -> str:
    """Return what is wrong with one setting, in one line."""
    branches = ("literal[", "constrained-")  # of a union: pydantic's words, not the user's
    name = ".".join(str(part) for part in error["loc"] if not str(part).startswith(branches))
    return f"{name}: {error['msg']}"

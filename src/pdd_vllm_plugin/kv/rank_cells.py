"""What one worker has of each cell, and where it lies in the worker's paged cache. Looked at once, at start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pdd_core.errors import UnsupportedDeployment
from pdd_core.kv.cell_types import CellType
from pdd_core.kv.geometry import KVGeometry, KVPart
from pdd_core.kv.rotation import rotation_size
from pdd_vllm_plugin.capture.layers import attends_to_all
from pdd_vllm_plugin.kv.rope import rope_geometry
from pdd_vllm_plugin.kv.unsupported import why_unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pdd_core.kv.geometry import RopeGeometry
    from pdd_vllm_plugin.capture.layout import CacheLayout
    from pdd_vllm_plugin.config import PDDConfig

CACHE_TYPES = ("torch.float32", "torch.float16", "torch.bfloat16")


@dataclass(frozen=True, slots=True)
class Rank:
    """A worker as vLLM has set it up."""

    vllm_config: Any
    layers: Mapping[str, Any]
    """Its ``Attention`` layers by name, those of a draft model left out."""
    groups: Sequence[Any]
    """``KVCacheConfig.kv_cache_groups``."""
    modules: Sequence[Any]
    """All modules of the language model."""
    tp_rank: int
    """Its number among the tensor-parallel ones."""


@dataclass(frozen=True, slots=True)
class RankCells:
    """A worker's share of the cells."""

    geometry: KVGeometry
    """Of the whole model, in one part."""
    part: KVPart
    """This worker's."""
    gives: bool
    """No other worker gives the same: heads are repeated where there are more workers than heads."""
    caches: tuple[Any, ...]
    """The part's layers, in order: cache tensors of one shape and type."""
    keys: CacheLayout
    values: CacheLayout
    group: int
    """Number of the KV cache group."""
    split: int
    """The kernel's blocks in one of the scheduler's."""

    @property
    def cell_bytes(self) -> int:
        """Packed bytes of this worker's part of a cell."""
        return self.part.num_layers * self.part.num_heads * self.geometry.head_bytes

    def blocks(self, block_ids: Sequence[Sequence[int]], tokens: int) -> list[int]:
        """Return the ids of the blocks of a request's first tokens, as the kernel counts them."""
        ids = [block * self.split + i for block in block_ids[self.group] for i in range(self.split)]
        return ids[: -(-tokens // self.keys.block_size)]


def rank_cells(rank: Rank, config: PDDConfig) -> RankCells:
    """Find out what a worker has of each cell.

    Raises:
        UnsupportedDeployment: the model's cells cannot be handed over; the message says why.
    """
    from pdd_vllm_plugin.capture.layout import probe_layout

    if (why := why_unsupported(rank.vllm_config)) is not None:
        raise UnsupportedDeployment(why)
    total = int(rank.vllm_config.model_config.hf_text_config.num_hidden_layers)
    names = _by_number(rank.layers, total)
    layers = [rank.layers[name] for name in names.values()]
    for number, layer in zip(names, layers, strict=True):
        if not attends_to_all(layer, rank.vllm_config):
            raise UnsupportedDeployment(
                f"layer {number} of the model does not attend to the whole prompt in the plain way: "
                "it has a sliding window, for example"
            )
    heads, gives = _heads(rank, layers)
    if len({str((one.kv_cache.shape, one.kv_cache.stride(), one.kv_cache.dtype)) for one in layers}) > 1:
        raise UnsupportedDeployment("the layers' KV caches are of several shapes")
    first = layers[0]
    if str(first.kv_cache.dtype) not in CACHE_TYPES:
        raise UnsupportedDeployment(f"the KV cache has elements of {first.kv_cache.dtype}")
    backend = type(first.impl).__name__
    try:
        keys, values = (probe_layout(first, first.impl, first.kv_cache, values=side) for side in (False, True))
    except (UnsupportedDeployment, AttributeError, NotImplementedError) as error:
        raise UnsupportedDeployment(f"{backend} does not show how keys and values lie in its KV cache") from error
    group, block_size = _group(rank, set(names.values()))
    part = KVPart(layers=(min(names), max(names) + 1), heads=heads)
    caches = tuple(layer.kv_cache for layer in layers)
    geometry = _geometry(rank, config)
    return RankCells(geometry, part, gives, caches, keys, values, group, block_size // keys.block_size)


def _by_number(layers: Mapping[str, Any], total: int) -> dict[int, str]:
    """Return the layers' names by number, in order, less those behind the model's `total`."""
    names: dict[int, str] = {}
    for name in layers:
        found = [int(part) for part in name.split(".") if part.isdecimal()]
        if len(found) != 1 or (found[0] < total and found[0] in names):
            raise UnsupportedDeployment(f"the number of the layer {name} is not clear")
        names[found[0]] = name
    numbers = sorted(number for number in names if number < total)
    if not numbers or numbers != list(range(numbers[0], numbers[-1] + 1)):
        raise UnsupportedDeployment("the model has layers that are not attention")
    return {number: names[number] for number in numbers}


def _heads(rank: Rank, layers: Sequence[Any]) -> tuple[tuple[int, int], bool]:
    """Return the KV heads that this worker has, and whether it is the first that has them."""
    model, parallel = rank.vllm_config.model_config, rank.vllm_config.parallel_config
    size, total, workers = model.get_head_size(), model.get_total_num_kv_heads(), parallel.tensor_parallel_size
    found = {(int(layer.impl.num_kv_heads), int(layer.impl.head_size)) for layer in layers}
    if len(found) > 1:
        raise UnsupportedDeployment("the model's layers have different numbers of KV heads, or sizes")
    # vllm.model_executor.layers.linear.QKVParallelLinear: heads are repeated where there are more workers
    repeats = max(1, workers // total)
    mine = max(1, total // workers)
    specs = [layer.get_kv_cache_spec(rank.vllm_config) for layer in layers]
    if found != {(mine, size)} or any(getattr(spec, "head_size_v", size) != size for spec in specs):
        raise UnsupportedDeployment(f"the layers do not have {mine} KV heads of {size} elements each")
    begin = rank.tp_rank // repeats * mine
    return (begin, begin + mine), rank.tp_rank % repeats == 0


def _group(rank: Rank, names: set[str]) -> tuple[int, int]:
    """Return the number of the layers' KV cache group, and the tokens of the scheduler's blocks."""
    for number, group in enumerate(rank.groups):
        if names <= set(group.layer_names):
            return number, int(group.kv_cache_spec.block_size)
    raise UnsupportedDeployment("the model's layers are in several KV cache groups")


def _geometry(rank: Rank, config: PDDConfig) -> KVGeometry:
    model = rank.vllm_config.model_config
    size, layers = int(model.get_head_size()), int(model.hf_text_config.num_hidden_layers)
    heads = int(model.get_total_num_kv_heads())
    rope: RopeGeometry = rope_geometry(model.hf_text_config, rank.modules)
    kinds = CellType(config.kv_key_type), CellType(config.kv_value_type)
    rotations = [
        1 if kind is CellType.F16 else rotation_size(size, values=values)
        for kind, values in zip(kinds, (False, True), strict=True)
    ]
    try:
        return KVGeometry(
            num_layers=layers, num_kv_heads=heads, head_size=size, key_type=kinds[0], value_type=kinds[1],
            key_rotation=rotations[0], value_rotation=rotations[1], rope=rope,
            parts=[KVPart(layers=(0, layers), heads=(0, heads))],
        )  # fmt: skip
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise UnsupportedDeployment(f"the model's cells have no form on the wire: {problem}") from error

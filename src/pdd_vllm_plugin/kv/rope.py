"""How a model's positions are in its keys: by its configuration, and by the rotary modules that vLLM has made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_core.errors import UnsupportedDeployment
from pdd_core.kv.geometry import RopeGeometry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULT_THETA = 10_000.0


def rope_geometry(text_config: Any, modules: Iterable[Any]) -> RopeGeometry:
    """Return how positions are in the keys.

    Args:
        text_config: Hugging Face's: `rope_parameters`, or `rope_theta` and `rope_scaling` before transformers 5.
        modules: all of the model's. vLLM's ``RotaryEmbedding`` has `is_neox_style` and `rotary_dim`.

    Raises:
        UnsupportedDeployment: the keys have no rotary positions, not the same in all layers, or in another order.
    """
    kinds = {
        (bool(one.is_neox_style), int(one.rotary_dim)) for one in modules
        if hasattr(one, "is_neox_style") and hasattr(one, "rotary_dim")
    }  # fmt: skip
    if not kinds:
        raise UnsupportedDeployment("the model has no rotary positions (RoPE) of vLLM's own")
    if len(kinds) > 1:
        raise UnsupportedDeployment("the model's layers have rotary positions (RoPE) of several kinds")
    [(halves, rotary_dim)] = kinds
    if not halves:
        raise UnsupportedDeployment("the model rotates neighbouring elements of a head (RoPE as in GPT-J)")
    parameters = _parameters(text_config)
    return RopeGeometry(
        theta=float(parameters.get("rope_theta") or DEFAULT_THETA),
        rotary_dim=rotary_dim,
        scaling=str(parameters.get("rope_type") or parameters.get("type") or "default"),
        factor=float(parameters.get("factor") or 1.0),
    )


def _parameters(text_config: Any) -> Mapping[str, Any]:
    given = getattr(text_config, "rope_parameters", None)
    if not given:
        scaling = getattr(text_config, "rope_scaling", None) or {}
        return {"rope_theta": getattr(text_config, "rope_theta", None), **scaling}
    by_kind = [one for one in given.values() if isinstance(one, dict)]
    if not by_kind:
        return given  # type: ignore[no-any-return]
    # one set for each kind of layer (transformers 5: `layer_types`)
    if any(one != by_kind[0] for one in by_kind):
        raise UnsupportedDeployment("the model's layers have rotary positions (RoPE) of several kinds")
    return by_kind[0]

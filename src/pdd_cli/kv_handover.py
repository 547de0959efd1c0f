"""Whether a cloud can hand its KV cache over to a device: asked by the demo and by doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_core.kv.geometry import KVGeometry

if TYPE_CHECKING:
    from pdd_core.handoff import CloudInfo
    from pdd_llamacpp_adapter import DeviceEngine


def cells_of(info: CloudInfo, engine: DeviceEngine) -> KVGeometry | str:
    """Return what the cells look like that `engine` would get, or why it gets none."""
    match info.kv:
        case None:
            return "the plugin in the cloud does not know how to"
        case KVGeometry():
            return info.kv
        case _:
            return info.kv.message

"""What the pacer is told about one answer: see `pdd_core.hookspecs.Pacer.due`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_llamacpp_adapter.session.pacing import recent_step

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.engine.speed import DeviceSpeed
    from pdd_llamacpp_adapter.session.conductor import Conductor
    from pdd_llamacpp_adapter.session.device_part import DevicePart
    from pdd_llamacpp_adapter.session.live_answer import LiveAnswer


def forecast(
    live: LiveAnswer, now: float, *, conductor: Conductor, device: DevicePart | None, speed: DeviceSpeed
) -> dict[str, Any]:
    """Return the keywords of `Pacer.due` that look ahead; `now` in seconds since the request began."""
    return {
        "cloud_left": conductor.cloud_left(),
        "cloud_step": recent_step(live.received_at),
        "ready_in": None if device is None else device.ready_in(),
        "device_step": None if device is None else speed.step_s,
        "idle": now - live.received_at[-1],
    }

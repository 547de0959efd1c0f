"""What people are told at the start: what the device computes on, and what may go wrong with its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pdd_core.env import ServeSettings
    from pdd_llamacpp_adapter.engine.device_engine import DeviceEngine


def hardware_lines(engine: DeviceEngine) -> list[str]:
    """Return what `engine` computes on."""
    one, many = engine.threads
    return [*engine.placement.lines(), f"CPU threads: {one}, for prompts {many}"]


def hardware_warnings(engine: DeviceEngine, settings: ServeSettings) -> Iterator[str]:
    """Yield what its user should know before answers are made."""
    if advice := engine.placement.advice:
        yield advice
    if settings.cloud_url is None:
        return
    if changed := settings.llama.other_model:
        yield (
            f"{', '.join(changed)} make the device's model another one than its file's: unless the cloud serves "
            "the same, the device goes on with answers in another model's words"
        )
    if settings.kv != "off" and engine.kv.shape is None:
        yield f"the device takes no KV cache from the cloud: {engine.kv.reason}"

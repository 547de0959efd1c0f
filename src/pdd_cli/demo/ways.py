"""The ways in which the demo makes one answer."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pdd_llamacpp_adapter import Outcome


class Way(StrEnum):
    """One way; the value is its name in the table and in the JSON."""

    HANDOFF = "handoff"
    KV_HANDOFF = "kv_handoff"
    """A handoff for which the device takes the prompt's KV cache from the cloud."""
    DEVICE_ONLY = "device_only"
    CLOUD_ONLY = "cloud_only"

    @property
    def heading(self) -> str:
        """What happens, in words."""
        return {
            Way.HANDOFF: "Handoff: the cloud begins, the device takes over",
            Way.KV_HANDOFF: "Handoff with the KV cache: the cloud's memory of the prompt follows",
        }.get(self, self.label)

    @property
    def label(self) -> str:
        """The same for pictures."""
        return {
            Way.HANDOFF: "Handoff",
            Way.KV_HANDOFF: "With the KV cache",
            Way.DEVICE_ONLY: "Device alone",
            Way.CLOUD_ONLY: "Cloud alone",
        }[self]


if TYPE_CHECKING:
    Outcomes = Mapping[Way, Outcome]
    """What became of each way that was tried, in order."""

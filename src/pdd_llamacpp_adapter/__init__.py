"""The device's half: llama.cpp, the client of the cloud, and the session that makes one answer of both.

Names are loaded on first use, so that importing this package needs neither llama.cpp nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.cloud import CloudClient
    from pdd_llamacpp_adapter.engine import DeviceEngine
    from pdd_llamacpp_adapter.outcome import Outcome
    from pdd_llamacpp_adapter.profile import PROFILES, DeviceProfile
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.session import AnswerSession
    from pdd_llamacpp_adapter.sync import generate

__all__ = [
    "PROFILES",
    "AnswerRequest",
    "AnswerSession",
    "CloudClient",
    "DeviceEngine",
    "DeviceProfile",
    "Outcome",
    "generate",
]

_HOMES = {
    "PROFILES": "profile",
    "AnswerRequest": "request",
    "AnswerSession": "session",
    "CloudClient": "cloud",
    "DeviceEngine": "engine",
    "DeviceProfile": "profile",
    "Outcome": "outcome",
    "generate": "sync",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

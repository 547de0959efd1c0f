"""The device's half: llama.cpp, the client of the cloud, and the session that makes one answer of both.

Names are loaded on first use, so that importing this package needs neither llama.cpp nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
    from pdd_llamacpp_adapter.engine.device_engine import DeviceEngine
    from pdd_llamacpp_adapter.engine.device_profile import PROFILES, DeviceProfile
    from pdd_llamacpp_adapter.engine.grammar import GrammarEngine
    from pdd_llamacpp_adapter.engine.speed import DeviceSpeed
    from pdd_llamacpp_adapter.request import AnswerRequest, Grammar, GrammarKind
    from pdd_llamacpp_adapter.runtime.local_device import AsyncPDDevice, PDDevice
    from pdd_llamacpp_adapter.runtime.runtime import Runtime
    from pdd_llamacpp_adapter.session.answer_session import AnswerSession
    from pdd_llamacpp_adapter.session.outcome import Outcome
    from pdd_llamacpp_adapter.session.sync import generate

__all__ = [
    "PROFILES",
    "AnswerRequest",
    "AnswerSession",
    "AsyncPDDevice",
    "CloudClient",
    "DeviceEngine",
    "DeviceProfile",
    "DeviceSpeed",
    "Grammar",
    "GrammarEngine",
    "GrammarKind",
    "Outcome",
    "PDDevice",
    "Runtime",
    "generate",
]

_HOMES = {
    "PROFILES": "engine.device_profile",
    "AnswerRequest": "request",
    "AnswerSession": "session.answer_session",
    "AsyncPDDevice": "runtime.local_device",
    "CloudClient": "cloud.cloud_client",
    "DeviceEngine": "engine.device_engine",
    "DeviceProfile": "engine.device_profile",
    "DeviceSpeed": "engine.speed",
    "Grammar": "request",
    "GrammarEngine": "engine.grammar",
    "GrammarKind": "request",
    "Outcome": "session.outcome",
    "PDDevice": "runtime.local_device",
    "Runtime": "runtime.runtime",
    "generate": "session.sync",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

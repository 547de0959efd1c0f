"""The device's half: llama.cpp, the client of the cloud, and the session that makes one answer of both.

Names are loaded on first use, so that importing this package needs neither llama.cpp nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.cloud import CloudClient
    from pdd_llamacpp_adapter.engine import DeviceEngine
    from pdd_llamacpp_adapter.grammar import GrammarEngine
    from pdd_llamacpp_adapter.local import AsyncPDDevice, PDDevice
    from pdd_llamacpp_adapter.outcome import Outcome
    from pdd_llamacpp_adapter.profile import PROFILES, DeviceProfile
    from pdd_llamacpp_adapter.request import AnswerRequest, Grammar, GrammarKind
    from pdd_llamacpp_adapter.runtime import Runtime
    from pdd_llamacpp_adapter.session import AnswerSession
    from pdd_llamacpp_adapter.speed import DeviceSpeed
    from pdd_llamacpp_adapter.sync import generate

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
    "PROFILES": "profile",
    "AnswerRequest": "request",
    "AnswerSession": "session",
    "AsyncPDDevice": "local",
    "CloudClient": "cloud",
    "DeviceEngine": "engine",
    "DeviceProfile": "profile",
    "DeviceSpeed": "speed",
    "Grammar": "request",
    "GrammarEngine": "grammar",
    "GrammarKind": "request",
    "Outcome": "outcome",
    "PDDevice": "local",
    "Runtime": "runtime",
    "generate": "sync",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

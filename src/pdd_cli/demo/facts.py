"""The conditions of one demo run: what a reader needs to judge its figures."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pdd_cli import host
from pdd_cli.demo.scenario import DOCUMENT, FREQUENCY_PENALTY

if TYPE_CHECKING:
    from pdd_cli.demo.scenario import DemoScenario
    from pdd_core.handoff import CloudInfo
    from pdd_llamacpp_adapter import DeviceProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFacts:
    """The speed that the device is held to."""

    name: str
    prefill_tps: float
    decode_tps: float

    @classmethod
    def of(cls, profile: DeviceProfile | None) -> Self | None:
        """Return the facts of `profile`, None for none."""
        if profile is None:
            return None
        return cls(name=profile.name, prefill_tps=profile.prefill_tps, decode_tps=profile.decode_tps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Same for all modes of one run."""

    device_profile: ProfileFacts | None
    """None: the machine as it is."""
    prefill_tps: float
    """The device's prefill speed that the budget was computed from: the profile's, or measured."""
    model: str
    document: str
    question: str
    prompt_tokens: int
    max_tokens: int
    decode_budget: int
    decode_budget_set_by: str
    """``user``, or ``auto``."""
    rate: float
    """Tokens per second."""
    rate_set_by: str
    """``user``, or ``auto``: measured."""
    temperature: float
    frequency_penalty: float
    threads: int
    """The device's CPU threads."""
    cpus: int
    versions: dict[str, str]

    @classmethod
    def of(
        cls,
        scenario: DemoScenario,
        *,
        profile: DeviceProfile | None,
        cloud: CloudInfo,
        model: str,
        prompt_tokens: int,
        decode_budget: int,
        rate: float,
        prefill_tps: float,
    ) -> Self:
        """Collect the conditions."""
        return cls(
            device_profile=ProfileFacts.of(profile),
            prefill_tps=prefill_tps,
            model=model,
            document=str(scenario.document or DOCUMENT),
            question=scenario.asked(),
            prompt_tokens=prompt_tokens,
            max_tokens=scenario.max_tokens,
            decode_budget=decode_budget,
            decode_budget_set_by="user" if scenario.decode_budget else "auto",
            rate=rate,
            rate_set_by="user" if scenario.rate else "auto",
            temperature=0.0,
            frequency_penalty=FREQUENCY_PENALTY,
            threads=scenario.threads,
            cpus=host.cpu_count(),
            versions={
                "pdd-device": host.version_of("pdd-device") or "unknown",
                "cloud": cloud.engine,
                "llama-cpp-python": host.version_of("llama-cpp-python") or "unknown",
                "python": platform.python_version(),
            },
        )

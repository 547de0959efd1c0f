"""The conditions of one demo run: what a reader needs to judge its figures."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pdd_cli import host
from pdd_cli.demo.scenario import DOCUMENT, FREQUENCY_PENALTY

if TYPE_CHECKING:
    from pdd_cli.demo.scenario import DemoScenario
    from pdd_cli.link import Link
    from pdd_core.handoff import CloudInfo
    from pdd_core.kv.geometry import KVGeometry
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
class KVFacts:
    """The cloud's cells, and the handoff with them."""

    cell_bytes: int
    """Of one prompt token."""
    key_type: str
    value_type: str
    decode_budget: int

    @classmethod
    def of(cls, geometry: KVGeometry, decode_budget: int) -> Self:
        """Return the facts of cells that look like `geometry`."""
        return cls(
            cell_bytes=geometry.cell_bytes,
            key_type=str(geometry.key_type),
            value_type=str(geometry.value_type),
            decode_budget=decode_budget,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Same for all ways of one run."""

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
    link: Link | None
    """Emulated between device and cloud; None: the connection as it is."""
    kv: KVFacts | None
    """None: the KV cache is not handed over."""
    no_kv: str | None
    """Why not."""
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
        kv: KVFacts | str,
    ) -> Self:
        """Collect the conditions; `kv` is why there are no cells, where there are none."""
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
            link=scenario.link,
            kv=None if isinstance(kv, str) else kv,
            no_kv=kv if isinstance(kv, str) else None,
            threads=scenario.threads,
            cpus=host.cpu_count(),
            versions={
                "pdd-device": host.version_of("pdd-device") or "unknown",
                "cloud": cloud.engine,
                "llama-cpp-python": host.version_of("llama-cpp-python") or "unknown",
                "python": platform.python_version(),
            },
        )

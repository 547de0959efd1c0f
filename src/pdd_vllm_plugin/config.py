"""The plugin's settings: ``--additional-config '{"pdd": {...}}'``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from pdd_core.env import Env
from pdd_core.errors import ConfigurationError
from pdd_core.kv.cell_types import CellType
from pdd_core.optin import MAX_DECODE_BUDGET
from pdd_core.policies.pressure import PressureSettings
from pdd_core.refinement.capture import (
    CAPTURE_DEPTHS,
    CAPTURE_HEADS,
    CAPTURE_WINDOW,
    HEADS,
    LARGEST_WINDOW,
    Heads,
)

KEY = "pdd"
REFINE = ("auto", "off", "attention", "lexical", "truncation", "random")
"""Values of `refine`. ``auto`` is attention where ``--worker-cls`` names `PDDWorker`, else off."""
BUDGET_POLICIES = ("load", "client", "fixed")
KV = ("auto", "on", "off")
_PRESSURE = PressureSettings()


@dataclass(frozen=True, slots=True)
class PDDConfig:
    """Server-wide settings. Every one has a default that serves."""

    default_decode_budget: int = 64
    """Tokens granted to an opted-in request that names no budget; with `budget_policy` fixed, to every one."""
    max_decode_budget: int = MAX_DECODE_BUDGET
    """Ceiling on every budget."""
    budget_policy: Literal["load", "client", "fixed"] = "load"
    """What a request gets: what its client asks for (client), less under load where that harms nobody (load), or
    `default_decode_budget` (fixed): docs/policies.md."""
    tenant_budgets: Mapping[str, int] = field(default_factory=dict)
    """Ceilings by the request's tenant; ``*`` is for all other tenants, and for requests that name none."""
    priority_budgets: Mapping[int, int] = field(default_factory=dict)
    """Ceilings by vLLM's priority: each holds for its value and all higher ones, which are less urgent."""
    load_levels: tuple[float, ...] = _PRESSURE.levels
    """Utilisations at which the levels of pressure begin, each a step towards the least budget:
    docs/policies.md#pressure."""
    load_hysteresis: float = _PRESSURE.hysteresis
    """How far below its begin a level of pressure ends."""
    load_relax_s: float = _PRESSURE.relax_s
    """Seconds for which the utilisation must stay there before one level is given up."""
    load_patience_s: float = _PRESSURE.patience_s
    """Seconds of waiting in line that count as full utilisation."""
    load_floor: int | None = None
    """Least budget under pressure of a request that names neither a budget nor a least one; unset: all of it."""
    max_handoffs: int = 1024
    """Handoff states kept at once; the oldest ended one goes first."""
    max_state_tokens: int = 16_000_000
    """Bound on what all states hold together, in token ids of 4 bytes; all else in them counts as so many."""
    ttl_s: float = 600.0
    """Seconds for which a state can be read after its request has ended."""
    cancel_timeout_s: float = 10.0
    """Longest wait for the engine's confirmation of a DELETE: the rest of its running step."""
    refine: str = "auto"
    """Where refined prompts come from: ``attention``, ``lexical``, ``truncation``, ``random``, ``off``, or
    ``auto``, which is ``attention`` with our `--worker-cls`, else ``off``."""
    refine_window: int = CAPTURE_WINDOW
    """At most so many of the prompt's last tokens say what matters: the question's and the template's behind it,
    whose attention is captured. At most 256."""
    refine_layers: tuple[float, ...] = CAPTURE_DEPTHS
    """Depths of the captured layers, as shares of the model's depth. Each costs time and little memory."""
    refine_heads: Heads = CAPTURE_HEADS
    """How a layer's heads are made one: ``max``, the attention of the head that cares most, or ``mean``."""
    refine_max_prompt_tokens: int = 131_072
    """Longer prompts are not refined: a bound on memory and on the time of a request."""
    refine_timeout_s: float = 2.0
    """Seconds that the refiners of third parties have for a prompt; then the built-in one decides."""
    kv: Literal["auto", "on", "off"] = "auto"
    """Whether prompts' KV caches are handed over to devices that ask. ``auto``: with our `--worker-cls`, where
    the model's cells can be handed over. ``on`` refuses to start where they cannot."""
    kv_key_type: str = CellType.Q8_0.value
    """How keys are packed: ``q8_0``, ``q4_0`` or ``f16``."""
    kv_value_type: str = CellType.Q4_0.value
    """How values are packed."""
    kv_shelf_bytes: int = 2_000_000_000
    """Bound on the packed cells that each worker keeps in memory; what is oldest goes first."""
    kv_ttl_s: float = 60.0
    """Seconds for which a prompt's cells can be fetched."""
    kv_mbit_s: float | None = None
    """Bound on what a server sends in cells, in Mbit/s, all requests together; unset: none."""
    kv_request_mbit_s: float | None = None
    """The same for one request."""
    kv_max_prompt_tokens: int = 32_768
    """The cells of longer prompts are not handed over."""
    store: str | None = field(default=None, repr=False)
    """URL of a Valkey or Redis that replicas share: ``redis://``, ``rediss://`` or ``unix://``. It needs the extra
    `fleet`. Unset: states stay in memory. The password belongs in PDD_STORE_PASSWORD: docs/shared_store.md."""
    store_max_bytes: int = 1_000_000_000
    """Bound on what the states of all replicas take in the store; what expires first goes first."""
    plan_file: str | None = None
    """What ``pdd-device plan --settings`` wrote: its settings for the plugin hold where none is given here."""
    strict: bool = False
    """Refuse to start with a policy plugin that cannot be loaded; log each failure in a request as an error."""

    def __post_init__(self) -> None:
        if not isinstance(self.strict, bool):
            raise _invalid("strict", "true or false", self.strict)
        choices = (
            ("refine", REFINE), ("refine_heads", HEADS), ("budget_policy", BUDGET_POLICIES),
            ("kv", KV), ("kv_key_type", tuple(CellType)), ("kv_value_type", tuple(CellType)),
        )  # fmt: skip
        for name, values in choices:
            if getattr(self, name) not in values:
                raise _invalid(name, f"one of {', '.join(values)}", getattr(self, name))
        depths = self.refine_layers
        if not isinstance(depths, list | tuple) or not depths or not all(map(_is_depth, depths)):
            raise _invalid("refine_layers", "a list of numbers from 0 to below 1", depths)
        object.__setattr__(self, "refine_layers", tuple(depths))
        object.__setattr__(self, "tenant_budgets", _budgets("tenant_budgets", self.tenant_budgets, str))
        object.__setattr__(self, "priority_budgets", _budgets("priority_budgets", self.priority_budgets, int))
        for one in fields(self):
            value = getattr(self, one.name)
            # bool passes for a number in Python, and never is one here
            if isinstance(one.default, int | float) and not isinstance(one.default, bool):
                wanted = int if isinstance(one.default, int) else (int, float)
                if isinstance(value, bool) or not isinstance(value, wanted) or value <= 0:
                    raise _invalid(one.name, "above 0", value)
        if self.refine_window > LARGEST_WINDOW:
            raise _invalid("refine_window", f"at most {LARGEST_WINDOW} tokens", self.refine_window)
        for name in ("kv_mbit_s", "kv_request_mbit_s"):
            rate = getattr(self, name)
            if rate is not None and not (_is_share(rate) and math.isfinite(rate)):
                raise _invalid(name, "a number above 0, or null", rate)
        if self.load_floor is not None and not _is_budget(self.load_floor):
            raise _invalid("load_floor", "an integer above 0, or null", self.load_floor)
        self._check_levels()
        if self.store is not None:
            from pdd_vllm_plugin.shared_store.connection import check_store_url

            check_store_url(self.store)

    def _check_levels(self) -> None:
        levels = self.load_levels
        if not isinstance(levels, list | tuple) or not levels or not all(map(_is_share, levels)):
            raise _invalid("load_levels", "a list of numbers above 0", levels)
        if any(high <= low for low, high in pairwise(levels)):
            raise _invalid("load_levels", "increasing", levels)
        if self.load_hysteresis >= levels[0]:
            raise _invalid(
                "load_hysteresis", f"below the first of load_levels ({levels[0]})", self.load_hysteresis
            )
        object.__setattr__(self, "load_levels", tuple(levels))

    @property
    def pressure(self) -> PressureSettings:
        """The `load_` settings of the gauge."""
        return PressureSettings(self.load_levels, self.load_hysteresis, self.load_relax_s, self.load_patience_s)

    @classmethod
    def from_vllm(cls, vllm_config: Any) -> Self:
        """Read the settings out of vLLM's ``VllmConfig.additional_config``.

        Raises:
            ConfigurationError: a setting is unknown or out of range, or `plan_file` cannot be read.
        """
        additional = vllm_config.additional_config
        given = additional.get(KEY, {}) if isinstance(additional, dict) else {}
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"additional_config.pdd must be an object, not {given!r}")
        if given.get("plan_file"):
            given = {**_planned(given["plan_file"]), **given}
        known = [one.name for one in fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigurationError(f"additional_config.pdd.{name} is unknown; known: {', '.join(known)}")
        return cls(**{"strict": Env().strict, **given})


def _planned(file: str) -> Mapping[str, Any]:
    from pdd_core.planner.plan_file import PlanFile

    return PlanFile.load(Path(file)).plugin


def _budgets(name: str, value: object, kind: type[str] | type[int]) -> Mapping[Any, int]:
    """Return `value` read-only, with JSON's keys as `kind`."""
    if not isinstance(value, Mapping) or not all(map(_is_budget, value.values())):
        raise _invalid(name, "an object of budgets above 0", value)
    try:
        return MappingProxyType({kind(key): budget for key, budget in value.items()})
    except ValueError:
        raise _invalid(name, "an object with whole numbers as keys", value) from None


def _is_budget(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_depth(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _invalid(name: str, wanted: str, value: object) -> ConfigurationError:
    return ConfigurationError(f"additional_config.pdd.{name} must be {wanted}, not {value!r}")

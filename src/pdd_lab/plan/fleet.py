"""`pdd-device plan --fleet`: the best settings per class of requests for a number of GPUs."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pdd_cli.cache import check_writable, published
from pdd_core.errors import ConfigurationError
from pdd_core.planner.lengths import PROMPT_EDGES
from pdd_core.planner.profiles import mean_rate, rate_at
from pdd_lab.plan.builtin import cloud_profile, device_profile, trace
from pdd_lab.simulator.cell_link import cell_link
from pdd_lab.simulator.fleet_planner import FleetClass, Harm, plan_fleet, settings_of
from pdd_lab.traces import TraceOptions
from pdd_lab.traces.trace import MOST_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rich.console import Console

    from pdd_lab.simulator.fleet_planner import FleetPlan


_MOST = 1e9
Amount = Annotated[float, Field(ge=0, le=_MOST)]
Positive = Annotated[float, Field(gt=0, le=_MOST)]
Tokens = Annotated[int, Field(gt=0, le=MOST_TOKENS)]


class _Class(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    requests_per_s: Positive
    prompt_tokens: Tokens
    output_tokens: Tokens
    device: str
    """A profile: built in, or a file."""


class _Device(BaseModel):
    model_config = ConfigDict(extra="forbid")

    profile: str
    share: Positive
    """Of the requests, in any unit."""


class FleetFile(BaseModel):
    """A fleet: its classes one by one, or a trace and the shares of the devices, which make them."""

    model_config = ConfigDict(extra="forbid")

    gpus: Amount
    cloud: str = "h200-8b"
    rate: Positive = 20.0
    ttft_target_s: Positive = 0.5
    mixed: bool = True
    """Whether a class may be split among several settings."""
    link: str | None = None
    """Over which devices may load the cloud's KV cache, as `--link` takes it; None: they load none."""
    kv_cell_bytes: Tokens | None = None
    """Bytes of one token's cell; by default the cloud profile's."""
    harm: dict[str, Amount] = {}
    """Fields of `Harm`, where others are wanted."""
    classes: list[_Class] = []
    trace: str | None = None
    format: str | None = None
    """Of the trace, as are the next two: see `TraceOptions`."""
    block_size: int | None = None
    time_unit: str | None = None
    requests_per_s: Positive | None = None
    """Of the trace; by default as it was recorded."""
    devices: Annotated[list[_Device], Field()] = []

    @classmethod
    def load(cls, file: Path) -> FleetFile:
        """Read a fleet, as TOML or, by its suffix, as JSON.

        Raises:
            ConfigurationError: `file` cannot be read, or a field cannot be used; the message names both.
        """
        try:
            text = file.read_text("utf-8")
            return cls.model_validate(json.loads(text) if file.suffix == ".json" else tomllib.loads(text))
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise ConfigurationError(f"{file} is no fleet: {problems}") from error
        except RecursionError as error:
            raise ConfigurationError(f"{file} cannot be read: nested too deeply") from error
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{file} cannot be read: {error}") from error

    def fleet_classes(self, *, refines: bool) -> list[FleetClass]:
        """Return the classes.

        Raises:
            ConfigurationError: there are neither classes nor a trace with devices, or nobody says how many
                requests come per second.
        """
        if self.classes:
            return [_class_of(one.device, one.name, one, refines=refines) for one in self.classes]
        if self.trace is None or not self.devices:
            raise ConfigurationError("a fleet has `classes`, or a `trace` and `devices`")
        return list(self._from_trace(refines=refines))

    def _from_trace(self, *, refines: bool) -> Iterator[FleetClass]:
        requests = trace(
            self.trace or "",
            TraceOptions(format=self.format, block_size=self.block_size, time_unit=self.time_unit),
        )
        rate = self.requests_per_s or requests.requests_per_s
        if not rate:
            raise ConfigurationError(
                f"the requests of {requests.name} all come at once: requests_per_s has to say how many come per s"
            )
        buckets = np.searchsorted(PROMPT_EDGES, requests.prompt_tokens)
        whole = sum(device.share for device in self.devices)
        for bucket in np.unique(buckets):
            at = buckets == bucket
            prompt, output = (round(float(a[at].mean())) for a in (requests.prompt_tokens, requests.output_tokens))
            label = f"up to {PROMPT_EDGES[bucket]}" if bucket < len(PROMPT_EDGES) else f"over {PROMPT_EDGES[-1]}"
            for device in self.devices:
                one = _Class(
                    name=f"{label}, {device.profile}",
                    requests_per_s=rate * float(at.mean()) * device.share / whole,
                    prompt_tokens=max(1, prompt),
                    output_tokens=max(1, output),
                    device=device.profile,
                )
                yield _class_of(device.profile, one.name, one, refines=refines)


def _class_of(profile: str, name: str, one: _Class, *, refines: bool) -> FleetClass:
    device = device_profile(profile)
    return FleetClass(
        name=name,
        requests_per_s=one.requests_per_s,
        prompt_tokens=one.prompt_tokens,
        output_tokens=one.output_tokens,
        prefill_tps=float(mean_rate(device.prefill_tps, 0, one.prompt_tokens)),
        decode_tps=float(rate_at(device.decode_tps, one.prompt_tokens + one.output_tokens / 2)),
        spread=device.spread,
        n_ctx=device.n_ctx,
        refines=refines,
    )


def run_fleet(file: Path, *, json_path: Path | None, console: Console) -> None:
    """Plan, show, and write what is asked for.

    Raises:
        ConfigurationError: the file cannot be used.
    """
    check_writable(json_path)
    fleet = FleetFile.load(file)
    cloud = cloud_profile(fleet.cloud)
    if unknown := set(fleet.harm) - set(Harm.__slots__):
        raise ConfigurationError(f"{file}: harm has no {', '.join(sorted(unknown))}; {', '.join(Harm.__slots__)}")
    classes = fleet.fleet_classes(refines=cloud.refines)
    harm = Harm(**fleet.harm)
    link = (
        None
        if fleet.link is None
        else cell_link(
            cloud, fleet.link, cell_bytes=fleet.kv_cell_bytes, always=False, price_per_gb=0.0, gpu_hour_price=1.0
        )
    )
    settings = [
        settings_of(one, cloud, rate=fleet.rate, ttft_target_s=fleet.ttft_target_s, harm=harm, link=link)
        for one in classes
    ]
    plan = plan_fleet(classes, settings, fleet.gpus, mixed=fleet.mixed)
    asked = sum(one.requests_per_s for one in classes)
    _show(plan, fleet.gpus, asked, console, with_bytes=link is not None)
    if json_path:
        with published(json_path) as draft:
            draft.write_text(json.dumps(_figures(plan, fleet.gpus, asked), indent=2) + "\n", "utf-8")
        console.print(f"figures   {json_path}", soft_wrap=True, highlight=False, markup=False)


def _figures(plan: FleetPlan, gpus: float, asked: float) -> Mapping[str, Any]:
    return {"gpus": gpus, "requests_per_s": asked, **asdict(plan)}


def _show(plan: FleetPlan, gpus: float, asked: float, console: Console, *, with_bytes: bool) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    columns = ("class", "verdict", "N", "kept", "share", "req/s", "GPUs", "stalls")
    for column in (*columns, "MB") if with_bytes else columns:
        table.add_column(column, justify="left" if column in ("class", "verdict") else "right")
    for share in plan.shares:
        setting = share.setting
        if setting is None:
            table.add_row(share.name, "turned away", "", "", f"{share.share:.0%}", f"{share.requests_per_s:.2f}")
            continue
        cells = [f"{setting.kv_bytes / 1e6:.3g}"] if with_bytes else []
        table.add_row(
            share.name,
            setting.verdict.value,
            "" if setting.decode_budget is None else str(setting.decode_budget),
            f"{setting.refine_ratio:.0%}",
            f"{share.share:.0%}",
            f"{share.requests_per_s:.2f}",
            f"{share.requests_per_s * setting.gpu_s:.2f}",
            f"{setting.stalled_share:.1%}",
            *cells,
        )
    console.print(table)
    console.print(
        f"{plan.served_per_s:.3g} of {asked:.3g} requests per second are served, with {plan.gpus_used:.2f} of "
        f"{gpus:g} GPUs.",
        highlight=False,
    )
    worth = (
        f"One more GPU would be worth {plan.shadow_price:.3g} requests per second (shadow price; an answer "
        "that is turned away counts 1)."
        if plan.shadow_price > 0
        else "More GPUs would change nothing."
    )
    console.print(worth, highlight=False)

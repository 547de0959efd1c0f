"""``pdd-device replay``: from a trace file and a server to a report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from pdd_cli.cache import check_writable, published
from pdd_cli.cloud import ended_by_sigterm
from pdd_cli.host import version_of
from pdd_cli.options import check_number
from pdd_cli.plots.style import check_picture
from pdd_cli.progress import ConsoleProgress
from pdd_cli.urls import openai_base_url
from pdd_lab.load.measuring_client import LoadClient
from pdd_lab.load.random_prompts import VOCAB_SIZE, Prompts
from pdd_lab.plan.builtin import cloud_profile, device_profile
from pdd_lab.plan.builtin import trace as named_trace
from pdd_lab.replay.drawn_answer import live_median, simulated_median
from pdd_lab.replay.live_replay import Run, replay_live
from pdd_lab.replay.replay_figures import SCHEMA, Reader, answers, figures
from pdd_lab.replay.replay_plots import draw_replay
from pdd_lab.replay.replay_table import print_figures
from pdd_lab.traces import AS_ITS_FIELDS_SAY

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from pdd_cli.plots.timeline import PlottedAnswer
    from pdd_cli.progress import Step
    from pdd_lab.load.measuring_client import ServedModel
    from pdd_lab.traces import Trace, TraceOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One replay, against a live server or the simulator.

    Raises:
        ConfigurationError: `speedup` is out of its range.
    """

    trace: str
    """A file, or the name of a made-up one."""
    trace_options: TraceOptions = AS_ITS_FIELDS_SAY
    """How a file is to be read."""
    url: str | None = None
    """The server; None replays against the simulator."""
    device: str = "laptop"
    """Profile of the simulated devices: a file, or the name of a built-in one."""
    cloud: str = "h200-8b"
    """Profile of the simulated cloud, likewise."""
    policy: str = "planner"
    """Of the simulated handoffs: ``planner``, ``plain`` or ``fixed_N``."""
    api_key: str | None = None
    model: str | None = None
    speedup: float = 1.0
    """How much faster than in the trace requests arrive."""
    limit: int | None = None
    """Requests to replay, from the first on; None: all."""
    concurrency: int = 256
    """Most requests at a time."""
    reader: Reader
    vocab_size: int = VOCAB_SIZE
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("--speedup", self.speedup, 1e-6, 1e9)

    def read(self) -> Trace:
        """Return the requests, arriving at the speed at which they are to be replayed.

        Raises:
            ConfigurationError: there is no such trace.
            InvalidTrace: the file is malformed; the message has the line.
        """
        return named_trace(self.trace, self.trace_options, requests=self.limit).faster(self.speedup)


def run_replay(wanted: Replay, *, json_path: Path | None, plot: Path | None, console: Console) -> None:
    """Replay, print the figures, and write `json_path` and `plot` where they are given.

    Ctrl-C stops all requests and reports what there is.

    Raises:
        PDDError: something is not installed, or the trace, a profile or the server is unusable.
    """
    check_picture(plot)
    check_writable(json_path)
    trace = wanted.read()
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "simulated" if wanted.url is None else "live",
        "trace": {
            "name": trace.name,
            "read_as": trace.read_as or None,
            "requests": len(trace),
            "seconds": round(trace.seconds, 3),
        },
        "speedup": wanted.speedup,
        "versions": {"pdd-device": version_of("pdd-device")},
        "interrupted": False,
    }
    with ended_by_sigterm(), ConsoleProgress(console)(f"Replaying {trace.name}") as step:
        found = _simulated(wanted, trace) if wanted.url is None else _live(wanted, trace, step)
    report |= found.report
    print_figures(console, report)
    if json_path is not None:
        with published(json_path) as draft:
            draft.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        console.print(f"Figures: {json_path}", highlight=False, markup=False, soft_wrap=True)
    if plot is not None:
        title = f"{trace.name}, {wanted.speedup:g} times its speed"
        picture, _ = draw_replay(report["answers"], found.typical, plot, title=title)
        console.print(f"Picture: {picture}", highlight=False, markup=False, soft_wrap=True)
    if report["interrupted"]:
        raise KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class _Replayed:
    report: dict[str, Any]
    """The fields that depend on what was replayed against."""
    typical: PlottedAnswer | None = None
    """An answer to draw, where single tokens are known."""


def _simulated(wanted: Replay, trace: Trace) -> _Replayed:
    from pdd_lab.replay.simulated import as_answers, as_figures, simulated

    device, cloud = device_profile(wanted.device), cloud_profile(wanted.cloud)
    made = simulated(trace, device, cloud, wanted.reader, policy=wanted.policy, seed=wanted.seed)
    report = {
        "device": device.name,
        "cloud": cloud.name,
        "policy": wanted.policy,
        "figures": as_figures(made, wanted.reader),
        "answers": as_answers(made),
    }
    return _Replayed(report, simulated_median(made, wanted.reader))


def _live(wanted: Replay, trace: Trace, step: Step) -> _Replayed:
    run = Run()
    facts: dict[str, Any] = {}
    try:
        anyio.run(_replay, wanted, trace, run, facts, step)
    except KeyboardInterrupt:
        if not run.replies:
            raise
        facts["interrupted"] = True
    report = {**facts, "figures": figures(run, wanted.reader), "answers": answers(run, wanted.reader)}
    return _Replayed(report, live_median(run, wanted.reader))


async def _replay(wanted: Replay, trace: Trace, run: Run, facts: dict[str, Any], step: Step) -> None:
    assert wanted.url is not None  # noqa: S101 - else there is nothing live
    prompts = Prompts(vocab_size=wanted.vocab_size, seed=wanted.seed)
    async with LoadClient(openai_base_url(wanted.url), api_key=wanted.api_key, model=wanted.model) as client:
        served = await client.served()
        await client.probe(prompts.random(8, 0))
        facts |= {"server": _described(served), "forced": client.forces, "concurrency": wanted.concurrency}
        await replay_live(trace, client, served, prompts, run, concurrency=wanted.concurrency, say=step.say)


def _described(served: ServedModel) -> dict[str, Any]:
    return {
        "model": served.model,
        "max_model_len": served.max_model_len,
        "kind": "device" if served.device else "cloud",
        "engine": None if served.info is None else served.info.get("engine"),
    }

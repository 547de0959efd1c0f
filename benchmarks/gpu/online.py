"""The highest rate of arriving requests within latency limits: whole answers from the cloud against handoffs.

Arrivals and lengths are those of a request trace, at a rising rate. A plain request decodes its whole answer; one
that is handed off has the decode budget that the planner sets for a device of 1,000 tokens/s prefill and 20 shown.
The engine is vLLM with the plugin's scheduler and worker, asked through the plugin's recorder, without HTTP. What
the plugin costs plain requests is `offline.py`'s to say.

    python benchmarks/gpu/online.py --trace AzureLLMInferenceTrace_conv.csv --json online.json

Limits: p99 TTFT, and for plain serving also p99 TPOT, which is a request's mean time per token after its first.
Rates are bisected. Last comes a burst (`burst.py`). The JSON is written after each run.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from arrivals import Arrival, at_rates, read_trace
from budgets import planner_budget
from burst import Burst, BurstLoad, quantile
from engine_process import EngineSettings
from online_engine import Cloud, Served
from plots import draw_if_possible

HOPELESS = 0.05
"""A run ends early once this share of its requests has waited beyond the limit: five times what p99 allows."""


class Bench:
    """Runs and judges. One JSON file."""

    def __init__(self, cloud: Cloud, trace: list[Arrival], options: argparse.Namespace) -> None:
        self._cloud = cloud
        self._trace = trace
        self._options = options
        self._burst = None if options.no_burst else burst_load(options)
        reserved = self._burst.duration if self._burst else 0.0
        self._deadline = time.monotonic() + options.seconds_budget - options.loaded_s - reserved
        self.document: dict[str, Any] = {
            "benchmark": "online",
            "begun": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
            "options": {name: str(value) for name, value in vars(options).items()},
            "engine": cloud.facts,
            "limits": {"ttft_s": options.ttft, "tpot_ms": options.tpot_ms},
            "highest": {},
            "runs": [],
        }

    async def run_all(self) -> None:
        """Find the highest rate of each kind, compare both at that of plain serving, and send the burst."""
        await self._rates()
        if self._burst is not None:
            self.document["burst"] = await Burst(self._cloud, self._burst).run()
            print(json.dumps({"burst": self.document["burst"]}), flush=True)
            self.write()

    async def _rates(self) -> None:
        options = self._options
        for kind, rates in (("plain", options.plain_rates), ("handoff", options.handoff_rates)):
            self.document["highest"][kind] = await self._highest(kind, rates)
            self.write()
        best = self.document["highest"]["plain"]
        if best is None:
            return
        equal = {}
        for kind in ("plain", "handoff"):
            known = [run for run in self.document["runs"] if (run["kind"], run["rate"]) == (kind, best)]
            equal[kind] = known[0] if known else (await self._run(kind, best) if self._time_for_one() else None)
        if all(equal.values()):
            self.document["at_equal_load"] = {
                "rate": best,
                **{
                    figure: equal["handoff"][figure] / equal["plain"][figure]
                    for figure in ("ttft_p50_s", "ttft_p99_s")
                },
            }
        self.write()

    async def _highest(self, kind: str, rates: list[float]) -> float | None:
        low, high, best = 0, len(rates), None
        while low < high:
            if not self._time_for_one():
                self.document.setdefault("left_open", {})[kind] = rates[low:high]
                break
            middle = (low + high) // 2
            if (await self._run(kind, rates[middle]))["ok"]:
                best, low = rates[middle], middle + 1
            else:
                high = middle
        return best

    def _time_for_one(self) -> bool:
        return time.monotonic() + self._options.seconds + self._options.drain + 3 < self._deadline

    async def _run(self, kind: str, rate: float) -> dict[str, Any]:
        options = self._options
        arrivals = at_rates(self._trace, [(rate, options.seconds)], skip=options.skip)
        served = await self._serve(arrivals, kind)
        now = time.perf_counter()
        # where not even the warm-up was served, that is what there is to count
        counted = [one for one in served if one.arrival.at >= options.warm_up] or served
        figures = self._figures(counted, now)
        figures |= {
            "kind": kind,
            "rate": rate,
            "arrived_per_s": len(counted) / max(1.0, counted[-1].arrival.at - counted[0].arrival.at),
            "ended_early": len(served) < len(arrivals),
        }
        within_ttft = figures["ttft_p99_s"] <= options.ttft and not figures["ended_early"]
        within_tpot = figures["tpot_p99_ms"] <= options.tpot_ms
        figures |= {"within_ttft": within_ttft, "within_tpot": within_tpot}
        figures["ok"] = within_ttft and (within_tpot or kind != "plain")
        print(json.dumps({name: _rounded(value) for name, value in figures.items()}), flush=True)
        self.document["runs"].append(figures)
        self.write()
        return figures

    async def _serve(self, arrivals: list[Arrival], kind: str) -> list[Served]:
        """Send every request when it is due; return those that were sent."""
        prompts = [self._cloud.prompt(one.prompt) for one in arrivals]
        begun = time.perf_counter() + 0.1
        served: list[Served] = []
        tasks: list[asyncio.Task[None]] = []
        for one, prompt in zip(arrivals, prompts, strict=True):
            await asyncio.sleep(max(0.0, begun + one.at - time.perf_counter()))
            if self._hopeless(served, len(arrivals)):
                break
            budget = None if kind == "plain" else planner_budget(one.prompt)
            asked = one.output if budget is None else min(one.output, budget)
            served.append(Served(one, asked, due=begun + one.at))
            tasks.append(asyncio.create_task(self._cloud.serve(served[-1], prompt, budget=budget)))
        if len(served) == len(arrivals):
            await asyncio.wait(tasks, timeout=self._options.drain)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for error in results:
            if error is not None and not isinstance(error, asyncio.CancelledError):
                raise error
        await asyncio.sleep(1.0)  # the engine forgets what was cancelled
        return served

    def _hopeless(self, served: list[Served], count: int) -> bool:
        now = time.perf_counter()
        return sum(one.ttft(now) > self._options.ttft for one in served) > HOPELESS * count

    def _figures(self, served: list[Served], now: float) -> dict[str, Any]:
        ttft = [one.ttft(now) for one in served]
        tpot = [1000 * one.tpot for one in served if one.tpot is not None]
        lateness = [one.sent - one.due for one in served if one.sent is not None]
        return {
            "counted": len(served),
            "without_token": sum(one.first is None for one in served),
            "unfinished": sum(one.tokens < one.asked for one in served),
            "cloud_tokens_asked": sum(one.asked for one in served),
            "ttft_p50_s": quantile(ttft, 50, of_none=0.0),
            "ttft_p99_s": quantile(ttft, 99, of_none=0.0),
            "tpot_p50_ms": quantile(tpot, 50, of_none=0.0),
            "tpot_p99_ms": quantile(tpot, 99, of_none=0.0),
            "sent_late_p99_s": quantile(lateness, 99, of_none=0.0),
        }

    def write(self) -> None:
        """Write everything, whole or not at all."""
        path = self._options.json
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(self.document, indent=1))
        draft.replace(path)


def burst_load(options: argparse.Namespace) -> BurstLoad:
    """Return the burst to send: small where the script is only tried out."""
    if not options.cpu:
        return BurstLoad()
    return BurstLoad(prompt=32, output=64, budget=32, seconds=(4.0, 2.0, 4.0), concurrency=8, measuring_s=6.0)


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def rates(text: str) -> list[float]:
    """Read ``first:last:step``."""
    first, last, step = map(float, text.split(":"))
    return [first + step * number for number in range(int((last - first) / step) + 1)]


def main() -> None:
    """Run the benchmark."""
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True, help="Azure's CSV")
    parser.add_argument("--json", type=Path, default=Path("online.json"))
    parser.add_argument(
        "--plain-rates", type=rates, default="10:26:2", help="requests per second, first:last:step"
    )
    parser.add_argument("--handoff-rates", type=rates, default="18:40:2")
    parser.add_argument("--seconds", type=float, default=26.0, help="of arrivals")
    parser.add_argument("--warm-up", type=float, default=6.0, help="seconds of arrivals that do not count")
    parser.add_argument("--drain", type=float, default=6.0, help="seconds until the last answers are cut")
    parser.add_argument("--skip", type=int, default=16000, help="requests of the trace to leave out")
    parser.add_argument("--ttft", type=float, default=1.0, help="limit, seconds")
    parser.add_argument("--tpot-ms", type=float, default=50.0, help="limit for plain serving")
    parser.add_argument("--seconds-budget", type=float, default=540.0, help="for everything, loading included")
    parser.add_argument("--model-shape", default="llama-8b", choices=("llama-8b", "tiny"))
    parser.add_argument("--max-num-seqs", type=int, default=1024)
    parser.add_argument("--max-num-batched-tokens", type=int, default=1024)
    parser.add_argument("--max-model-len", type=int, default=16384)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--no-burst", action="store_true", help="leave the burst out")
    parser.add_argument("--cpu", action="store_true", help="vLLM's CPU build, to try the script out")
    options = parser.parse_args()
    trace = read_trace(options.trace, max_tokens=options.max_model_len)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(trace, options, Path(folder), begun))
    draw_if_possible(options.json)


async def run(trace: list[Arrival], options: argparse.Namespace, folder: Path, begun: float) -> None:
    """Load, measure, and end the engine."""
    cloud = Cloud(
        EngineSettings(
            folder=folder,
            shape=options.model_shape,
            plugin=True,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_model_len=options.max_model_len,
            gpu_memory_utilization=options.gpu_memory_utilization,
            on_cpu=options.cpu,
        )
    )
    try:
        await cloud.warm_up(requests=4 if options.cpu else 64, prompt=min(2048, options.max_model_len // 2))
        options.loaded_s = round(time.monotonic() - begun, 1)
        print(json.dumps({"loaded_s": options.loaded_s, **cloud.facts}), flush=True)
        bench = Bench(cloud, trace, options)
        await bench.run_all()
        print(json.dumps({"highest": bench.document["highest"], "equal": bench.document.get("at_equal_load")}))
    finally:
        cloud.close()


if __name__ == "__main__":
    main()

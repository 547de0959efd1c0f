"""A burst of five times the sustainable rate: budgets that stay fixed against budgets that follow the load.

One server, one run, both in turn. Requests of kind ``fixed`` ask for a budget; those of kind ``load`` ask for the
same one and also say which would do without a wait (``pdd_least_budget``), so that the policy may lower it.
Behind each is a device, computed and not run. It takes all that it is granted; with ``--cancel`` it stops the
cloud as soon as it has caught up, as this project's device does.
Arrivals are Poisson and open-loop: nobody waits for anybody. First the sustainable rate of ``fixed`` is measured
with all places taken; then each kind gets half of it, five times it for some seconds, and half of it again.

Two cases, for they end differently: ``slots``, where requests wait for a place in the batch, which a lower budget
frees; and ``prefill``, where they wait for each other's prompts, which no decode budget makes shorter.

    python benchmarks/burst.py [--case slots|prefill] [--model FOLDER] [--json FILE] [-- FLAGS OF VLLM ...]
"""

import argparse
import json
import random
import statistics
import sys
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from burst_clients import KEY, Case, Device, Load, Sent, poisson

from pdd_cli.launcher import CloudServer

KINDS = ("fixed", "load")
TIMES = 5.0
"""The burst over the sustainable rate."""
BASE = 0.5
"""The load before and after it, over the sustainable rate."""


CASES = {
    "slots": Case(prompt_tokens=32, budget=64, rate=4.0, prefill_tps=20.0, max_num_seqs=8),
    "prefill": Case(prompt_tokens=512, budget=64, rate=4.0, prefill_tps=250.0, max_num_seqs=64),
}
"""For two CPU cores and the demo model; a GPU wants others."""


def longest_gaps(tokens_at: list[float], case: Case) -> tuple[float, float]:
    """Show one answer to a user: return the longest gap between the cloud's tokens, and that before the device's.

    Tokens are shown as they come, `case.rate` per second at most. With the last of them processed, the device has
    its first.
    """
    step, shown, longest = 1 / case.rate, tokens_at[0], 0.0
    ready = Device(case)
    for number, at in enumerate(tokens_at):
        ready.receive(at)
        if number:
            before, shown = shown, max(at, shown + step)
            longest = max(longest, shown - before)
    return longest, max(ready.at, shown + step) - shown


def sustainable_rate(load: Load, case: Case, rounds: int) -> float:
    """Return requests per second with all places taken and nobody waiting, without the beginning and the end."""
    count = case.max_num_seqs * rounds
    sent = load.run([0.0] * count, case, "fixed", seed=1, at_once=case.max_num_seqs)
    ends = sorted(one.ended for one in sent)
    skip = case.max_num_seqs // 2
    return (len(ends) - 1 - 2 * skip) / (ends[-1 - skip] - ends[skip])


def quantile(values: list[float], share: float) -> float:
    """Return the nearest-rank quantile."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def figures(sent: list[Sent], case: Case, before: float, burst: float) -> dict[str, float]:
    """Return one kind's figures: of the requests that came in the burst, and when all was normal after it."""
    gaps = [longest_gaps(one.tokens_at, case) for one in sent]
    in_burst = [one for one in sent if before <= one.at < before + burst]
    calm = quantile([one.ttft for one in sent if one.at < before], 0.9)
    over = before + burst
    late = [one.at - over for one in sent if one.at >= over and one.ttft > 2 * calm]
    budgets = [(one.at - over, len(one.tokens_at)) for one in sent if one.budget_ended_it]
    lowered = [at for at, tokens in budgets if at >= 0 and tokens < case.budget]
    return {
        "requests": len(sent), "in_burst": len(in_burst),
        "ttft_before_p90_s": calm,
        "ttft_p50_s": statistics.median(one.ttft for one in in_burst),
        "ttft_p99_s": quantile([one.ttft for one in in_burst], 0.99),
        "tokens_mean": statistics.mean(len(one.tokens_at) for one in in_burst),
        "budgets_least": min((tokens for _, tokens in budgets), default=0),
        "budgets_lowered": sum(tokens < case.budget for _, tokens in budgets),
        "waited_at_handoff": sum(seam > 1.1 / case.rate for _, seam in gaps),
        "waited_for_the_cloud": sum(longest > 2 / case.rate for longest, _ in gaps),
        "ttft_normal_after_s": max([0.0, *late]),
        "budgets_normal_after_s": max([0.0, *lowered]),
        "all_ended_after_s": max(one.ended for one in sent) - over,
    }  # fmt: skip


def metrics(root_url: str) -> dict[str, float]:
    """Return the plugin's counters."""
    with urllib.request.urlopen(f"{root_url}/metrics", timeout=10) as answer:  # noqa: S310 - our own server
        lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line.startswith("pdd_")]
    return {name: float(value) for name, value in lines if "_created" not in name and "_bucket" not in name}


def measure(load: Load, case: Case, options: argparse.Namespace) -> dict[str, object]:
    """Find the sustainable rate, then give each kind the same arrivals, in turn."""
    rate = sustainable_rate(load, case, options.rounds)
    print(f"sustainable with budget {case.budget}: {rate:.2f} requests/s; least budget {case.least}", flush=True)
    before, burst, after = options.before, options.burst, options.after
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for number in range(options.repeats):
        draw = random.Random(number)
        arrivals = [
            *poisson(draw, BASE * rate, 0.0, before),
            *poisson(draw, TIMES * rate, before, before + burst),
            *poisson(draw, BASE * rate, before + burst, before + burst + after),
        ]
        for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
            result = figures(load.run(arrivals, case, kind, seed=10 + number), case, before, burst)
            runs[kind].append(result)
            print(f"{kind:5} " + "  ".join(f"{name} {value:.3g}" for name, value in result.items()), flush=True)
    p99 = {kind: statistics.median(one["ttft_p99_s"] for one in runs[kind]) for kind in KINDS}
    ratio = p99["fixed"] / p99["load"]
    print(f"p99 TTFT in the burst: fixed {p99['fixed']:.2f} s, load {p99['load']:.2f} s, ratio {ratio:.2f}")
    return {"sustainable_rps": rate, "p99_ttft_ratio": ratio, "runs": runs}


def main() -> None:
    """Run one case and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="slots")
    parser.add_argument("--model", type=Path, help="folder of a model; default the demo model")
    for name in ("prompt-tokens", "budget", "max-num-seqs", "max-tokens"):
        parser.add_argument(f"--{name}", type=int, help="instead of the case's")
    parser.add_argument("--rate", type=float, help="tokens per second shown, instead of the case's")
    parser.add_argument("--prefill-tps", type=float, help="of the device, instead of the case's")
    parser.add_argument("--cancel", action="store_true", help="devices stop the cloud once they have caught up")
    parser.add_argument("--clients", type=int, default=1, help="processes that send")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="batches to find the sustainable rate with")
    parser.add_argument("--before", type=float, default=8.0, help="seconds of normal load before the burst")
    parser.add_argument("--burst", type=float, default=5.0, help="seconds")
    parser.add_argument("--after", type=float, default=16.0, help="seconds of normal load after it")
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="flags for vLLM, after --")
    options = parser.parse_args()
    asked = {name: getattr(options, name) for name in ("prompt_tokens", "budget", "max_num_seqs", "max_tokens")}
    asked |= {"rate": options.rate, "prefill_tps": options.prefill_tps}
    case = replace(CASES[options.case], **{name: value for name, value in asked.items() if value is not None})
    model = options.model
    if model is None:
        from pdd_cli.demo_model import prepare

        model = prepare().vllm_dir
    flags = ["--max-num-seqs", str(case.max_num_seqs), *options.flags]
    server = CloudServer(model, served_name="m", api_key=KEY, extra_args=flags)
    print("starting vLLM ...", flush=True)
    with server, ProcessPoolExecutor(options.clients) as pool:
        load = Load(pool, options.clients, server.base_url, cancel=options.cancel)
        load.run([0.0, 0.0], replace(case, budget=2), "fixed", seed=0)  # warm up
        results = measure(load, case, options)
        counted = metrics(server.root_url)
    for name, value in counted.items():
        print(f"{name} {value:g}")
    if options.json:
        record = {"case": asdict(case), "least": case.least, **results, "metrics": counted, "argv": sys.argv[1:]}
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

"""How long a decision takes, one request after another and a million at once.

Each round times `--each` decisions for requests drawn at random. The figures are the rounds' median and their
least, which other programs on the machine disturb least.

    python benchmarks/planner_speed.py [--rounds 30] [--each 200] [--many 1000000]
"""

import argparse
import json
import math
import statistics
import time

import numpy as np

from pdd_core.planner.lengths import OutputLengths
from pdd_core.planner.planner import Planner
from pdd_core.planner.types import CloudState, DeviceState, Estimate, Goals, PlanRequest
from pdd_core.plugins import Policies
from pdd_lab.simulator.vector_planner import Circumstances, plan_many

DEVICE = DeviceState(prefill_tps=Estimate(1000, 200), decode_tps=Estimate(40, 4), n_ctx=16_384)
CLOUD = CloudState(ttft_s=Estimate(0.1, 0.05), tpot_s=Estimate(0.025), rtt_s=Estimate(0.05, 0.05), refines=True)


def one_by_one(lengths, *, rounds, each, refinable, through_hook):
    """Return microseconds per decision, of each round."""
    generator = np.random.default_rng(0)
    planner = Planner(lengths, Goals(must_begin_in_cloud=True))
    policies = Policies({"planner": planner}, allow=())
    times = []
    for _ in range(rounds):
        prompts = generator.lognormal(math.log(1000), 1.0, each).clip(3, 12_000).astype(int).tolist()
        requests = [
            PlanRequest(num_prompt_tokens=one, max_tokens=2000, rate=20.0, refinable=refinable) for one in prompts
        ]
        begun = time.perf_counter()
        for request in requests:
            if through_hook:
                policies.first_result("pdd_plan", bool, request=request, device=DEVICE, cloud=CLOUD)
            else:
                planner.pdd_plan(request, DEVICE, CLOUD)
        times.append((time.perf_counter() - begun) / each * 1e6)
    return times


def many(lengths, count):
    """Return the seconds for `count` decisions at once."""
    prompts = np.random.default_rng(1).lognormal(math.log(1000), 1.0, count).clip(3, 12_000)
    begun = time.perf_counter()
    plan_many(
        Circumstances(
            prompt_tokens=prompts,
            max_tokens=2000,
            rate=20,
            prefill_tps=1000,
            prefill_tps_sd=200,
            decode_tps=40,
            ttft_s=0.1,
            ttft_s_sd=0.05,
            tpot_s=0.025,
            rtt_s=0.05,
            rtt_s_sd=0.05,
        ),
        lengths.tables(),
        lengths.buckets(prompts),
        goals=Goals(must_begin_in_cloud=True),
    )
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--each", type=int, default=200)
    parser.add_argument("--many", type=int, default=1_000_000)
    args = parser.parse_args()
    generator = np.random.default_rng(2)
    lengths = OutputLengths()
    prompts = generator.lognormal(math.log(1000), 1.0, 500).clip(3, 12_000).astype(int)
    outputs = generator.lognormal(math.log(130), 0.9, 500).clip(1, 1000).astype(int)
    for prompt, output in zip(prompts.tolist(), outputs.tolist(), strict=True):
        lengths.observe("", prompt, output)
    figures = {}
    for name, refinable, hook in (("whole", False, False), ("refinable", True, False), ("hook", False, True)):
        times = one_by_one(lengths, rounds=args.rounds, each=args.each, refinable=refinable, through_hook=hook)
        figures[f"us_{name}"] = {"median": round(statistics.median(times)), "least": round(min(times))}
    figures["many"] = {"requests": args.many, "s": round(many(lengths, args.many), 2)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

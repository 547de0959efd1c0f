"""How fast the simulator is: seconds per million requests, and whether the cost grows linearly.

    python benchmarks/simulator_speed.py [--requests 1000000] [--rate 15] [--times 10] [--prompt 900] [--hashed]

Simulates `requests` and then `times` as many, with chat-like lengths that arrive at `rate` per second on an
instance of the built-in profile h200-8b. Prints CPU and wall-clock seconds. `--prompt` is the median prompt;
with `--hashed` they have prefix hashes of 512 tokens each, half of them common to one request in 200.
"""

import argparse
import resource
import time
from dataclasses import replace

import numpy as np

from pdd_lab.plan.builtin import cloud_profile
from pdd_lab.simulator.instance import simulate
from pdd_lab.simulator.offered_load import Load

BLOCK = 512


def made(requests, rate, prompt=900, *, hashed=False):
    """Log-normal lengths, Poisson arrivals."""
    draw = np.random.default_rng(0)
    prompts = np.clip(draw.lognormal(np.log(prompt), 0.9, requests), 1, 18 * prompt).astype(np.int64)
    outputs = np.clip(draw.lognormal(np.log(140), 0.9, requests), 1, 4_000).astype(np.int64)
    load = Load(np.cumsum(draw.exponential(1 / rate, requests)), prompts, outputs)
    return replace(load, **hashes(prompts)) if hashed else load


def hashes(prompts):
    """The first half of each prompt's blocks is one of 200 chains, the rest its own."""
    counts = -(-prompts // BLOCK)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    owner = np.repeat(np.arange(len(prompts)), counts)
    place = np.arange(offsets[-1]) - offsets[owner]
    chain = np.where(place < counts[owner] // 2, owner % 200, 1000 + owner)
    return {"hash_offsets": offsets, "hash_values": chain * 1000 + place, "block_tokens": BLOCK}


def main():
    """Print one line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=15.0, help="arrivals per second")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--prompt", type=float, default=900, help="median tokens")
    parser.add_argument("--hashed", action="store_true", help="prompts have prefix hashes")
    options = parser.parse_args()
    for requests in dict.fromkeys((options.requests, options.requests * options.times)):
        load = made(requests, options.rate, options.prompt, hashed=options.hashed)
        wall, cpu = time.perf_counter(), time.process_time()
        served = simulate(load, cloud_profile("h200-8b"))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(
            f"{requests:,} requests: {cpu:.1f} s of CPU, {wall:.1f} s on the clock, "
            f"{1e6 * cpu / requests:.1f} us each; {served.end_s / 3600:.1f} h simulated, "
            f"{served.preemptions} preemptions, {memory:.0f} MiB at most",
            flush=True,
        )


if __name__ == "__main__":
    main()

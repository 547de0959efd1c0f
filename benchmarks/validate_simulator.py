"""Compares the simulator with measured throughput, each shape by a profile that was fitted to the other shapes.

Shapes with a shared prefix are predicted, but nothing is fitted to them: prefix caching has costs of its own.

    python benchmarks/validate_simulator.py MEASURED.json [--profile FILE] [--save FILE]

MEASURED.json is a list of objects with the fields of `pdd_lab.simulator.fit.Measurement`: prompt,
output, cap (or null), max_num_seqs, max_num_batched_tokens, requests, shared_prefix, requests_per_s. With
--profile all rows are predicted by that profile, and nothing is fitted; --save writes the profile that is fitted
to all rows without a shared prefix. The file of benchmarks/gpu/offline.py is read as well: its runs of plain
vLLM, as runs of several waves of as many sequences.
"""

import argparse
import json
import statistics
from pathlib import Path

from pdd_core.planner.profiles import MeasuredCloud
from pdd_lab.simulator.fit import COSTS, Measurement, fit_cloud_profile, replay

WAVES = 6


def shape(row):
    """What stays the same where only the cap differs."""
    return row.prompt, row.output, row.shared_prefix


def measurements(document):
    """Return the rows of a list, or of what offline.py wrote."""
    if isinstance(document, list):
        return [Measurement.model_validate(row) for row in document]
    cells = {}
    for one in document["measured"]:
        if one["engine"] == "plain" and one["end"] in ("full", "cap"):
            key = one["prompt"], one["output"], one["shared"], None if one["end"] == "full" else one["tokens"]
            cells.setdefault(key, []).append(one)
    rows = []
    for (prompt, output, shared, cap), runs in cells.items():
        running = max(1, round(statistics.median(run["running"] for run in runs)))
        rows.append(
            Measurement(
                prompt=prompt, output=output, cap=cap, shared_prefix=shared, requests=max(256, WAVES * running),
                requests_per_s=statistics.median(run["requests_per_s"] for run in runs), max_num_seqs=running,
                max_num_batched_tokens=max(running, int(document["options"]["max_num_batched_tokens"])),
            )
        )  # fmt: skip
    return rows


def main():
    """Print predicted over measured requests per second, and how many are within 10 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    parser.add_argument("--profile", type=Path, help="a cloud profile to predict with")
    parser.add_argument("--kv-tokens", type=int, default=914_656, help="tokens that the KV cache held")
    parser.add_argument("--name", default="fitted")
    parser.add_argument("--model", default="unknown")
    parser.add_argument("--save", type=Path, help="write the profile fitted to all rows")
    options = parser.parse_args()
    rows = measurements(json.loads(options.measured.read_text()))
    named = {"name": options.name, "model": options.model, "kv_tokens": options.kv_tokens}
    within = 0
    print(f"{'shape, budget':34} {'seqs':>5} {'measured':>9} {'predicted':>9} {'ratio':>6} {'preempted':>9}")
    for row in rows:
        if options.profile:
            profile = MeasuredCloud.load(options.profile)
        else:
            profile = fit_cloud_profile(
                [other for other in rows if shape(other) != shape(row) and not other.shared_prefix], **named
            )
        served = replay(row, profile)
        predicted = row.requests / served.end_s
        ratio = predicted / row.requests_per_s
        within += abs(ratio - 1) <= 0.1
        print(
            f"{row.label:34} {row.max_num_seqs:5} {row.requests_per_s:9.2f} {predicted:9.2f} {ratio:6.3f}"
            f" {served.preemptions:9}"
        )
    print(f"{within} of {len(rows)} within 10 %")
    if options.save:
        profile = fit_cloud_profile([row for row in rows if not row.shared_prefix], **named)
        profile.save(options.save)
        print("  ".join(f"{cost}={getattr(profile, cost):.3g}" for cost in COSTS))


if __name__ == "__main__":
    main()

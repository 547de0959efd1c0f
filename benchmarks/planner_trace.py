"""What the planner makes of a trace's lengths: decode tokens saved, stalls, and how far it is from an oracle.

One request at a time, without queues (`pdd_lab.simulator.outcomes`). Each answer begins in the cloud, so that
answers of the device's own cannot flatter the figures, unless `--anywhere`. The distributions of the answers'
lengths are the trace's own, by prompt length; with `--online` the planner begins with a device profile that is
wrong by four and knows no lengths, and learns both request by request. The oracle knows every length, speed and
round trip.

    python benchmarks/planner_trace.py TRACE [--online] [--anywhere] [--tpot 0.025]

The trace is a file of any format that `pdd-device plan` reads; requests without tokens are left out.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from pdd_core.planner.calibration import CloudCalibration, DeviceCalibration
from pdd_core.planner.lengths import OutputLengths
from pdd_core.planner.planner import Planner
from pdd_core.planner.profiles import MeasuredDevice, RatePoint
from pdd_core.planner.types import CLOSING_MARGIN, Goals, PlanRequest
from pdd_lab.simulator.outcomes import VERDICTS, Requests, World, least_tokens, outcomes
from pdd_lab.simulator.vector_planner import Circumstances, plan_many
from pdd_lab.traces import load

RATE, PREFILL_TPS, DECODE_TPS, TTFT_S, RTT_S = 20.0, 1000.0, 40.0, 0.1, 0.05
LONGEST = 4096
FORECAST_SD = 0.05


def at_once(prompt, output, noise, jitter, tpot, goals):
    """Plan with exact knowledge of the distributions."""
    lengths = OutputLengths()
    for one, answer in zip(prompt.tolist(), output.tolist(), strict=True):
        lengths.observe("", one, answer)
    plans = plan_many(
        Circumstances(
            prompt_tokens=prompt,
            max_tokens=LONGEST,
            rate=RATE,
            prefill_tps=PREFILL_TPS,
            prefill_tps_sd=noise * PREFILL_TPS,
            decode_tps=DECODE_TPS,
            ttft_s=TTFT_S,
            tpot_s=tpot,
            rtt_s=RTT_S,
            rtt_s_sd=jitter,
        ),
        lengths.tables(),
        lengths.buckets(prompt),
        goals=goals,
    )
    return plans.verdict, plans.decode_budget


def online(prompt, output, speeds, rtt, tpot, goals):
    """Plan request by request, and learn from each."""
    wrong = (RatePoint(at=0, value=4 * PREFILL_TPS),)
    profile = MeasuredDevice(name="wrong", model="m", prefill_tps=wrong, decode_tps=wrong, n_ctx=4 * LONGEST)
    device, cloud, lengths = DeviceCalibration(4 * LONGEST, profile), CloudCalibration(), OutputLengths()
    planner = Planner(lengths, goals)
    verdicts, budgets = [], []
    for one, answer, speed, trip in zip(prompt.tolist(), output.tolist(), speeds, rtt, strict=True):
        request = PlanRequest(num_prompt_tokens=one, max_tokens=LONGEST, rate=RATE)
        plan = planner.pdd_plan(request, device.state(one), cloud.state(one))
        verdicts.append(VERDICTS.index(plan.verdict))
        budgets.append(plan.decode_budget or 0)
        if verdicts[-1] == 0:
            device.read(0, one, one / speed)
            device.decoded(one, answer, answer / DECODE_TPS)
        lengths.observe("", one, answer)
        cloud.first_token(one, TTFT_S + trip)
        cloud.step(tpot)
        cloud.round_trip(trip)
    return np.array(verdicts), np.array(budgets)


def figures(path, *, noise, jitter, learns, anywhere, tpot):
    trace = load(Path(path))
    prompt, output = trace.prompt_tokens, trace.output_tokens
    generator = np.random.default_rng(0)
    log_sd = np.sqrt(np.log1p(noise**2))
    speeds = PREFILL_TPS * generator.lognormal(-(log_sd**2) / 2, log_sd, len(prompt))
    rtt = np.maximum(generator.normal(RTT_S, jitter, len(prompt)), 0.002)
    forecast = generator.lognormal(0, FORECAST_SD if noise else 0, len(prompt))
    goals = Goals(must_begin_in_cloud=not anywhere)
    if learns:
        verdict, budget = online(prompt, output, speeds, rtt, tpot, goals)
    else:
        verdict, budget = at_once(prompt, output, noise, jitter, tpot, goals)
    first = TTFT_S + rtt
    world = World(
        prefill_tps=speeds,
        decode_tps=DECODE_TPS,
        ttft_s=first,
        tpot_s=tpot,
        rtt_s=rtt,
        rate=RATE,
        closing_margin=CLOSING_MARGIN if noise else None,
        forecast_ratio=forecast,
    )
    requests = Requests(prompt_tokens=prompt, output_tokens=output)
    planned = outcomes(requests, world, verdict=verdict, decode_budget=budget)
    plain = outcomes(requests, world, verdict=1, decode_budget=0)
    least = np.minimum(output, least_tokens((prompt / speeds + 1 / DECODE_TPS - first, 1 / RATE - 1 / speeds)))
    if anywhere:
        least[prompt / speeds + 1 / DECODE_TPS <= goals.ttft_s] = 0
    return {
        "trace": Path(path).stem,
        "speed noise": noise,
        "learns": learns,
        "decode_ratio": round(output.sum() / planned.cloud_decode_tokens.sum(), 2),
        "oracle": round(output.sum() / least.sum(), 2),
        "stalled_share": round(planned.stalled.mean(), 4),
        "shares": {one.value: round(float(np.mean(verdict == code)), 3) for code, one in enumerate(VERDICTS)},
        "cloud_cost": round(planned.cloud_cost.sum() / plain.cloud_cost.sum(), 3),
        "dearer_than_plain": int(np.sum(planned.cloud_cost > plain.cloud_cost)),
        "later_than_plain": int(np.sum(planned.ttft_s > plain.ttft_s)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--online", action="store_true")
    parser.add_argument("--anywhere", action="store_true")
    parser.add_argument("--tpot", type=float, default=0.025)
    args = parser.parse_args()
    for noise, jitter in ((0.0, 0.0), (0.2, 0.05)):
        options = {"learns": args.online, "anywhere": args.anywhere, "tpot": args.tpot}
        print(json.dumps(figures(args.trace, noise=noise, jitter=jitter, **options)))


if __name__ == "__main__":
    main()

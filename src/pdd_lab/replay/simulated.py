"""The same report without an engine: a trace against the simulator, with profiles of a device and a cloud."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_core.errors import ConfigurationError
from pdd_core.planner.types import Goals
from pdd_core.qoe import STALL_GAPS
from pdd_lab.plan.plan_options import fixed_budget
from pdd_lab.replay.replay_figures import quality, short, spread
from pdd_lab.simulator import choices as policies
from pdd_lab.simulator.cloud_times import cloud_times
from pdd_lab.simulator.evaluation import evaluate
from pdd_lab.simulator.outcomes import CLOUD_ONLY, DEVICE_ONLY, HANDOFF, rhythm_s
from pdd_lab.simulator.trace_scenario import Scenario, true_speeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pdd_core.planner.profiles import MeasuredCloud, MeasuredDevice
    from pdd_lab.replay.replay_figures import Reader
    from pdd_lab.simulator.evaluation import Evaluation
    from pdd_lab.simulator.outcomes import Choices
    from pdd_lab.simulator.trace_scenario import Truth
    from pdd_lab.traces import Trace

    Floats = NDArray[np.float64]

_MODES = {HANDOFF: "handoff", CLOUD_ONLY: "cloud_only", DEVICE_ONLY: "device_only"}
_USUAL_BUDGET = 128
"""The load under which the planner is first told how fast the cloud is."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """A trace's answers as the simulator has them; arrays have one entry per request."""

    trace: Trace
    evaluation: Evaluation
    truth: Truth
    """How fast devices and network turned out to be."""
    gap_cloud_s: Floats
    """Between two tokens of the cloud's part, as shown."""
    gap_device_s: Floats
    """The same of the device's."""
    seam_s: Floats
    """Between the cloud's last token and the device's first; 0 where nothing is handed over."""
    cloud_tokens: Floats
    """Of each answer; those under way when the device went on count too."""
    served: NDArray[np.bool_]
    """False where the cloud can never hold the request."""


def simulated(
    trace: Trace, device: MeasuredDevice, cloud: MeasuredCloud, reader: Reader, *, policy: str, seed: int
) -> Simulated:
    """Serve `trace` on one simulated cloud and as many devices as there are requests.

    Args:
        trace: at the speed at which it is to be replayed.
        device: what every device is like; each request's own speed is drawn around it.
        cloud: one instance.
        reader: whom the answers are for; answers are shown at the reader's rate.
        policy: ``planner``, ``plain`` (the cloud makes every answer) or ``fixed_N`` (it decodes N tokens).
        seed: of the speeds that are drawn.

    Raises:
        ConfigurationError: an unknown policy, or a cloud that holds none of the requests.
    """
    goals = Goals(ttft_s=reader.ttft_s)
    scenario = Scenario(trace=trace, device=device, cloud=cloud, rate=reader.rate, goals=goals, seed=seed)
    truth = true_speeds(scenario)
    found = evaluate(scenario, truth, _choices(scenario, policy))
    handed, gap = found.outcomes.handed_off, 1.0 / reader.rate
    verdict, output = found.choices.verdict, trace.output_tokens.astype(np.float64)
    own = np.where(
        verdict == DEVICE_ONLY,
        0.0,
        np.where(handed, np.minimum(found.outcomes.cloud_decode_tokens, output), output),
    )
    # handed off, an answer is shown in one rhythm, against which the device's first token may be late
    rhythm = rhythm_s(found.times.world(scenario, truth))
    gap_cloud = np.where(verdict == HANDOFF, rhythm, np.maximum(found.times.tpot_s, gap))
    return Simulated(
        trace=trace,
        evaluation=found,
        truth=truth,
        gap_cloud_s=gap_cloud,
        gap_device_s=np.maximum(1.0 / truth.decode_tps, gap),
        seam_s=np.where(handed & (own < output), rhythm + found.outcomes.lateness_s, 0.0),
        cloud_tokens=own,
        served=np.isfinite(found.times.ttft_s) | (verdict == DEVICE_ONLY),
    )


def _choices(scenario: Scenario, policy: str) -> Choices:
    if policy == "plain":
        return policies.plain(scenario)
    if (budget := fixed_budget(policy)) is not None:
        return policies.fixed(scenario, budget)
    if policy == "planner":
        usual = cloud_times(scenario, policies.fixed(scenario, _USUAL_BUDGET))
        return policies.planner(scenario, usual)
    raise ConfigurationError(f"--policy {policy!r} is none of planner, plain, fixed_N (such as fixed_16)")


def as_figures(made: Simulated, reader: Reader) -> dict[str, Any]:
    """Return the figures, with the names of a live replay's."""
    outcomes, trace, served = made.evaluation.outcomes, made.trace, made.served
    done, output = int(served.sum()), trace.output_tokens.astype(np.float64)
    ends = (trace.arrival_s + outcomes.ttft_s + _shown_s(made))[served]
    seconds = float(ends.max()) if done else 0.0
    stalled = int((_longest(made)[served] > STALL_GAPS / reader.rate).sum())
    values, counts = _gaps(made)
    return {
        "requests": {
            "due": len(trace),
            "completed": done,
            "failed": 0,
            "unfinished": 0,
            "too_long": len(trace) - done,
        },
        "seconds": short(seconds),
        "requests_per_s": short(done / seconds) if seconds else None,
        "output_tokens_per_s": short(float(output[served].sum()) / seconds) if seconds else None,
        "ttft_s": spread(outcomes.ttft_s[served]),
        "gap_s": _weighted(values, counts),
        "stalls": {"answers": stalled, "share": short(stalled / done) if done else None},
        "tokens": {
            "prompt": int(trace.prompt_tokens[served].sum()),
            "cloud": int(made.cloud_tokens[served].sum()),
            "device": int((output - made.cloud_tokens)[served].sum()),
        },
        "modes": dict(sorted(Counter(_modes(made)[served]).items())),
        "qoe": {**quality(outcomes.qoe[served]), "rate": reader.rate, "ttft_s": reader.ttft_s},
        "errors": {},
        "late": {"requests": 0, **spread([])},
    }


def as_answers(made: Simulated) -> list[dict[str, Any]]:
    """Return one object per request, with the names of a live replay's."""
    outcomes, trace, shown = made.evaluation.outcomes, made.trace, _shown_s(made)
    longest, modes = _longest(made), _modes(made)
    return [
        {
            "index": index,
            "due_s": short(trace.arrival_s[index]),
            "late_s": 0.0,
            "ttft_s": short(outcomes.ttft_s[index]) if served else None,
            "seconds": short(outcomes.ttft_s[index] + shown[index]) if served else None,
            "longest_gap_s": short(longest[index]) if served and longest[index] > 0 else None,
            "qoe": short(outcomes.qoe[index]) if served else None,
            "prompt_tokens": int(trace.prompt_tokens[index]),
            "cloud_tokens": int(made.cloud_tokens[index]),
            "device_tokens": int(trace.output_tokens[index] - made.cloud_tokens[index]),
            "mode": str(modes[index]),
            "finish_reason": "length" if served else None,
            "error": None,
        }
        for index, served in enumerate(made.served.tolist())
    ]


def _modes(made: Simulated) -> NDArray[np.str_]:
    return np.array([_MODES[int(verdict)] for verdict in made.evaluation.choices.verdict])


def _parts(made: Simulated) -> tuple[Floats, Floats]:
    """Return the gaps within the cloud's part and within the device's, in number."""
    device = made.trace.output_tokens - made.cloud_tokens
    return np.maximum(made.cloud_tokens - 1, 0), np.maximum(device - 1, 0)


def _shown_s(made: Simulated) -> Floats:
    """Return the time from each answer's first token to its last."""
    cloud, device = _parts(made)
    return cloud * made.gap_cloud_s + device * made.gap_device_s + made.seam_s


def _longest(made: Simulated) -> Floats:
    """Return each answer's longest wait between two tokens: no token comes early, so the longest gap."""
    cloud, device = _parts(made)
    within = np.maximum(np.where(cloud > 0, made.gap_cloud_s, 0), np.where(device > 0, made.gap_device_s, 0))
    return np.asarray(np.maximum(within, made.seam_s))


def _gaps(made: Simulated) -> tuple[Floats, Floats]:
    """Return the lengths of all gaps, and how many there are of each."""
    cloud, device = _parts(made)
    seams = (made.seam_s > 0).astype(np.float64)
    at = made.served
    lengths = np.concatenate([made.gap_cloud_s[at], made.gap_device_s[at], made.seam_s[at]])
    return lengths, np.concatenate([cloud[at], device[at], seams[at]])


def _weighted(values: Floats, counts: Floats) -> dict[str, float | None]:
    """Return the percentiles of `values`, each of them `counts` times."""
    keep = counts > 0
    if not keep.any():
        return {"p50": None, "p99": None, "max": None}
    order = np.argsort(values[keep])
    found, up_to = values[keep][order], np.cumsum(counts[keep][order])
    p50, p99 = (found[np.searchsorted(up_to, share * up_to[-1])] for share in (0.5, 0.99))
    return {"p50": short(p50), "p99": short(p99), "max": short(found[-1])}

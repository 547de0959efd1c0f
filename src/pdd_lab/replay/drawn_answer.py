"""The answer of a replay that is drawn token by token: the one with the median wait for its first token."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import numpy as np

from pdd_cli.plots.timeline import PlottedAnswer
from pdd_core.timeline import Source
from pdd_lab.simulator.outcomes import CLOUD_ONLY, DEVICE_ONLY, reading_s

if TYPE_CHECKING:
    from pdd_lab.load.reply import Reply
    from pdd_lab.replay.live_replay import Run
    from pdd_lab.replay.replay_figures import Reader
    from pdd_lab.replay.simulated import Simulated


def live_median(run: Run, reader: Reader) -> PlottedAnswer | None:
    """Return the answer with the median wait for its first token, ready to be drawn; None where there is none."""
    done = [reply for reply in run.replies if reply.ok and reply.ttft is not None]
    if not done:
        return None
    middle = statistics.median_low(reply.ttft or 0.0 for reply in done)
    chosen = next(reply for reply in done if reply.ttft == middle)
    told = chosen.pdd or {}
    return PlottedAnswer(
        title="Median wait",
        received_at=chosen.shown(),
        received_as="arrived here, and shown at once",
        shown_at=chosen.shown(),
        source=sources(chosen),
        rate=reader.rate,
        caught_up_at=told.get("caught_up_s"),
        took_over_at=told.get("took_over_s"),
    )


def sources(reply: Reply) -> list[Source]:
    """Return who made each token that was seen: where both engines had a part, the cloud made the first ones."""
    counts = reply.by_source()
    seen = len(reply.token_times)
    from_cloud = seen if not counts[Source.DEVICE] else min(seen, counts[Source.CLOUD])
    return [Source.CLOUD] * from_cloud + [Source.DEVICE] * (seen - from_cloud)


def simulated_median(made: Simulated, reader: Reader) -> PlottedAnswer | None:
    """Return the answer with the median wait for its first token, ready to be drawn; None where none is served."""
    served = np.flatnonzero(made.served)
    if not served.size:
        return None
    by_wait = served[np.argsort(made.evaluation.outcomes.ttft_s[served], kind="stable")]
    return plotted(made, int(by_wait[(served.size - 1) // 2]), reader)


def plotted(made: Simulated, index: int, reader: Reader) -> PlottedAnswer:
    """Return a served request's answer, its tokens spaced as in the figures.

    What the cloud made arrives as the cloud makes it. The device makes its first token once it has read the prompt
    and what has arrived, though no later than it is shown, and the others one after the other.
    """
    found, truth = made.evaluation, made.truth
    verdict, first = found.choices.verdict[index], float(found.outcomes.ttft_s[index])
    from_cloud = int(made.cloud_tokens[index])
    from_device = int(made.trace.output_tokens[index]) - from_cloud
    step, per_token = 1.0 / truth.decode_tps[index], 1.0 / truth.prefill_tps[index]

    arrived = first + np.arange(from_cloud) * found.times.tpot_s[index]
    shown = first + np.arange(from_cloud) * made.gap_cloud_s[index]
    begins = float(shown[-1] + made.seam_s[index]) if from_cloud else first
    caught_up = first - step
    if verdict != DEVICE_ONLY:
        ratio = found.choices.refine_ratio[index]
        prompt = made.trace.prompt_tokens[index]
        caught_up = float(reading_s(prompt, truth.prefill_tps[index], ratio=ratio, ttft_s=first))
    ready = max([caught_up + from_cloud * per_token, *arrived[-1:]]) + step
    own = min(ready, begins) + np.arange(from_device) * step
    shown_own = begins + np.arange(from_device) * made.gap_device_s[index]
    end = float(shown_own[-1] if from_device else shown[-1])
    return PlottedAnswer(
        title="Median wait",
        received_at=[*arrived.tolist(), *own.tolist()],
        shown_at=[*shown.tolist(), *shown_own.tolist()],
        source=[Source.CLOUD] * from_cloud + [Source.DEVICE] * from_device,
        rate=reader.rate,
        caught_up_at=None if verdict == CLOUD_ONLY or caught_up > end else caught_up,
        took_over_at=float(own[0]) if from_cloud and from_device else None,
    )

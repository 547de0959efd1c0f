"""Single answers of the simulator, token by token, as a live replay sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pdd_cli.plots.timeline import PlottedAnswer
from pdd_core.timeline import Source
from pdd_lab.simulator.outcomes import CLOUD_ONLY, DEVICE_ONLY, reading_s

if TYPE_CHECKING:
    from pdd_lab.replay.replay_figures import Reader
    from pdd_lab.replay.simulated import Simulated


def median_answer(made: Simulated, reader: Reader) -> PlottedAnswer | None:
    """Return the answer with the median wait for its first token, ready to be drawn; None where none is served."""
    served = np.flatnonzero(made.served)
    if not served.size:
        return None
    by_wait = served[np.argsort(made.evaluation.outcomes.ttft_s[served], kind="stable")]
    return written_out(made, int(by_wait[(served.size - 1) // 2]), reader)


def written_out(made: Simulated, index: int, reader: Reader) -> PlottedAnswer:
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

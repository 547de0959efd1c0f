"""What a device has learnt, in a few figures for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_core.planner.length_table import LONGEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_core.planner.calibration import CloudCalibration
    from pdd_core.planner.types import Estimate
    from pdd_llamacpp_adapter.runtime.learning import Learning

_PROMPTS = (128, 1024, 8192)
"""Tokens for which speeds are told; those that fit the device."""


def learnt(learning: Learning, model: str | None) -> dict[str, object]:
    """Return what to expect of device and cloud for prompts of a few lengths, JSON-ready.

    Each estimate is a mean and a standard deviation; before the first answers, a guess. `model` is what the cloud
    serves, None where there is no cloud.
    """
    lengths = [tokens for tokens in _PROMPTS if tokens < learning.n_ctx] or [learning.n_ctx // 2]
    device = [(tokens, learning.device.state(tokens)) for tokens in lengths]
    return {
        "device": [
            {
                "prompt_tokens": tokens,
                "prefill_tps": _told(state.prefill_tps),
                "decode_tps": _told(state.decode_tps),
            }
            for tokens, state in device
        ],
        "cloud": None if model is None else _cloud(learning.cloud(model), lengths),
        "answer_tokens": round(learning.lengths.table("", lengths[0]).expected(LONGEST)[0], 1),
    }


def _cloud(calibration: CloudCalibration, lengths: Sequence[int]) -> dict[str, object]:
    states = [(tokens, calibration.state(tokens, kv=calibration.link_seen)) for tokens in lengths]
    any_length = states[0][1]
    return {
        "ttft_s": [{"prompt_tokens": tokens, **_told(state.ttft_s)} for tokens, state in states],
        "tpot_s": _told(any_length.tpot_s),
        "rtt_s": _told(any_length.rtt_s),
        "link_bps": None if any_length.link_bps is None else _told(any_length.link_bps),
    }


def _told(estimate: Estimate) -> dict[str, float]:
    return {"mean": float(f"{estimate.mean:.4g}"), "sd": float(f"{estimate.sd:.4g}")}

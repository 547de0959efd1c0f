from __future__ import annotations

import pytest

from pdd_cli.demo.facts import Facts, ProfileFacts
from pdd_core.timeline import ShownToken, Source, Timeline
from pdd_llamacpp_adapter.session.outcome import KVReport, Mode, Outcome

RATE = 8.0


@pytest.fixture
def facts() -> Facts:
    return Facts(
        device_profile=ProfileFacts(name="phone", prefill_tps=80.0, decode_tps=20.0),
        prefill_tps=80.0,
        model="smollm2",
        document="declaration.txt",
        question="Why?",
        prompt_tokens=1746,
        max_tokens=448,
        decode_budget=156,
        decode_budget_set_by="auto",
        rate=RATE,
        rate_set_by="auto",
        temperature=0.0,
        frequency_penalty=0.6,
        link=None,
        kv=None,
        no_kv="the cloud hands over no KV cache",
        threads=1,
        cpus=2,
        versions={"pdd-device": "0.1.0", "cloud": "vllm 0.32.0", "llama-cpp-python": "0.3.36", "python": "3.11.7"},
    )


@pytest.fixture
def outcome():
    def make(
        mode: Mode,
        *,
        ttft: float = 5.0,
        cloud: int = 0,
        device: int = 0,
        gap: float = 1 / RATE,
        longest: float | None = None,
        ids: list[int] | None = None,
        cloud_error: str | None = None,
        kv: KVReport | None = None,
        took_over: float = 15.1,
    ) -> Outcome:
        timeline = Timeline()
        shown = ttft
        for index in range(cloud + device):
            source = Source.CLOUD if index < cloud else Source.DEVICE
            token = ids[index] if ids else 100 + index
            timeline.tokens.append(ShownToken(index, token, f" w{index}", source, ttft, shown))
            shown += longest if longest and index == cloud else gap
        return Outcome(
            mode=mode,
            finish_reason="stop",
            timeline=timeline,
            prompt_tokens=1746,
            decode_budget=156 if mode is Mode.HANDOFF else None,
            handoff_id=None,
            caught_up_at=min(15.0, took_over) if device else None,
            took_over_at=took_over if device and cloud else None,
            cloud_tokens_in_vain=3,
            cloud_error=cloud_error,
            cancel_confirmed=None,
            reused_tokens=0,
            kv=kv,
        )

    return make

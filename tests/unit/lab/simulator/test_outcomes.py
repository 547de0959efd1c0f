"""The exact model of one request, against one that goes token by token."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pdd_core.qoe import qoe
from pdd_lab.simulator.outcomes import CLOUD_ONLY, DEVICE_ONLY, HANDOFF, Outcomes, Requests, World, outcomes


def step_by_step(prompt, output, budget, *, ratio, prefill, decode, ttft, tpot, rtt, rate, target):
    """Return (stalled, received, cloud tokens, when each token was shown) by walking through the answer."""
    whole = prompt / prefill
    reading = ratio * whole + (1 - ratio) * min(ttft, whole)
    step = 1 / decode
    rhythm = max(tpot, 1 / rate, step)
    received = 0
    while received < min(budget, output):
        received += 1
        has_read = reading + received / prefill <= ttft + received * tpot + 1e-12
        lasts = reading + received / prefill + min(step, rhythm) <= ttft + received * rhythm + 1e-12
        if has_read and lasts:
            break
    shown = [ttft + k * rhythm for k in range(received)]
    stalled = False
    if output > received:
        ready = max(reading + received / prefill, ttft + (received - 1) * tpot) + min(step, rhythm)
        stalled = ready > ttft + received * rhythm + 1e-9
        begins = received * rhythm + ttft + max(0.0, ready - ttft - received * rhythm) * stalled
        shown += [begins + k * max(step, 1 / rate) for k in range(output - received)]
    vain = min(min(budget, output) - received, math.ceil(rtt / tpot))
    return stalled, received, received + vain, shown


speeds = st.fixed_dictionaries(
    {
        "prefill": st.floats(30, 5000),
        "decode": st.floats(5, 200),
        "ttft": st.floats(0.01, 5),
        "tpot": st.floats(0.005, 0.1),
        "rtt": st.floats(0, 0.5),
        "rate": st.floats(2, 60),
        "target": st.floats(0.1, 2),
    }
)


def speed(**changed):
    usual = {"decode": 5.0, "ttft": 0.1, "tpot": 0.005, "rtt": 0.0, "rate": 20.0, "target": 0.5}
    return {**usual, **changed}


# slower readers than tokens arrive: one is done at the first token, one has caught up there but cannot go on yet
@example(1, 3, 2, 1.0, speed(prefill=30.0, ttft=1.0, tpot=1 / 32, rate=2.0))
@example(1, 19, 39, 1.0, speed(prefill=40.0))
@example(2, 51, 49, 1.0, speed(prefill=40.0, tpot=0.02, rate=30.0))
@given(st.integers(1, 8000), st.integers(1, 600), st.integers(1, 600), st.sampled_from([1.0, 0.5, 0.25]), speeds)
def test_it_agrees_with_a_walk_through_the_answer(prompt, output, budget, ratio, speed) -> None:
    world = World(
        prefill_tps=speed["prefill"],
        decode_tps=speed["decode"],
        ttft_s=speed["ttft"],
        tpot_s=speed["tpot"],
        rtt_s=speed["rtt"],
        rate=speed["rate"],
        ttft_target_s=speed["target"],
    )
    requests = Requests(prompt_tokens=[prompt], output_tokens=[output])
    got = outcomes(requests, world, verdict=[HANDOFF], decode_budget=[budget], refine_ratio=[ratio])
    stalled, received, decoded, shown = step_by_step(prompt, output, budget, ratio=ratio, **speed)
    assert bool(got.stalled[0]) == stalled
    assert bool(got.handed_off[0]) == (output > received)
    assert got.cloud_decode_tokens[0] == decoded
    assert got.ttft_s[0] == shown[0] == speed["ttft"]
    assert got.qoe[0] == pytest.approx(qoe(shown, rate=speed["rate"], ttft=speed["target"]), abs=1e-6)


def world(**changed):
    usual = {"prefill_tps": 1000, "decode_tps": 40, "ttft_s": 0.1, "tpot_s": 0.025, "rtt_s": 0.05, "rate": 20}
    return World(**{**usual, **changed})


def test_one_sided_verdicts() -> None:
    requests = Requests(prompt_tokens=[800, 800], output_tokens=[200, 200], held_tokens=[0, 700])
    got = outcomes(requests, world(), verdict=[CLOUD_ONLY, DEVICE_ONLY], decode_budget=0)
    assert got.cloud_decode_tokens.tolist() == [200, 0]
    assert got.cloud_prefill_tokens.tolist() == [800, 0]
    assert got.device_prefill_tokens.tolist() == [0, 100]
    assert got.ttft_s == pytest.approx([0.1, 0.1 + 1 / 40])
    assert got.qoe.tolist() == [1, 1]
    # 10 for each prompt token, and 0.025 s times the sum of 800 + k for the 200 tokens
    assert got.cloud_cost == pytest.approx([8000 + 0.025 * (800 * 200 + 200 * 201 / 2), 0])
    assert not got.stalled.any()


def test_a_cloud_that_is_closed_early_decodes_less_and_nobody_waits() -> None:
    requests = Requests(prompt_tokens=[2000], output_tokens=[500])
    plan = {"verdict": [HANDOFF], "decode_budget": [90]}
    # without closing, the cloud at 40 tokens a second stays ahead of a device that has 2 s to read
    late = outcomes(requests, world(), **plan)
    early = outcomes(requests, world(closing_margin=0.1), **plan)
    assert late.cloud_decode_tokens[0] > 75
    assert early.cloud_decode_tokens[0] < 50
    assert not early.stalled[0]
    fooled = outcomes(requests, world(closing_margin=0.1, forecast_ratio=0.5), **plan)
    assert fooled.stalled[0]
    assert fooled.lateness_s[0] > 0.5


def test_a_device_that_never_catches_up_leaves_a_short_answer_alone() -> None:
    requests = Requests(prompt_tokens=[1000, 1000], output_tokens=[30, 50])
    got = outcomes(requests, world(prefill_tps=15), verdict=HANDOFF, decode_budget=[40, 40])
    assert got.handed_off.tolist() == [False, True]
    assert got.stalled.tolist() == [False, True]


def test_an_answer_is_due_in_its_own_rhythm_where_that_is_slower_than_the_rate() -> None:
    requests = Requests(prompt_tokens=[1000], output_tokens=[200])
    plan = {"verdict": [HANDOFF], "decode_budget": [25]}
    # 1,025 tokens and a step of 50 ms: ready at 1.075 s. 25 tokens from 0.1 s on last until 0.725 s at 40 a
    # second, and until 1.35 s at the 20 a second that the device makes, and a pacer therefore shows
    slow = world(decode_tps=20, tpot_s=0.01, rtt_s=0, rate=40)
    assert not outcomes(requests, slow, **plan).stalled[0]
    hopeful = outcomes(requests, replace(slow, paced_tps=40), **plan)
    assert hopeful.lateness_s[0] == pytest.approx(0.35 - 0.025)  # it waits for a step of 50 ms all the same
    assert not outcomes(requests, replace(slow, paced_tps=20), **plan).stalled[0]
    # a cloud that is slower than the rate makes plain serving as slow: the handoff is not late for it
    by_cloud = world(tpot_s=0.05, decode_tps=40, prefill_tps=1e6, rate=40)
    assert not outcomes(requests, by_cloud, **plan).stalled[0]


def test_a_device_a_little_slower_than_its_pacer_expects_does_not_stall_by_taking_over() -> None:
    # it has read the prompt when the first token comes, and goes on in its own steps: 60 ms where 50 were expected
    requests = Requests(prompt_tokens=[50], output_tokens=[200])
    slow = world(decode_tps=1 / 0.06, paced_tps=20, tpot_s=0.01)
    made = outcomes(requests, slow, verdict=[HANDOFF], decode_budget=[20])
    assert made.handed_off[0]
    assert not made.stalled[0]
    assert made.qoe[0] < 1


def test_qoe_of_one_answer() -> None:
    even = np.arange(100) / 10 + 0.5
    assert qoe(even, rate=10, ttft=0.5) == pytest.approx(1)
    assert qoe(even - 0.3, rate=10, ttft=0.5) == pytest.approx(1)  # early is no better than ideal
    # one second late all along: 100 tokens x 1 s of 100 x 101 / 20 + 100 x 1 s
    assert qoe(even + 1, rate=10, ttft=0.5) == pytest.approx(1 - 100 / (505 + 100))
    assert qoe([], rate=10, ttft=0.5) == 1


def test_cells_do_the_back_of_the_prompt() -> None:
    # 0.1 s to the first token, 0.05 s more to the first cell: 150 tokens are read, then 4,000 a second are done
    requests = Requests(prompt_tokens=[2150], output_tokens=[200])
    loading = world(cells_per_s=3000, tpot_s=0.05)
    ready = 0.15 + 2000 / 4000
    budget = int(np.ceil((ready + 1 / 40 - 0.1) / (1 / 20 - 1 / 1000)))
    for tokens, stalls in ((budget - 1, True), (budget, False)):
        made = outcomes(requests, loading, verdict=[HANDOFF], decode_budget=[tokens], kv=True)
        assert made.handed_off[0]
        assert made.stalled[0] == stalls
        assert made.kv_cells[0] == pytest.approx(3000 * 0.5)
        assert made.device_prefill_tokens[0] == pytest.approx(2150 - 1500)
    without = outcomes(requests, loading, verdict=[HANDOFF], decode_budget=[budget])
    assert without.stalled[0]
    assert without.kv_cells[0] == 0


def test_cells_stop_coming_when_the_answer_ends_and_one_sided_answers_have_none() -> None:
    requests = Requests(prompt_tokens=[50_000] * 3, output_tokens=[4] * 3)
    made = outcomes(
        requests, world(cells_per_s=100), verdict=[HANDOFF, CLOUD_ONLY, DEVICE_ONLY], decode_budget=9, kv=True
    )
    # four tokens, 50 ms each from 0.1 s on; the first cell at 0.15 s
    assert made.kv_cells == pytest.approx([100 * 0.15, 0, 0])


def test_a_link_that_carries_nothing_changes_nothing() -> None:
    requests = Requests(prompt_tokens=[800, 3000], output_tokens=[200, 90])
    plans = {"verdict": HANDOFF, "decode_budget": [30, 60]}
    with_cells, without = (outcomes(requests, world(), **plans, kv=kv) for kv in (True, False))
    for name in Outcomes.__slots__:
        assert (getattr(with_cells, name) == getattr(without, name)).all()

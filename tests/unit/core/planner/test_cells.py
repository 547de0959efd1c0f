"""What cells of the cloud's KV cache change in a plan."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.planner.cells import SLICES, Cells, late_with_cells, prompt_seconds
from pdd_core.planner.cost import GPU_HOUR_PRICE, KV_TOKENS, byte_weight
from pdd_core.planner.formulas import NUMBERS, Race, late
from pdd_core.planner.lengths import OutputLengths
from pdd_core.planner.planner import Planner
from pdd_core.planner.rules import LEAST_GAINED, LEAST_GAINED_BY_CELLS, LEAST_REFINED
from pdd_core.planner.types import CloudState, DeviceState, Estimate, Goals, PlanRequest, Verdict
from pdd_lab.simulator.outcomes import HANDOFF, Requests, World, outcomes

CELL = 13_312
LINK = 12.5e6


def lengths_of(outputs):
    lengths = OutputLengths()
    for output in outputs:
        lengths.observe("", 1800, int(output))
    return lengths


CHAT = lengths_of(np.random.default_rng(0).lognormal(math.log(200), 0.5, 300).clip(1, 900))


def plan(
    *,
    prefill=80.0,
    prefill_sd=0.0,
    link=LINK,
    link_sd=0.0,
    doubt=0.0,
    weight=0.0,
    goals=None,
    cloud=(),
    **request,
):
    asked = {"num_prompt_tokens": 1800, "max_tokens": 1000, "rate": 15.0, "kv_cell_bytes": CELL, **request}
    seen = {
        "ttft_s": Estimate(0.45),
        "tpot_s": Estimate(0.03),
        "rtt_s": Estimate(0.05),
        "refines": True,
        **dict(cloud),
    }
    device = DeviceState(prefill_tps=Estimate(prefill, prefill_sd), decode_tps=Estimate(20), n_ctx=16_384)
    state = CloudState(**seen, link_bps=None if link is None else Estimate(link, link_sd, doubt))
    return Planner(CHAT, goals, byte_weight=weight).pdd_plan(PlanRequest(**asked), device, state)


def handoffs(made):
    return [one for one in made.why.alternatives if one.verdict is Verdict.HANDOFF]


def test_the_prompt_is_done_from_both_ends() -> None:
    # until the first cell, 0.5 + 0.05 s, the device reads 44 tokens; then 80 + 939 a second are done
    made = plan()
    done = 0.05 + (1800 - 80 * 0.55) / (80 + LINK / CELL)
    assert (made.verdict, made.kv) == (Verdict.HANDOFF, True)
    assert made.decode_budget == math.ceil((done + 1 / 20) / (1 / 15 - 1 / 80))
    assert made.why.alternatives[-1].kv_bytes == pytest.approx((1800 - 44) / (80 + LINK / CELL) * LINK)


def test_a_device_that_has_read_its_prompt_before_the_first_cell_needs_none() -> None:
    whole, cells = handoffs(plan(prefill=5000.0))
    assert (cells.decode_budget, cells.kv_bytes) == (LEAST_REFINED, 0.0)
    assert "saves only" in cells.rejected
    assert whole.decode_budget <= cells.decode_budget


def test_a_device_too_slow_for_any_prompt_may_do_with_cells() -> None:
    assert plan(prefill=20.0, link=None).verdict is Verdict.CLOUD_ONLY
    assert plan(prefill=20.0, refinable=True, link=None).verdict is Verdict.CLOUD_ONLY
    made = plan(prefill=20.0)
    assert (made.verdict, made.kv) == (Verdict.HANDOFF, True)
    # what the cloud decodes has no cells: read no faster than it is shown, the device never catches up
    assert plan(prefill=15.0, link=1e12).verdict is Verdict.CLOUD_ONLY


def test_a_busy_device_uses_cells_once_it_begins() -> None:
    device = DeviceState(prefill_tps=Estimate(80), decode_tps=Estimate(20), n_ctx=4096, wait_s=Estimate(3.0))
    request = PlanRequest(num_prompt_tokens=1800, max_tokens=1000, rate=15, kv_cell_bytes=CELL)
    cloud = CloudState(ttft_s=Estimate(0.45), tpot_s=Estimate(0.03), rtt_s=Estimate(0.05), link_bps=Estimate(LINK))
    made = Planner(CHAT).pdd_plan(request, device, cloud)
    ready = 3.0 - 0.5 + 1800 / (80 + LINK / CELL) + 1 / 20
    assert made.decode_budget == math.ceil(ready / (1 / 15 - 1 / 80))


changes = st.fixed_dictionaries(
    {
        "prefill": st.floats(10, 2000),
        "prefill_sd": st.floats(0, 300),
        "num_prompt_tokens": st.integers(1, 9000),
        "num_held_tokens": st.integers(0, 3000),
        "max_tokens": st.integers(2, 2000),
        "rate": st.floats(4, 60),
        "cloud": st.fixed_dictionaries(
            {
                "ttft_s": st.builds(Estimate, st.floats(0.02, 3), st.floats(0, 1)),
                "rtt_s": st.builds(Estimate, st.floats(0.001, 0.3), st.floats(0, 0.2)),
            }
        ),
    }
)


@examples(60)
@given(changes, st.sampled_from([{}, {"refinable": True}, {"refine_ratio": 0.4}]))
def test_without_a_link_or_without_cells_the_plan_is_the_same(circumstances, option) -> None:
    without = plan(link=None, kv_cell_bytes=None, **circumstances, **option)
    for nothing in ({"link": 0.0}, {"link": None}, {"kv_cell_bytes": None}):
        made = plan(**{**circumstances, **option, **nothing})
        assert replace(made, why=without.why) == without
        assert made.why.alternatives == without.why.alternatives


@examples(60)
@given(changes, st.floats(1e4, 1e8), st.floats(1, 50), st.floats(0, 2), st.floats(0, 2))
def test_more_link_never_plans_more_cloud_tokens(circumstances, link, times, spread, doubt) -> None:
    slow, fast = (
        plan(link=speed, link_sd=speed * spread, doubt=doubt, **circumstances) for speed in (link, link * times)
    )

    def tokens(made):
        return made.decode_budget if made.verdict is Verdict.HANDOFF else math.inf

    if slow.verdict is Verdict.DEVICE_ONLY:
        assert fast.verdict is Verdict.DEVICE_ONLY
        return
    # one token more is taken where that takes the rest of the risk away, and the guard has its tokens
    assert tokens(fast) <= max(tokens(slow), LEAST_REFINED) + 1
    for made in (slow, fast):
        for whole, cells in [handoffs(made)] if len(handoffs(made)) == 2 else []:
            if whole.decode_budget >= LEAST_REFINED:
                assert cells.decode_budget <= whole.decode_budget + 1


@examples(100)
@given(
    st.floats(0.002, 0.1),
    st.floats(0, 1.5),
    st.floats(0, 5000),
    st.integers(1, 400),
    st.floats(1, 5000),
    st.floats(0, 2),
    st.floats(0, 3),
    st.floats(1, 20),
)
def test_a_faster_link_never_raises_the_risk(
    per_token, sigma, work, budget, per_s, link_sigma, ahead, times
) -> None:
    race = Race(work=work, credit=0.3, credit_sd=0.1, gap=1 / 15, per_token=per_token, sigma=sigma)

    def risk(speed):
        cells = Cells(per_s=speed, sigma=link_sigma, ahead=ahead, after=0.1, after_sd=0.05)
        return late(NUMBERS, replace(race, cells=cells), budget)

    assert risk(per_s * times) <= risk(per_s) + 1e-12
    assert risk(per_s) <= late(NUMBERS, race, budget)


def test_slices_are_all_of_a_distribution() -> None:
    assert math.isclose(sum(share for _, share in SLICES), 1.0)
    assert all(share > 0 for _, share in SLICES)


@pytest.mark.parametrize("spread", [(0.1, 0.0), (0.05, 0.4), (0.3, 0.3)])
def test_the_risk_is_that_of_drawn_speeds_or_a_little_more(spread) -> None:
    draw, (of_device, of_link) = np.random.default_rng(0), spread
    race = Race(work=1800.0, credit=0.4, credit_sd=0.0, gap=1 / 15, per_token=1 / 80, sigma=of_device)
    cells = Cells(per_s=900.0, sigma=of_link, ahead=0.5, after=0.1, after_sd=0.0)
    p, s = 80 * draw.lognormal(0, of_device, 100_000), 900 * draw.lognormal(0, of_link, 100_000)
    for budget in (34, 37, 40, 45, 60, 80):
        takes = cells.after + np.maximum(0, race.work - cells.ahead * p) / (p + s) + budget / p
        drawn = float((takes > budget * race.gap).mean())
        told = late_with_cells(NUMBERS, race, cells, budget)
        assert drawn - 0.003 <= told <= drawn * 1.5 + 0.06


def test_as_many_stall_as_were_allowed_with_cells() -> None:
    made = plan(prefill_sd=8.0, link_sd=0.3 * LINK)
    draw, count = np.random.default_rng(1), 20_000

    def factors(spread):
        sigma = math.sqrt(math.log1p(spread**2))
        return draw.lognormal(-(sigma**2) / 2, sigma, count)

    result = outcomes(
        Requests(prompt_tokens=np.full(count, 1800), output_tokens=200),
        World(
            prefill_tps=80 * factors(0.1), cells_per_s=LINK / CELL * factors(0.3), decode_tps=20, ttft_s=0.5,
            tpot_s=0.03, rtt_s=0.05, rate=15.0,
        ),
        verdict=HANDOFF,
        decode_budget=made.decode_budget,
        kv=True,
    )  # fmt: skip
    assert 0.001 <= result.stalled.mean() <= 0.0115


def test_bytes_have_a_price_and_dear_ones_are_not_sent() -> None:
    free, cheap, dear = (plan(weight=weight) for weight in (0.0, 1e-5, 1e-3))
    assert (free.kv, cheap.kv, dear.kv) == (True, True, False)
    cells = handoffs(cheap)[-1]
    assert cells.cost == pytest.approx(handoffs(free)[-1].cost + 1e-5 * cells.kv_bytes)
    assert "cost too much" in handoffs(dear)[-1].rejected
    refined = plan(weight=1e-3, refinable=True)
    assert (refined.kv, refined.refine_ratio) == (False, 0.25)
    assert plan(refinable=True).refine_ratio is None, "cells leave nothing out"


def test_cells_need_to_gain_less_than_a_refined_prompt_since_they_leave_nothing_out() -> None:
    made = plan(prefill=900.0, cloud={"ttft_s": Estimate(0.1)}.items(), verdict=Verdict.HANDOFF)
    without, with_cells = handoffs(made)
    assert LEAST_GAINED_BY_CELLS <= with_cells.saved - without.saved < LEAST_GAINED
    assert made.kv


def test_a_byte_s_price_in_token_seconds() -> None:
    # an engine that holds 400,000 tokens for an hour, for 3: 10^9 bytes for 3 are as much
    assert 1e9 * byte_weight(3.0, 3.0, 400_000) == pytest.approx(400_000 * 3600)
    assert byte_weight(0.0, GPU_HOUR_PRICE, KV_TOKENS) == 0.0


def test_metered_links_are_left_alone_unless_it_has_to_be() -> None:
    metered = plan(kv_metered=True)
    assert not metered.kv
    assert handoffs(metered)[-1].rejected == "the link is metered"
    assert "the link is metered" in metered.why.reason
    assert plan(kv_metered=True, kv_always=True).kv


def test_always_is_every_handoff_with_the_whole_prompt() -> None:
    assert [one.kv for one in handoffs(plan(kv_always=True, refinable=True))] == [True]
    assert not plan(kv_always=True, refine_ratio=0.4).kv
    assert plan(kv_always=True, num_prompt_tokens=30).verdict is Verdict.DEVICE_ONLY
    assert plan(kv_always=True, weight=1e-3).kv, "whatever the bytes cost"
    asked = plan(kv_always=True, link=1.0, verdict=Verdict.HANDOFF)
    assert (asked.verdict, asked.kv) == (Verdict.HANDOFF, True)


def test_cells_and_a_refined_prompt_that_is_held_exclude_each_other() -> None:
    for always in (False, True):
        made = plan(num_held_tokens=200, num_held_whole_tokens=50, kv_always=always)
        assert not made.kv
        assert handoffs(made)[1].rejected == "the device holds a refined prompt"


def test_it_is_told_in_words_and_numbers() -> None:
    made = plan(link_sd=1e6)
    assert "MB of the cloud's KV cache take the place of reading" in made.why.reason
    told = json.loads(json.dumps(made.why.as_json(), allow_nan=False))
    assert told["inputs"]["link_bps"] == LINK
    assert told["inputs"]["kv_cell_bytes"] == CELL
    cells = told["alternatives"][-1]
    assert cells["kv"] is True
    assert cells["kv_bytes"] > 2e7
    assert f"kv={cells['kv_bytes'] / 1e6:.3g}MB" in str(made.why.alternatives[-1])
    assert "link_bps" not in plan(kv_cell_bytes=None).why.inputs


def test_a_slower_device_and_link_take_longer() -> None:
    race = Race(work=1800.0, credit=0.4, credit_sd=0.0, gap=1 / 15, per_token=1 / 80, sigma=0.0)
    cells = Cells(per_s=900.0, sigma=0.0, ahead=0.5, after=0.1, after_sd=0.0)
    usual, slower = (prompt_seconds(NUMBERS, race, cells, share) for share in (0.0, 0.15))
    assert usual == pytest.approx(1760 / 980)
    assert slower == pytest.approx((1800 - 40 / 1.15) / (980 / 1.15))


def test_a_careless_goal_needs_less_head_room() -> None:
    budgets = [
        plan(link_sd=0.5 * LINK, prefill_sd=8, goals=Goals(stall_probability=allowed)).decode_budget
        for allowed in (0.2, 0.01, 0.001)
    ]
    assert budgets == sorted(budgets)
    assert budgets[0] < budgets[-1]

"""Links by name and by speed, and what a policy makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from pdd_core.errors import ConfigurationError
from pdd_core.planner.profiles import MeasuredDevice, RatePoint
from pdd_lab.plan.builtin import cloud_profile
from pdd_lab.simulator.cell_link import LINKS, CellLink, cell_link, link_speed
from pdd_lab.simulator.evaluation import compare
from pdd_lab.simulator.outcomes import HANDOFF
from pdd_lab.simulator.trace_scenario import Scenario, true_speeds
from pdd_lab.traces import synthesise

CLOUD = cloud_profile("h200-8b").model_copy(update={"kv_cell_bytes": None, "kv_tokens": 900_000})


def scenario_of(trace, *, prefill=1000.0, **changes):
    device = MeasuredDevice(
        name="d", model="m", prefill_tps=(RatePoint(at=0, value=prefill),),
        decode_tps=(RatePoint(at=0, value=40.0),), spread=0.0, n_ctx=32_768,
    )  # fmt: skip
    return Scenario(trace=trace, device=device, cloud=CLOUD, **{"rate": 20.0, **changes})


def test_a_link_has_a_name_or_a_speed() -> None:
    assert link_speed("100mbit")[0] == 12.5e6
    assert [link_speed(name) for name in LINKS] == list(LINKS.values())
    assert link_speed("LAN")[0] > link_speed("wifi")[0] > link_speed("4g")[0]
    for text, problem in (("fast", "none of 4g"), ("100mbit/30ms", "--rtt-ms"), ("-1mbit", "no speed")):
        with pytest.raises(ConfigurationError, match=problem):
            link_speed(text)


def test_what_is_not_said_is_the_cloud_s() -> None:
    options = {"cell_bytes": None, "always": False, "price_per_gb": 0.09, "gpu_hour_price": 3.0}
    with pytest.raises(ConfigurationError, match="how large a cell is: --kv-cell-bytes"):
        cell_link(CLOUD, "lan", **options)
    known = CLOUD.model_copy(update={"kv_cell_bytes": 5000})
    with pytest.raises(ConfigurationError, match="how fast the link is: --link"):
        cell_link(known, None, **options)
    known = known.model_copy(update={"link_bps": 1e6, "link_spread": 0.4})
    made = cell_link(known, None, **options)
    assert (made.bytes_per_s, made.spread, made.cell_bytes, made.cells_per_s) == (1e6, 0.4, 5000, 200)
    # 900,000 tokens for an hour cost 3, 10^9 bytes 0.09
    assert made.byte_weight == pytest.approx(0.09 / 1e9 / (3 / 3600 / 900_000))


def test_a_link_leaves_devices_and_round_trips_as_they_were() -> None:
    trace = synthesise("chat", requests=50)
    without, with_link = (
        true_speeds(scenario_of(trace, link=link))
        for link in (None, CellLink(bytes_per_s=1e7, spread=0.3, cell_bytes=10_000))
    )
    assert (without.prefill_tps == with_link.prefill_tps).all()
    assert (without.rtt_s == with_link.rtt_s).all()
    assert np.mean(with_link.cells_per_s) == pytest.approx(1000, rel=0.2)


def test_slow_devices_hand_off_more_with_cells_and_the_oracle_is_a_bound() -> None:
    trace = synthesise("chat", requests=200)
    link = CellLink(bytes_per_s=12.5e6, spread=0.1, cell_bytes=13_312)
    without, made = (compare(scenario_of(trace, prefill=80.0, rate=15.0, link=one)) for one in (None, link))
    assert made["planner"].share(HANDOFF) > without["planner"].share(HANDOFF)
    assert made["planner"].decode_tokens < 0.5 * without["planner"].decode_tokens
    assert made["oracle"].decode_tokens <= made["planner"].decode_tokens
    assert made["oracle"].decode_tokens < without["oracle"].decode_tokens
    assert made["planner"].stalled_share <= 0.03
    most = trace.prompt_tokens.sum() * link.cell_bytes
    assert 0 < made["planner"].kv_bytes < most
    assert made["plain"].kv_bytes == without["planner"].kv_bytes == 0
    assert made["planner"].kv_share > 0.5

from dataclasses import replace

import numpy as np

from pdd_core.planner.length_table import EDGES
from pdd_core.planner.lengths import BUCKETS, OutputLengths
from pdd_core.planner.profiles import MeasuredCloud, MeasuredDevice, RatePoint
from pdd_core.planner.types import Goals
from pdd_lab.simulator import choices
from pdd_lab.simulator.choices import learnt_planner, plain, planner
from pdd_lab.simulator.cloud_times import cloud_times
from pdd_lab.simulator.trace_scenario import Scenario
from pdd_lab.simulator.vector_planner import plan_many
from pdd_lab.traces import synthesise

DEVICE = MeasuredDevice(
    name="d", model="m", prefill_tps=(RatePoint(at=0, value=1000),), decode_tps=(RatePoint(at=0, value=40),),
    n_ctx=32768,
)  # fmt: skip
CLOUD = MeasuredCloud(
    name="c", model="m", base_s=0.004, per_prefill_token_s=2.3e-5, per_sequence_s=2.3e-5, per_context_token_s=3e-8,
    kv_tokens=900_000, max_num_seqs=512, max_num_batched_tokens=1024, rtt_s=0.04, jitter_s=0.0,
)  # fmt: skip


def scenario(names):
    """The same 600 requests, each of the group that is its turn."""
    trace = replace(synthesise("chat", requests=600), groups=np.arange(600) % len(names), group_names=tuple(names))
    goals = Goals(must_begin_in_cloud=True)
    return Scenario(trace=trace, device=DEVICE, cloud=CLOUD, rate=20.0, goals=goals)


def test_requests_are_planned_at_once_however_many_groups_they_are_of(monkeypatch):
    def counted(*given, **options):
        tables.append(len(given[1]))
        return plan_many(*given, **options)

    tables = []
    monkeypatch.setattr(choices, "plan_many", counted)
    asked = scenario([f"g{number}" for number in range(600)])
    planner(asked, cloud_times(asked, plain(asked)))
    assert len(tables) == 3, "batches of 256"
    assert tables == [1, 1, 1], "nobody who asks is known"


def test_each_request_has_its_own_group_s_table():
    names = ("short", "long", "new")
    asked = scenario(names)
    lengths = OutputLengths()
    for prompt in (50, 400, 900, 1500, 3000, 6000) * 40:
        lengths.observe("short", prompt, 3)
        lengths.observe("long", prompt, EDGES[-10])
    times = cloud_times(asked, plain(asked))
    mixed = learnt_planner(asked, times, lengths)
    alone = [learnt_planner(scenario([name]), times, lengths) for name in names]
    for number, one in enumerate(alone):
        of = asked.trace.groups == number
        assert np.array_equal(mixed.decode_budget[of], one.decode_budget[of])
        assert np.array_equal(mixed.verdict[of], one.verdict[of])
        assert not np.array_equal(one.decode_budget, alone[number - 1].decode_budget)
    assert len({id(table) for name in names for table in lengths.tables(name)}) <= 2 * BUCKETS + 1

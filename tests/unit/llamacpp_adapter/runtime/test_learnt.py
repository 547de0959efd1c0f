"""What was learnt, told in a few figures."""

import json

import pytest

from pdd_core.env import ServeSettings
from pdd_core.planner.plan_file import PlanFile
from pdd_llamacpp_adapter.runtime.learning import Learning
from pdd_llamacpp_adapter.runtime.learnt import learnt


@pytest.mark.parametrize(("n_ctx", "prompts"), [(64, [32]), (1024, [128]), (4096, [128, 1024])])
def test_speeds_are_told_for_prompts_that_fit(n_ctx, prompts):
    told = learnt(Learning(ServeSettings(), PlanFile(), n_ctx=n_ctx), None)
    assert [one["prompt_tokens"] for one in told["device"]] == prompts
    assert told["cloud"] is None
    json.dumps(told, allow_nan=False)


def test_what_was_seen_counts():
    learning = Learning(ServeSettings(), PlanFile(), n_ctx=1024)
    for _ in range(20):
        learning.device.read(0, 128, 1.0)
        learning.device.decoded(128, 10, 0.5)
        learning.cloud("m").step(0.02)
        learning.cloud("m").cells(2**20, 0.5)
        learning.lengths.observe("", 100, 300)
    told = learnt(learning, "m")
    assert told["device"][0]["prefill_tps"]["mean"] == pytest.approx(128, rel=0.1)
    assert told["device"][0]["decode_tps"]["mean"] == pytest.approx(20, rel=0.1)
    assert told["cloud"]["tpot_s"]["mean"] == pytest.approx(0.02, rel=0.1)
    assert told["cloud"]["link_bps"]["mean"] == pytest.approx(2**21, rel=0.2)
    assert 100 < told["answer_tokens"] < 600
    assert learnt(learning, "other")["cloud"]["link_bps"] is None

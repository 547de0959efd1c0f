"""What becomes of a request under a plan."""

from __future__ import annotations

import pytest

from pdd_core.env import ServeSettings
from pdd_core.planner.types import Plan, Verdict
from pdd_llamacpp_adapter.engine.speed import DeviceSpeed
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.runtime.terms import Terms


@pytest.fixture
def planned():
    def make(plan, *, prompt=400, max_tokens=200, ratio=None, n_ctx=4096, **settings):
        speed = DeviceSpeed()
        speed.prefill_tps, speed.step_s = 200.0, 0.02
        terms = Terms(ServeSettings(**settings), speed, n_ctx=n_ctx)
        request = AnswerRequest(prompt_token_ids=[1] * prompt, max_tokens=max_tokens, refine_ratio=ratio)
        made = terms.planned(request, plan, 20.0, held=0)
        return made.decode_budget, made.refine_ratio

    return make


def test_a_handoff_gets_what_its_plan_says(planned):
    assert planned(Plan(Verdict.HANDOFF, 31, 0.5)) == (31, 0.5)
    assert planned(Plan(Verdict.HANDOFF, 31), ratio=0.5) == (31, None)
    assert planned(Plan(Verdict.HANDOFF, 900)) == (200, None)


def test_a_plan_without_a_budget_gets_the_formulas(planned):
    # 20 * 400 / 180 = 44.4, 45, times 1.3
    assert planned(Plan(Verdict.HANDOFF)) == (59, None)
    assert planned(Plan(Verdict.HANDOFF), decode_budget=7) == (7, None)


@pytest.mark.parametrize("verdict", [Verdict.CLOUD_ONLY, Verdict.DEVICE_ONLY])
def test_one_side_alone_has_a_budget_in_reserve_and_reads_the_whole_prompt(planned, verdict):
    assert planned(Plan(verdict), ratio=0.5) == (59, None)
    # but for a prompt that fits the device only if it is refined
    assert planned(Plan(verdict), ratio=0.5, n_ctx=500)[1] == 0.5


@pytest.mark.parametrize(
    ("refine", "held", "expected"),
    [
        ("2 s", 0, 0.15),
        ("2 s", 3000, 0.6),  # 600 of the 1,000 that are left to read
        ("2 s", 3400, None),
        ("512 tokens", 0, 0.128),
        ("512 tokens", 3000, 0.512),
        ("512 tokens", 3500, None),
        ("auto", 0, 0.25),
        ("auto", 3000, 0.6),
        (0.25, 3000, 0.25),
        (0.25, 3960, None),
    ],
)
def test_a_share_is_of_what_the_device_has_to_read(refine, held, expected):
    speed = DeviceSpeed()
    speed.prefill_tps, speed.step_s = 300.0, 0.05
    terms = Terms(ServeSettings(refine=refine), speed, n_ctx=8192)
    assert terms.refine_ratio(4000, 200, held=held) == (None if expected is None else pytest.approx(expected))


def test_a_device_that_was_never_measured_leaves_the_cloud_its_time():
    terms = Terms(ServeSettings(), DeviceSpeed(), n_ctx=4096)
    request = AnswerRequest(prompt_token_ids=[1] * 40, max_tokens=90)
    assert terms.planned(request, Plan(Verdict.HANDOFF), 20.0, held=0).decode_budget == 90

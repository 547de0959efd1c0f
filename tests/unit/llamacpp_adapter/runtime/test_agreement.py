"""How an answer is made, by the settings, the plan and what is known. No engine is needed to agree on that."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pdd_core.env import ServeSettings
from pdd_core.planner.types import Plan, Verdict
from pdd_llamacpp_adapter.engine.speed import DeviceSpeed
from pdd_llamacpp_adapter.request import AnswerRequest, Grammar, GrammarKind, OwnSettings
from pdd_llamacpp_adapter.runtime.agreement import Agreements
from pdd_llamacpp_adapter.runtime.planning import Facts, Planning


@pytest.fixture
def planned():
    def make(plan, *, prompt=400, max_tokens=200, ratio=None, n_ctx=4096, **settings):
        speed = DeviceSpeed()
        speed.prefill_tps, speed.step_s = 200.0, 0.02
        agreements = Agreements(ServeSettings(**settings), None, speed, n_ctx=n_ctx)
        request = AnswerRequest(prompt_token_ids=[1] * prompt, max_tokens=max_tokens, refine_ratio=ratio)
        made = agreements.planned(request, plan, 20.0, held=0)
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
    agreements = Agreements(ServeSettings(refine=refine), None, speed, n_ctx=8192)
    assert agreements.refine_ratio(4000, 200, held=held) == (None if expected is None else pytest.approx(expected))


def test_a_device_that_was_never_measured_leaves_the_cloud_its_time():
    agreements = Agreements(ServeSettings(), None, DeviceSpeed(), n_ctx=4096)
    request = AnswerRequest(prompt_token_ids=[1] * 40, max_tokens=90)
    assert agreements.planned(request, Plan(Verdict.HANDOFF), 20.0, held=0).decode_budget == 90


@pytest.fixture
def agree():
    """Agree on an answer with a device that reads 200 and makes 50 tokens per second."""

    def make(facts, *, prompt=100, max_tokens=50, ratio=None, n_ctx=500, own=None, **settings):
        settings = ServeSettings(**{"plan": "off", **settings})
        speed = DeviceSpeed()
        speed.prefill_tps, speed.step_s = 200.0, 0.02
        agreements = Agreements(settings, Planning(settings, n_ctx=n_ctx), speed, n_ctx=n_ctx)
        request = AnswerRequest(prompt_token_ids=[1] * prompt, max_tokens=max_tokens, refine_ratio=ratio)
        request = request if own is None else replace(request, own=own)
        return agreements.agree(request, facts)

    return make


def facts(*, max_model_len=2000, refinement="attention", **fields):
    info = SimpleNamespace(model="m", max_model_len=max_model_len, refinement=refinement)
    return Facts(**{"has_cloud": True, "info": info, "held": 0, "held_whole": 0, **fields})


def parts(agreed):
    return agreed.plan.plan.verdict, agreed.engine, agreed.cloud


def test_both_sides_have_a_part_in_a_handoff(agree):
    agreed = agree(facts())
    assert parts(agreed) == (Verdict.HANDOFF, True, True)
    assert agreed.rate == pytest.approx(45)
    # 45 * 100 / 155 = 29.03, 30, times 1.3
    assert (agreed.request.decode_budget, agreed.request.least_budget) == (39, 30)


def test_a_cloud_that_has_not_answered_yet_counts(agree):
    assert parts(agree(facts(info=None))) == (Verdict.HANDOFF, True, True)
    # what does not fit the device is refused by the session: nobody knows yet whether it fits the cloud
    assert parts(agree(facts(info=None), prompt=480)) == (Verdict.HANDOFF, True, True)


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (facts(has_cloud=False, info=None), "there is no cloud"),
        (facts(max_model_len=149), "it does not fit the cloud"),
    ],
)
def test_without_a_cloud_the_device_answers_alone_and_unpaced(agree, known, why):
    agreed = agree(known, refine=0.25)
    assert parts(agreed) == (Verdict.DEVICE_ONLY, True, False)
    assert (agreed.plan.by, agreed.plan.plan.why.reason) == ("settings", why)
    assert agreed.rate == math.inf
    assert agreed.request.refine_ratio is None


def test_without_a_cloud_only_what_is_held_whole_need_not_be_read(agree):
    held = {"has_cloud": False, "info": None, "held": 99}
    assert agree(facts(**held, held_whole=99), rate=45.0).request.decode_budget == 4
    assert agree(facts(**held, held_whole=0), rate=45.0).request.decode_budget == 39


def test_what_does_not_fit_the_device_is_the_clouds_alone(agree):
    agreed = agree(facts(), prompt=480)
    assert parts(agreed) == (Verdict.CLOUD_ONLY, False, True)
    assert agreed.plan.plan.why.reason == "prompt and answer do not fit the device's context"
    assert parts(agree(facts(), prompt=480, ratio=0.5)) == (Verdict.HANDOFF, True, True)
    assert parts(agree(facts(refinement="off"), prompt=480, ratio=0.5)) == (Verdict.CLOUD_ONLY, False, True)


def test_the_device_alone_is_shown_as_fast_as_it_can_be_and_a_client_that_waits_gets_all_at_once(agree):
    assert agree(facts(), plan="device", rate="auto").rate == math.inf
    assert agree(facts(), plan="cloud", rate="auto").rate == pytest.approx(45)
    assert agree(facts(paced=False), rate=7.5).rate == math.inf
    assert agree(facts(paced=False), plan="device", rate=7.5).rate == math.inf


def test_a_share_that_the_request_names_wins_over_the_settings(agree):
    assert agree(facts(), refine=0.25, prompt=400).request.refine_ratio == 0.25
    assert agree(facts(), refine=0.25, prompt=400, ratio=0.7).request.refine_ratio == 0.7


def test_what_others_wait_for_goes_into_the_plan(agree):
    left = SimpleNamespace(prompt_tokens=400, to_read=400, made=0)
    alone, queued = (agree(facts(busy=busy), plan="auto", prompt=20) for busy in ((), (left,)))
    inputs = [agreed.plan.plan.why.as_json()["inputs"] for agreed in (alone, queued)]
    assert inputs[0] != inputs[1]


def test_what_the_engines_read_differently_is_not_handed_over():
    def agreed(differs, **settings):
        settings = ServeSettings(cloud_url="http://c/v1", **settings)
        speed = DeviceSpeed()
        speed.prefill_tps, speed.step_s = 200.0, 0.02
        agreements = Agreements(settings, Planning(settings, n_ctx=4096), speed, n_ctx=4096)
        grammar = Grammar(GrammarKind.JSON, "{}", explicit=True, differs=differs)
        request = AnswerRequest(prompt_token_ids=[1] * 400, max_tokens=200, grammar=grammar)
        info = SimpleNamespace(refinement="off", max_model_len=8192, model="m")
        facts = Facts(has_cloud=True, info=info, held=0, held_whole=0, paced=True, group="", busy=[])
        made = agreements.agree(request, facts)
        return made.plan.plan.verdict, made.plan.plan.why.reason, made.engine

    assert agreed(None, plan="handoff", decode_budget=8)[0] is Verdict.HANDOFF
    reason = "both engines read the answer's format differently: format"
    assert agreed("format", plan="handoff", decode_budget=8) == (Verdict.CLOUD_ONLY, reason, True)
    assert agreed("format", plan="device")[0] is Verdict.DEVICE_ONLY


@pytest.mark.parametrize(
    ("plan", "verdict"),
    [
        ("device", Verdict.DEVICE_ONLY),
        ("cloud", Verdict.CLOUD_ONLY),
        ("handoff", Verdict.HANDOFF),
        ("off", Verdict.HANDOFF),
    ],
)
@pytest.mark.parametrize("budget", ["auto", 8])
def test_a_plan_of_the_answer_s_own_wins_over_the_settings(agree, plan, verdict, budget):
    agreed = agree(facts(), own=OwnSettings(plan=plan), plan="cloud", decode_budget=budget)
    assert agreed.plan.plan.verdict is verdict


def test_a_fixed_budget_counts_for_a_handoff_that_an_answer_asks_for(agree):
    assert agree(facts(), own=OwnSettings(plan="handoff"), decode_budget=8).request.decode_budget == 8
    assert agree(facts(), own=OwnSettings(rate=12.0), decode_budget=8).request.decode_budget == 8


def test_rate_and_refinement_of_the_answer_s_own_win_over_the_settings(agree):
    own = OwnSettings(rate=12.0, refine=0.25)
    assert agree(facts(), own=own).rate == 12
    assert agree(facts(), own=own).request.refine_ratio == 0.25
    assert agree(facts(), own=OwnSettings(refine="off"), refine=0.25).request.refine_ratio is None
    assert agree(facts(has_cloud=False, info=None), own=own).rate == 12
    assert agree(facts(), own=OwnSettings(rate="unlimited"), rate=5.0).rate == math.inf


def test_an_answer_s_own_settings_are_not_the_next_one_s():
    settings = ServeSettings(plan="off")
    agreements = Agreements(settings, Planning(settings, n_ctx=500), DeviceSpeed(), n_ctx=500)
    request = AnswerRequest(prompt_token_ids=[1] * 9, max_tokens=9)
    own = OwnSettings(plan="device", rate=5.0)
    before = agreements.agree(request, facts())
    assert parts(agreements.agree(replace(request, own=own), facts())) == (Verdict.DEVICE_ONLY, True, True)
    assert agreements.agree(request, facts()) == before

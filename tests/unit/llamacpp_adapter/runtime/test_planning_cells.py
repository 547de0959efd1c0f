"""A runtime whose cloud has cells of its KV cache: when they are asked for, and what is learnt of the link."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pdd_core.env import ServeSettings
from pdd_core.handoff import KV_HANDOVER
from pdd_core.hookspecs import hookimpl
from pdd_core.kv.cell_types import CellType
from pdd_core.kv.geometry import KVGeometry, KVPart, NoKV, RopeGeometry
from pdd_core.planner.tracker import Tracker
from pdd_core.planner.types import Plan, Verdict
from pdd_core.refinement.guard import LEAST_TOKENS
from pdd_core.timeline import Timeline
from pdd_llamacpp_adapter.cloud.cloud_monitor import Connection
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.runtime.runtime import Runtime
from pdd_llamacpp_adapter.session.outcome import KVReport

GEOMETRY = KVGeometry(
    num_layers=16, num_kv_heads=8, head_size=64, key_type=CellType.Q8_0, value_type=CellType.Q4_0,
    key_rotation=64, value_rotation=64, rope=RopeGeometry(theta=10_000.0, rotary_dim=64),
    parts=[KVPart(layers=(0, 16), heads=(0, 8))],
)  # fmt: skip


class Support:
    """What the engine says of its own cells."""

    def __init__(self, problem=None):
        self.problem = problem

    def differs_from(self, geometry):
        return self.problem


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PDD_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def runtime(fake_engine):
    """A runtime that knows its device (80 tokens/s), its cloud, and a link of 100 Mbit/s."""

    def make(
        *,
        kv="auto",
        cells=GEOMETRY,
        features=(KV_HANDOVER,),
        problem=None,
        mbit=100,
        held=0,
        whole=None,
        **settings,
    ):
        engine = fake_engine(n_ctx=8192)
        engine.kv = Support(problem)
        engine.holds = lambda prompt, *, refined=True: held if refined or whole is None else whole
        info = SimpleNamespace(
            engine="vllm", model="m", max_model_len=9000, refinement="attention", default_sampling_params=None,
            tokenizer=SimpleNamespace(eos_ids=(999,)), kv=cells, features=features,
        )  # fmt: skip
        client = SimpleNamespace(info=info, url="http://127.0.0.1:1/v1/")
        made = Runtime(engine, client, ServeSettings(**{"rate": 15.0, "kv": kv, **settings}), model_name="m")
        made.cloud.connection = Connection.CONNECTED
        made._speed.prefill_tps, made._speed.step_s = 80.0, 0.05
        learning = made._planning.learning
        for _ in range(20):
            learning.device.read(0, 1800, 1800 / 80)
            learning.device.decoded(1800, 100, 5.0)
            learning.cloud("m").round_trip(0.05)
            learning.cloud("m").first_token(1800, 0.5)
            learning.cloud("m").step(0.03)
            learning.lengths.observe("", 1800, 220)
            if mbit is not None:
                learning.cloud("m").cells(20_000_000, 160 / mbit)
        if mbit is not None:
            learning.answers_without_cells = 0
        return made

    return make


def session_of(made, prompt=1800, **fields):
    return made.session(AnswerRequest(prompt_token_ids=[1] * prompt, max_tokens=500, **fields))


def told(session):
    return session._options.mode.value, session._request.kv, session._request.decode_budget


def ended(kv=None, *, asked=False):
    outcome = SimpleNamespace(
        prompt_tokens=1800, reused_tokens=0, finish_reason="stop", timeline=Timeline([object()] * 220), kv=kv
    )
    request = AnswerRequest(prompt_token_ids=[1] * 1800, max_tokens=500, kv=asked)
    return SimpleNamespace(outcome=outcome, work=None, arrivals=None), request


def learn(made, *args, **options):
    session, request = ended(*args, **options)
    made._planning.learning.ended(session, request, group="", model="m")


def test_a_fast_link_lets_a_slow_device_take_over(runtime):
    mode, kv, budget = told(session_of(runtime()))
    assert (mode, kv) == ("handoff", True)
    # ready 1.9 s after the first token at the speeds as they are, and head-room
    assert 35 <= budget <= 90
    assert told(session_of(runtime(kv="off"))) == told(session_of(runtime(cells=None, kv="off")))
    assert told(session_of(runtime(kv="off")))[:2] == ("cloud_only", False)


def test_off_asks_nobody_about_cells(runtime):
    made = runtime(kv="off", features=None)
    made._engine.kv = None
    assert not told(session_of(made))[1]


@pytest.mark.parametrize(
    "without",
    [
        {"cells": None},
        {"cells": NoKV(reason="not_enabled", message="off")},
        {"features": ()},
        {"problem": "number of layers: 16 in the device's file, 32 in the cloud"},
        {"kv_metered": True},
        {"kv_price_per_gb": 0.05},
        {"held": 300, "whole": 100},
    ],
)
def test_there_are_reasons_for_none(runtime, without):
    assert not told(session_of(runtime(**without)))[1]


def test_a_cloud_whose_cells_were_compared_and_differ_is_asked_for_none(runtime):
    made = runtime()
    assert told(session_of(made))[1]
    made._cells_checks.compared("http://127.0.0.1:1/v1/", GEOMETRY, 0.1)
    assert not told(session_of(made))[1]


def test_always_leaves_it_to_the_session_to_say_why_not(runtime):
    assert told(session_of(runtime(kv="always", decode_budget=40))) == ("handoff", True, 40)
    assert told(session_of(runtime(kv="always", plan="handoff", cells=None)))[:2] == ("handoff", True)
    assert not told(session_of(runtime(kv="auto", decode_budget=40)))[1], "nobody has planned it"
    for one_sided in ("cloud", "device"):
        assert not told(session_of(runtime(kv="always", plan=one_sided)))[1]
    refined = session_of(runtime(kv="always"), refine_ratio=0.5)
    assert (refined._request.kv, refined._request.refine_ratio) == (False, 0.5)


def test_the_guard_has_its_tokens(runtime):
    budget = told(session_of(runtime(mbit=5000, rate=4.0), prompt=1800))[2]
    assert budget >= LEAST_TOKENS + 1


def test_a_policy_sees_the_link_and_may_ask_for_cells(runtime):
    class Seen:
        @hookimpl
        def pdd_plan(self, request, device, cloud):
            self.request, self.cloud = request, cloud
            return Plan(Verdict.HANDOFF, 77, kv=True)

    made, seen = runtime(), Seen()
    made._planning.policies.first_result = lambda hook, check, **given: (seen.pdd_plan(**given), "seen")
    assert told(session_of(made)) == ("handoff", True, 77)
    assert seen.request.kv_cell_bytes == GEOMETRY.cell_bytes
    assert seen.cloud.link_bps.mean == pytest.approx(12.5e6, rel=0.1)
    made = runtime(kv="off")
    made._planning.policies.first_result = lambda hook, check, **given: (seen.pdd_plan(**given), "seen")
    assert told(session_of(made)) == ("handoff", False, 77), "the settings forbid it"
    assert (seen.request.kv_cell_bytes, seen.cloud.link_bps) == (None, None)


def test_what_comes_tells_how_fast_the_link_is(runtime):
    made = runtime()
    link = made._planning.learning.cloud("m")
    learn(made, KVReport(cells=1700, bytes=2_000_000, seconds=8.0), asked=True)
    assert link.state(1800, kv=True).link_bps.mean == pytest.approx(250_000, rel=0.4)
    learn(made, KVReport(reason="no_room"), asked=True)
    assert link.state(1800, kv=True).link_bps.mean == pytest.approx(250_000, rel=0.4)


def test_a_link_found_slow_is_looked_at_again(runtime):
    made = runtime(mbit=0.2)
    assert told(session_of(made))[:2] == ("cloud_only", False)
    for _ in range(16):
        learn(made)
    session = session_of(made)
    # nobody waits for it: the cloud is not capped
    assert told(session) == ("handoff", True, 500)
    assert session._plan.plan.why.reason == "to see how fast the link is now; else cloud only, without cells"
    learn(made, KVReport(reason="unavailable"), asked=True)
    assert not told(session_of(made))[1], "not again at once, whatever came of it"


def test_a_link_that_was_never_used_is_looked_at_with_the_first_answer(runtime):
    made = runtime(mbit=None)
    made._planning.learning.cloud("m")._link = Tracker(10_000.0)  # even where little is expected of it
    assert told(session_of(made)) == ("handoff", True, 500)
    for never in ({"kv_metered": True}, {"kv_price_per_gb": 0.05}):
        assert not told(session_of(runtime(mbit=None, **never)))[1]
    assert told(session_of(made, prompt=20))[0] == "device_only"

"""A runtime that plans: which hook's words count, what the settings fix, and what is learnt from each answer."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from pdd_core.env import ServeSettings
from pdd_core.errors import ConfigurationError
from pdd_core.hookspecs import hookimpl
from pdd_core.planner.plan_file import PlanFile, PlannedSettings
from pdd_core.planner.profiles import MeasuredCloud, MeasuredDevice, RatePoint
from pdd_core.planner.types import Plan, Verdict
from pdd_core.refinement.guard import LEAST_TOKENS
from pdd_core.timeline import Timeline
from pdd_llamacpp_adapter.cloud.cloud_monitor import Connection
from pdd_llamacpp_adapter.cloud.cloud_stream import CloudEnd
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.runtime.learning import Learning
from pdd_llamacpp_adapter.runtime.runtime import Runtime

pytestmark = pytest.mark.anyio

PROMPT = list(range(1, 101))


class Client:
    """A cloud's client that is only looked at."""

    def __init__(self, refinement="attention", max_model_len=9000):
        self.info = SimpleNamespace(
            engine="vllm",
            model="m",
            max_model_len=max_model_len,
            refinement=refinement,
            tokenizer=SimpleNamespace(eos_ids=(999,)),
            default_sampling_params=None,
        )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PDD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


@pytest.fixture
def runtime(fake_engine):
    """A runtime that knows its device (20 tokens/s shown) and its cloud well."""

    def make(
        *, cloud=None, held=0, held_whole=None, prefill_tps=200.0, n_ctx=4096, engine=None, lengths=150, **settings
    ):
        engine = engine or fake_engine(n_ctx=n_ctx)
        whole = held if held_whole is None else held_whole
        engine.holds = lambda prompt, *, refined=True: held if refined else whole
        made = Runtime(engine, cloud or Client(), ServeSettings(**{"rate": 20.0, **settings}), model_name="m")
        made.cloud.connection = Connection.CONNECTED
        made._speed.prefill_tps, made._speed.step_s = prefill_tps, 0.02
        learning = made._planning.learning
        for _ in range(20):
            learning.device.read(0, 400, 400 / prefill_tps)
            learning.device.decoded(400, 100, 2.0)
            learning.cloud("m").round_trip(0.01)
            learning.cloud("m").first_token(400, 0.1)
            learning.cloud("m").step(0.02)
            for prompt in (50, 400, 900, 6000) * 3:
                learning.lengths.observe("", prompt, lengths)
        return made

    return make


def request(prompt=400, max_tokens=500, **fields):
    return AnswerRequest(prompt_token_ids=[1] * prompt, max_tokens=max_tokens, **fields)


def told(session):
    return session._options.mode.value, session._request.decode_budget, session._request.refine_ratio


def test_nothing_needs_to_be_configured(runtime):
    made = runtime()
    mode, budget, ratio = told(made.session(request()))
    # (400 + N) / 200 + 1 / 50 = 0.1 + N / 20 at N = 43, and head-room
    assert mode == "handoff"
    assert 43 <= budget <= 70
    assert ratio is None
    assert told(made.session(request(prompt=50)))[0] == "device_only"


def test_what_the_device_alone_makes_is_as_fast_as_it_can_be(runtime):
    made = runtime(rate="auto")
    alone, handed = made.session(request(prompt=50)), made.session(request())
    assert alone.rate == float("inf")
    assert handed.rate == pytest.approx(45)


def test_short_answers_to_long_prompts_stay_in_the_cloud(runtime):
    session = runtime(lengths=8).session(request(prompt=900))
    assert told(session)[0] == "cloud_only"
    assert session._options.engine is not None, "it steps in where the cloud is lost"
    assert session._request.decode_budget > 100, "with the budget of the formula"


def test_the_prompt_that_the_device_holds_need_not_be_read(runtime):
    assert told(runtime(held=380).session(request()))[0] == "device_only"


def test_what_it_holds_in_a_refined_form_needs_a_handoff_and_enough_to_judge_that_by(runtime):
    mode, budget, _ = told(runtime(held=380, held_whole=40).session(request()))
    assert mode == "handoff"
    assert budget >= LEAST_TOKENS + 1


def test_a_device_at_work_for_others_is_waited_for(runtime):
    made = runtime()
    busy = made.session(request(prompt=50))
    busy.work_left = lambda: SimpleNamespace(prompt_tokens=50, to_read=400, made=10)
    mode, budget, _ = told(made.session(request(prompt=50)))
    assert mode == "handoff"
    assert budget > 60


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({"plan": "cloud"}, "cloud_only"),
        ({"plan": "device"}, "device_only"),
        ({"plan": "handoff"}, "handoff"),
        ({"plan": "off"}, "handoff"),
        ({"must_begin_in_cloud": True}, "handoff"),
        ({"ttft_target_s": 0.01}, "handoff"),
        ({"decode_budget": 7}, "handoff"),
        ({"refine": 0.5}, "device_only"),
    ],
)
def test_settings_win(runtime, settings, mode):
    session = runtime(**settings).session(request(prompt=50))
    assert told(session)[0] == mode
    if "decode_budget" in settings:
        assert session._request.decode_budget == 7
        assert session._plan.by == "settings"
        assert session._plan.plan.why.reason == "decode_budget is 7"


def test_a_share_that_is_asked_for_is_handed_over(runtime):
    mode, _, ratio = told(runtime().session(request(prompt=50, refine_ratio=0.7)))
    assert (mode, ratio) == ("handoff", 0.7)


def test_a_share_in_the_settings_says_nothing_of_who_makes_an_answer(runtime):
    made = runtime(refine=0.5)
    mode, _, ratio = told(made.session(request(prompt=300)))
    assert (mode, ratio) == ("handoff", 0.5)
    # its tokens are enough to leave some out, and yet the device alone begins in time
    assert told(made.session(request(prompt=70))) == (
        "device_only",
        *told(runtime().session(request(prompt=70)))[1:],
    )
    assert told(runtime(refine=0.5, lengths=8).session(request(prompt=900)))[0] == "cloud_only"
    # what fits the device only once it is refined is handed over so, or the cloud's
    tight = runtime(refine=0.5, n_ctx=900)
    assert told(tight.session(request(prompt=600)))[::2] == ("handoff", 0.5)
    assert told(runtime(refine=0.5, plan="handoff").session(request(prompt=70)))[::2] == ("handoff", 0.5)


def test_refine_auto_leaves_it_to_the_planner(runtime):
    made = runtime(refine="auto", prefill_tps=400.0, n_ctx=8000)
    mode, budget, ratio = told(made.session(request(prompt=6000)))
    assert mode == "handoff"
    assert ratio is not None
    assert ratio < 1
    assert budget < 150
    assert told(made.session(request(prompt=300)))[2] is None
    # what does not fit is kept as far as it does
    long = runtime(refine="auto", n_ctx=1000).session(request(prompt=1500, max_tokens=300))
    assert told(long)[0] == "handoff"
    assert told(long)[2] < 0.5
    assert told(runtime(refine="off", n_ctx=9000).session(request(prompt=6000)))[2] is None


def test_what_does_not_fit_the_device_is_the_clouds(runtime):
    session = runtime(n_ctx=500).session(request(prompt=480))
    assert told(session)[0] == "cloud_only"
    assert session._options.engine is None
    assert session._plan.plan.why.reason == "prompt and answer do not fit the device's context"


def test_without_a_cloud_there_is_nothing_to_decide(runtime):
    made = runtime()
    made.cloud.connection = Connection.DOWN
    session = made.session(request())
    assert told(session)[0] == "device_only"
    assert (session._plan.by, session._plan.plan.why.reason) == ("settings", "there is no cloud")
    short_cloud = runtime(cloud=Client(max_model_len=100)).session(request())
    assert short_cloud._plan.plan.why.reason == "it does not fit the cloud"


def test_a_device_that_was_not_seen_for_long_is_looked_at(runtime):
    made = runtime(prefill_tps=15.0)
    assert told(made.session(request(prompt=900)))[0] == "cloud_only"
    idle = fake_session(shown=20)
    idle.work = None
    for _ in range(16):
        made._planning.learning.ended(idle, request(), group="", model="m")
    session = made.session(request(prompt=900))
    assert told(session)[:2] == ("handoff", 500)
    assert session._plan.plan.why.reason == "to see how fast the device is now; else cloud only"
    assert told(made.session(request(prompt=3800)))[0] == "cloud_only", "it does not fit the device"
    made._planning.learning.ended(fake_session(read=(500, 1.0)), request(), group="", model="m")
    assert told(made.session(request(prompt=900)))[0] == "cloud_only"


def test_a_cloud_that_was_not_seen_for_long_is_looked_at(runtime):
    made = runtime()
    learning = made._planning.learning
    for _ in range(4):
        learning.cloud("m").first_token(400, 8.0)
    assert told(made.session(request()))[0] == "device_only", "sooner than the cloud, though not within the target"
    alone = fake_session(read=(400, 2.0), decoded=(100, 2.0), shown=100)
    alone.arrivals = None
    for _ in range(16):
        learning.ended(alone, request(), group="", model="m")
    session = made.session(request())
    mode, budget, _ = told(session)
    assert mode == "handoff"
    assert budget > 43, "as if the first token came at once"
    assert session._plan.plan.why.reason == "to see how fast the cloud is now; else device only"
    assert told(made.session(request(prompt=20)))[0] == "device_only", "no cloud could be faster"
    learning.ended(fake_session(first=0.1), request(), group="", model="m")
    learning.ended(fake_session(first=0.1), request(), group="", model="m")
    assert told(made.session(request()))[0] == "handoff"
    for _ in range(4):
        learning.cloud("m").first_token(400, 8.0)
    assert told(made.session(request()))[0] == "device_only", "it was seen a moment ago"


def test_one_slow_first_token_does_not_lose_the_cloud(runtime):
    made = runtime()
    made._planning.learning.cloud("m").first_token(400, 8.0)
    assert told(made.session(request()))[0] == "handoff"


class CloudForMail:
    @hookimpl
    def pdd_plan(self, request):
        return Plan(Verdict.CLOUD_ONLY) if request.group == "mail" else None


class Nonsense:
    @hookimpl
    def pdd_plan(self):
        return Plan("both", decode_budget=0)


def test_a_policy_of_ones_own_is_asked_first(runtime):
    made = runtime()
    made._planning.policies.manager.register(CloudForMail(), "cloud-for-mail")
    made._planning.policies.manager.register(Nonsense(), "nonsense")
    mine = made.session(request(), group="mail")
    assert (told(mine)[0], mine._plan.by) == ("cloud_only", "cloud-for-mail")
    other = made.session(request(), group="chat")
    assert (told(other)[0], other._plan.by) == ("handoff", "planner")


def profiled(prefill):
    point = (RatePoint(at=0, value=prefill),)
    return MeasuredDevice(name="d", model="m", prefill_tps=point, decode_tps=point, n_ctx=4096)


def cloud_profile():
    step = {"base_s": 0.01, "per_prefill_token_s": 1e-4, "per_sequence_s": 0.0, "per_context_token_s": 0.0}
    size = {"kv_tokens": 100_000, "max_num_seqs": 8, "max_num_batched_tokens": 2048}
    return MeasuredCloud(name="c", model="m", **step, **size, rtt_s=0.2, jitter_s=0.02)


def test_a_plan_file_is_where_it_begins(fake_engine, tmp_path):
    file = tmp_path / "plan.json"
    PlanFile(
        settings=PlannedSettings(stall_probability=0.05, must_begin_in_cloud=True, rate=9.0),
        device=profiled(800.0),
        cloud=cloud_profile(),
        plugin={"default_decode_budget": 9},
    ).save(file)
    settings = ServeSettings.load(None, {"plan_file": str(file), "rate": "12"})
    assert (settings.stall_probability, settings.must_begin_in_cloud, settings.rate) == (0.05, True, 12.0)
    made = Runtime(fake_engine(), None, settings, model_name="m")
    assert made._planning.learning.device.state(100).prefill_tps.mean == pytest.approx(800, rel=0.2)
    assert made._planning.learning.cloud("m").state(100).rtt_s.mean == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize(("n_ctx", "warnings"), [(4096, 0), (9000, 0), (2048, 1)])
def test_a_context_smaller_than_the_planned_one_is_a_warning(fake_engine, tmp_path, caplog, n_ctx, warnings):
    PlanFile(device=profiled(800.0)).save(tmp_path / "plan.json")
    Runtime(fake_engine(n_ctx=n_ctx), None, ServeSettings(plan_file=tmp_path / "plan.json"), model_name="m")
    assert [one.message for one in caplog.records] == [
        "the plan is for a device with a context of 4096 tokens, this one has 2048 (n_ctx)"
    ][:warnings]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ('{"schema_version": "9.0"}', "9.0"),
        ('{"settings": {"stall_probability": 2}}', "settings.stall_probability"),
        ('{"settings": {"refine": true}}', "settings.refine"),
        ('{"device": {"name": "d"}}', "device.model"),
        ('{"settings": {"stal_probability": 0.1}}', "settings.stal_probability"),
        ('{"trace": {}, "policies": {}}', "trace: .*policies: "),
        ('{"lengths": {}}', "lengths: .*everyone"),
        ('{"lengths": {"everyone": {"0": "x"}, "groups": {}}}', "lengths: .*'x'"),
        ('{"lengths": {"everyone": {"500": 1}, "groups": {}}}', "lengths: .*500"),
        ('{"lengths": {"everyone": {}, "groups": {"a": {"99": {}}}}}', "lengths: .*99"),
        ('{"lengths": {"everyone": [], "groups": {}}}', "lengths: "),
        ('{"lengths": {"everyone": {"3": 1' + "0" * 400 + '}, "groups": {}}}', "lengths: "),
    ],
)
def test_a_plan_file_that_cannot_be_used_is_an_error_that_names_it(tmp_path, content, problem):
    file = tmp_path / "plan.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=problem) as error:
        ServeSettings.load(None, {"plan_file": str(file)})
    assert "plan.json" in str(error.value)


async def answer(made, asked, group=""):
    async with made.session(asked, group=group, paced=False) as session:
        async for _ in session:
            pass
    return session.outcome


async def test_every_answer_teaches(runtime, fake_engine, fake_cloud):
    cloud = fake_cloud([0.05, [101], *[step for i in range(102, 107) for step in (0.02, [i])], CloudEnd.STOP])
    made = runtime(cloud=cloud, engine=fake_engine(seconds=0.1), plan="cloud", prefill_tps=2000.0)
    cloud.info = Client().info
    learning = made._planning.learning
    before = learning.lengths.table("app", 100).longer_than(10)
    outcome = await answer(made, AnswerRequest(prompt_token_ids=PROMPT, max_tokens=300), group="app")
    assert outcome.finish_reason == "stop"
    assert learning.lengths.table("app", 100).longer_than(10) < before
    state = learning.cloud("m").state(100)
    assert state.tpot_s.mean == pytest.approx(0.02, rel=0.3)

    cloud.script = []
    made = runtime(cloud=cloud, engine=fake_engine(seconds=0.1), plan="device", prefill_tps=2000.0)
    cut = await answer(made, AnswerRequest(prompt_token_ids=PROMPT, max_tokens=8), group="app")
    assert cut.finish_reason == "length"
    assert made._planning.learning.lengths.table("app", 100).longer_than(8) > 0.9, "it was cut short"


async def test_what_was_made_to_go_on_says_nothing_of_lengths(runtime, fake_engine, fake_cloud):
    made = runtime(cloud=fake_cloud([]), engine=fake_engine(), plan="device")
    made.cloud._client.info = Client().info
    before = made._planning.learning.lengths.as_json()
    await answer(made, AnswerRequest(prompt_token_ids=PROMPT, max_tokens=8, ignore_eos=True))
    assert made._planning.learning.lengths.as_json() == before


def fake_session(
    *, read=(0, 0.0), decoded=(0, 0.0), first=None, step=None, shown=0, reason="stop", reused=0, kv=None
):
    outcome = SimpleNamespace(
        prompt_tokens=500,
        reused_tokens=reused,
        finish_reason=reason,
        timeline=Timeline([object()] * shown),
        kv=kv,
    )
    work = SimpleNamespace(read_tokens=read[0], read_s=read[1], decoded_tokens=decoded[0], decoded_s=decoded[1])
    arrivals = SimpleNamespace(first_token_s=first, step_s=step)
    return SimpleNamespace(outcome=outcome, work=work, arrivals=arrivals)


def test_what_was_learnt_is_there_after_a_restart(cache, caplog):
    settings = ServeSettings(cloud_url="http://c/v1")
    learning = Learning(settings, PlanFile(), n_ctx=4096)
    learning.write(learning.snapshot())
    assert not cache.exists(), "nobody asked for files"
    learning.restore()
    for _ in range(8):
        session = fake_session(read=(500, 1.0), decoded=(50, 2.5), first=0.6, step=0.04, shown=9)
        learning.ended(session, request(), group="app", model="m")
    learning.write(learning.snapshot())

    again = Learning(settings, PlanFile(), n_ctx=4096)
    again.restore()
    state = again.device.state(500)
    assert state.prefill_tps.mean == pytest.approx(500, rel=0.1)
    assert state.decode_tps.mean == pytest.approx(20, rel=0.1)
    assert again.cloud("m").state(500).tpot_s.mean == pytest.approx(0.04, rel=0.1)
    assert again.lengths.table("app", 500).longer_than(20) < 0.4
    # another cloud is another story
    other = Learning(ServeSettings(cloud_url="http://other/v1"), PlanFile(), n_ctx=4096)
    other.restore()
    assert other.device.state(500).prefill_tps.mean == pytest.approx(500, rel=0.1)
    assert other.cloud("m").state(500).tpot_s.sd > 0.03
    assert not caplog.records


def test_a_file_that_is_damaged_is_begun_afresh(cache, caplog):
    settings = ServeSettings()
    learning = Learning(settings, PlanFile(), n_ctx=4096)
    learning.restore()
    learning.write(learning.snapshot())
    (file,) = cache.glob("device-*.json")
    file.write_text(json.dumps({"schema_version": "1.0", "speed": {"prefill": 3}}))
    with caplog.at_level(logging.WARNING):
        Learning(settings, PlanFile(), n_ctx=4096).restore()
    assert "set aside" in caplog.text


async def test_settings_that_cannot_work_are_refused_before_the_model_is_loaded(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        async with Runtime.running(
            Path("no-such.gguf"), ServeSettings(plan_file=tmp_path / "none.json"), model_name="m"
        ):
            pass

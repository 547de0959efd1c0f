from __future__ import annotations

import math
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest

from pdd_core.env import ServeSettings
from pdd_core.errors import (
    CloudLost,
    CloudRefused,
    CloudUnreachable,
    ConfigurationError,
    ContextOverflow,
    InvalidGrammar,
    TokenizerMismatch,
)
from pdd_core.refinement.guard import LEAST_TOKENS, Guard
from pdd_core.sampling_defaults import DefaultSamplingParams
from pdd_llamacpp_adapter.cloud.cloud_monitor import CloudMonitor, Connection
from pdd_llamacpp_adapter.engine.grammar import GrammarEngine
from pdd_llamacpp_adapter.engine.speed import Work
from pdd_llamacpp_adapter.request import AnswerRequest, Grammar, GrammarKind
from pdd_llamacpp_adapter.runtime import runtime as runtime_module
from pdd_llamacpp_adapter.runtime.runtime import Runtime
from pdd_llamacpp_adapter.session.session_start import set_up

pytestmark = pytest.mark.anyio


class Client:
    """A cloud's client, as far as the monitor needs it."""

    def __init__(self, max_model_len=2000, refinement="attention"):
        self.info = SimpleNamespace(
            engine="vllm 0.32.0",
            model="m",
            max_model_len=max_model_len,
            refinement=refinement,
            tokenizer=SimpleNamespace(eos_ids=(7, 9)),
            default_sampling_params=None,
            structured_outputs=None,
        )
        self.route = SimpleNamespace(way=None)
        self.errors = []
        self.looks = 0

    async def connect(self, vocab, *, retries):
        assert retries == 0
        self.looks += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.info


@pytest.fixture
def runtime(fake_engine):
    def make(*, cloud=None, connected=True, held=(), held_whole=None, prefill_tps=200.0, step_s=0.02, **settings):
        engine = fake_engine(n_ctx=500)
        whole = held if held_whole is None else held_whole
        engine.holds = lambda prompt, *, refined=True: len(held if refined else whole)
        settings.setdefault("plan", "off")  # what the planner decides is in test_planning.py
        made = Runtime(engine, cloud, ServeSettings(**settings), model_name="m")
        made._speed.prefill_tps, made._speed.step_s = prefill_tps, step_s
        if cloud is not None and connected:
            made.cloud.connection = Connection.CONNECTED
        return made

    return make


def request(prompt=100, max_tokens=50):
    return AnswerRequest(prompt_token_ids=[1] * prompt, max_tokens=max_tokens)


def mode(session):
    return session._options.mode


def test_with_a_cloud_the_answer_is_handed_over(runtime):
    session = runtime(cloud=Client()).session(request())
    assert mode(session) == "handoff"


@pytest.mark.parametrize("tracing", [True, False])
def test_its_answers_are_traced_if_the_settings_say_so(runtime, tracing):
    session = runtime(cloud=Client(), tracing=tracing).session(request())
    assert (session._tracing is not None) is tracing


def test_without_one_the_device_answers_alone_and_unpaced(runtime):
    session = runtime().session(request())
    assert mode(session) == "device_only"
    assert session.rate == math.inf


def test_while_the_cloud_is_down_the_device_answers_alone(runtime):
    made = runtime(cloud=Client())
    made.cloud.connection = Connection.DOWN
    assert mode(made.session(request())) == "device_only"


def test_an_answer_too_long_for_the_device_stays_in_the_cloud(runtime):
    assert mode(runtime(cloud=Client()).session(request(prompt=480, max_tokens=50))) == "cloud_only"


async def test_one_too_long_for_both_is_refused(runtime):
    with pytest.raises(ContextOverflow):
        async with runtime(cloud=Client(max_model_len=510)).session(request(prompt=480, max_tokens=50)):
            pass


def test_one_too_long_only_for_the_cloud_is_the_devices(runtime):
    assert mode(runtime(cloud=Client(max_model_len=120)).session(request())) == "device_only"


def test_the_budget_lasts_until_the_device_is_ready(runtime):
    # at 45 tokens/s shown (0.9 of 50 decoded) and 200 prefilled: 45 * 100 / 155 = 29.03, 30, times 1.3
    session = runtime(cloud=Client()).session(request())
    assert session.rate == pytest.approx(45)
    assert session._request.decode_budget == 39
    assert session._request.least_budget == 30


def test_tokens_that_the_device_holds_already_need_no_budget(runtime):
    assert runtime(cloud=Client(), held=[1] * 99).session(request())._request.decode_budget == 4


def test_but_what_it_holds_in_a_refined_form_is_to_be_judged(runtime):
    made = runtime(cloud=Client(), held=[1] * 99, held_whole=[1] * 9)
    assert made.session(request())._request.decode_budget == LEAST_TOKENS + 1
    assert made.session(request())._request.least_budget == LEAST_TOKENS + 1


def test_a_device_slower_than_the_rate_leaves_the_whole_answer_to_the_cloud(runtime):
    session = runtime(cloud=Client(), prefill_tps=10.0, rate=12.0).session(request())
    assert session._request.decode_budget == 50
    assert session._request.least_budget is None


def test_a_budget_that_was_set_counts_but_never_exceeds_the_answer(runtime):
    made = runtime(cloud=Client(), decode_budget=9)
    assert made.session(request())._request.decode_budget == 9
    assert made.session(request())._request.least_budget is None, "a number that was chosen is not lowered"
    assert made.session(request(max_tokens=5))._request.decode_budget == 5


@pytest.mark.parametrize(("rate", "shown"), [("unlimited", math.inf), (7.5, 7.5)])
def test_the_rate_is_the_settings(runtime, rate, shown):
    assert runtime(cloud=Client(), rate=rate).session(request()).rate == shown


def test_a_client_that_waits_for_all_of_it_is_not_paced(runtime):
    assert runtime(cloud=Client(), rate=7.5).session(request(), paced=False).rate == math.inf


def test_the_context_is_the_larger_one(runtime):
    assert runtime().context_limit() == 500
    assert runtime(cloud=Client()).context_limit() == 2000
    assert runtime(cloud=Client(max_model_len=100)).context_limit() == 500


def test_an_answer_without_a_limit_fills_the_device_before_it_moves_to_the_cloud(runtime):
    made = runtime(cloud=Client())
    assert made.default_max_tokens(100) == 400
    assert made.default_max_tokens(600) == 1400
    assert runtime().default_max_tokens(600) < 1


def test_a_models_own_longest_answer_is_the_default(runtime):
    made = runtime()
    made._engine.sampling_defaults = DefaultSamplingParams(max_tokens=30)
    assert made.default_max_tokens(100) == 30
    assert made.default_max_tokens(490) == 10


def test_the_clouds_sampling_defaults_win_over_the_files_also_while_it_is_down(runtime):
    cloud = Client()
    made = runtime(cloud=cloud)
    made._engine.sampling_defaults = DefaultSamplingParams(temperature=0.7)
    assert made.sampling_defaults().temperature == 0.7, "a cloud that does not tell"
    cloud.info.default_sampling_params = DefaultSamplingParams(top_k=20)
    assert made.sampling_defaults().given() == {"top_k": 20}
    made.cloud.connection = Connection.DOWN
    assert made.sampling_defaults().given() == {"top_k": 20}


@pytest.mark.parametrize("settings", [{"plan": "off"}, {"plan": "device"}, {"plan": "cloud"}])
async def test_an_answer_ends_at_the_clouds_tokens_whoever_makes_it(runtime, settings):
    made = runtime(cloud=Client(max_model_len=300), **settings)
    for down, prompt in ((False, 100), (True, 100), (False, 280)):  # the last fits the device alone
        made.cloud.connection = Connection.DOWN if down else Connection.CONNECTED
        session = made.session(request(prompt=prompt))
        setup = await set_up(session._request, session._options)
        assert setup.live.answer.stop_ids == {7, 9}


async def test_without_a_cloud_an_answer_ends_where_llama_cpp_ends_it(runtime):
    session = runtime().session(request())
    setup = await set_up(session._request, session._options)
    assert setup.live.answer.stop_ids == session._options.vocab.stop_ids == {999}


def ratio(session):
    return session._request.refine_ratio


def test_without_the_setting_nothing_is_refined(runtime):
    assert ratio(runtime(cloud=Client(), prefill_tps=10.0).session(request(prompt=400))) is None


def test_a_share_is_asked_for_and_the_budget_made_for_it(runtime):
    # 45 tokens/s shown and 200 prefilled: 45 * 100 / 155 = 29.03, 30, times 1.3
    session = runtime(cloud=Client(), refine=0.25).session(request(prompt=400, max_tokens=60))
    assert ratio(session) == 0.25
    assert session._request.decode_budget == 39
    full = runtime(cloud=Client()).session(request(prompt=250, max_tokens=200))
    assert full._request.decode_budget == 95


@pytest.mark.parametrize(
    ("refine", "prefill_tps", "expected"),
    [("auto", 100.0, 0.5), ("auto", 1000.0, None), ("100 tokens", 1000.0, 0.25), ("1 s", 200.0, 0.5)],
)
def test_the_share_follows_from_the_devices_speed(runtime, refine, prefill_tps, expected):
    made = runtime(cloud=Client(), refine=refine, prefill_tps=prefill_tps)
    assert ratio(made.session(request(prompt=400))) == expected


def test_what_the_device_holds_need_not_be_refined(runtime):
    made = runtime(cloud=Client(), refine="auto", held=[1] * 300, prefill_tps=100.0)
    assert ratio(made.session(request(prompt=400))) is None
    made = runtime(cloud=Client(), refine=0.25, held=[1] * 380)
    assert ratio(made.session(request(prompt=400))) is None


def test_a_request_keeps_the_share_that_it_names(runtime):
    asked = AnswerRequest(prompt_token_ids=[1] * 100, max_tokens=50, refine_ratio=0.7)
    assert ratio(runtime(cloud=Client(), refine=0.25).session(asked)) == 0.7


def test_the_budget_of_a_refined_prompt_leaves_the_guard_enough_to_judge_by(runtime):
    made = runtime(cloud=Client(), refine=0.25, held=[1] * 30, prefill_tps=10_000.0)
    assert made.session(request())._request.decode_budget == LEAST_TOKENS + 1


def test_an_answer_too_long_for_the_device_is_handed_over_where_its_refined_prompt_fits(runtime):
    made = runtime(cloud=Client(), refine="context")
    session = made.session(request(prompt=800, max_tokens=50))
    assert mode(session) == "handoff"
    assert 800 * ratio(session) + 50 <= 500 - 64, "with room for the lines that stay whole"
    assert mode(made.session(request(prompt=800, max_tokens=490))) == "cloud_only"
    asked = AnswerRequest(prompt_token_ids=[1] * 800, max_tokens=50, refine_ratio=0.9)
    assert mode(made.session(asked)) == "cloud_only"


def test_the_guards_threshold_is_the_settings(runtime):
    assert runtime(cloud=Client()).session(request())._options.guard == Guard()
    assert runtime(cloud=Client(), guard_nats=0.8).session(request())._options.guard == Guard(threshold=0.8)


def test_a_cloud_that_refines_nothing_is_told_of_once(runtime, caplog):
    made = runtime(cloud=Client(refinement="off"), refine=0.25)
    sessions = [made.session(request(prompt=400)) for _ in range(3)]
    assert [ratio(session) for session in sessions] == [0.25] * 3, "the outcome says why it was not refined"
    assert [record.message for record in caplog.records] == ["refine is 0.25, but the cloud refines no prompts"]
    assert mode(made.session(request(prompt=800, max_tokens=50))) == "cloud_only"


def test_nor_is_auto_troubled_by_it(runtime, caplog):
    made = runtime(cloud=Client(refinement="off"), refine="auto", prefill_tps=100.0)
    assert ratio(made.session(request(prompt=400))) is None
    assert caplog.records == []


def test_the_device_alone_refines_nothing(runtime):
    assert ratio(runtime(refine=0.25).session(request())) is None


def test_the_status_names_the_error(runtime):
    made = runtime(cloud=Client(), cloud_url="http://c/v1")
    made.cloud.connection, made.cloud.error = Connection.DOWN, CloudUnreachable("no connection to c:80")
    assert made.cloud_status() == {
        "url": "http://c/v1",
        "state": "down",
        "way": None,
        "error": "CloudUnreachable: no connection to c:80",
    }


async def test_what_goes_wrong_while_it_runs_is_told_as_itself_and_not_as_a_group(monkeypatch, fake_engine):
    async def probed(*_, **__):
        return Work()

    async def endless(*_, **__):
        await anyio.sleep_forever()

    engine = fake_engine(n_ctx=500)
    engine.close = lambda: None
    monkeypatch.setattr(runtime_module.DeviceEngine, "open", lambda *_, **__: engine)
    monkeypatch.setattr(runtime_module, "probe", probed)
    monkeypatch.setattr(runtime_module, "upgrade_when_idle", endless)
    monkeypatch.setattr(Runtime, "_warm_up_grammars", endless)
    monkeypatch.setattr(Runtime, "device_speed", lambda _: (1.0, 1.0))
    with pytest.raises(ContextOverflow, match="too long"):
        async with Runtime.running(Path("m.gguf"), ServeSettings(plan="off"), model_name="m"):
            raise ContextOverflow("too long")


async def test_an_unknown_pacing_is_refused_before_the_model_is_loaded():
    with pytest.raises(ConfigurationError, match="pacing must be one of"):
        async with Runtime.running(Path("no-such.gguf"), ServeSettings(pacing="quick"), model_name="m"):
            pass


async def test_a_model_that_cannot_be_held_to_a_grammar_is_served_all_the_same(runtime, caplog):
    made = runtime()
    made._grammars = GrammarEngine(made.vocab, eos_ids=())
    await made._warm_up_grammars()
    assert "no end-of-sequence token" in caplog.text


async def test_a_grammar_is_compiled_early_where_the_device_has_to_follow_it(runtime):
    made = runtime(cloud=Client(), cloud_url="http://c/v1")
    made._grammars = GrammarEngine(made.vocab, eos_ids=())  # compiles none
    usable, unsafe = Grammar(GrammarKind.JSON_OBJECT), Grammar(GrammarKind.JSON, "{")
    assert made.check_grammar(request()) == request()
    with pytest.raises(InvalidGrammar, match="no end-of-sequence token"):
        made.check_grammar(replace(request(), grammar=usable))
    too_long = replace(request(prompt=600), grammar=usable)
    made.check_grammar(too_long)  # the cloud may know better
    with pytest.raises(InvalidGrammar, match="not JSON"):
        made.check_grammar(replace(too_long, grammar=unsafe))


async def until(condition):
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.01)


@pytest.fixture
def monitoring():
    """Run a monitor until the block ends."""

    @asynccontextmanager
    async def watch(client):
        monitor = CloudMonitor(client, vocab=object())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(monitor.run)
            yield monitor
            tasks.cancel_scope.cancel()

    return watch


async def test_a_monitor_without_a_cloud_has_nothing_to_do():
    monitor = CloudMonitor(None, vocab=object())
    await monitor.run()
    assert (monitor.connection, monitor.client, monitor.info) == (Connection.NONE, None, None)


def test_a_cloud_is_used_while_its_first_look_lasts():
    client = Client()
    monitor = CloudMonitor(client, vocab=object())
    assert monitor.client is client
    assert monitor.connection is Connection.CONNECTING


async def test_a_cloud_that_is_down_is_left_out_until_it_is_back(monitoring, monkeypatch):
    monkeypatch.setattr("pdd_llamacpp_adapter.cloud.cloud_monitor._FIRST_DELAY_S", 0.02)
    client = Client()
    client.errors = [CloudUnreachable("no"), TokenizerMismatch("token 3")]
    async with monitoring(client) as monitor:
        await until(lambda: monitor.connection is not Connection.CONNECTING)
        assert monitor.connection is Connection.DOWN
        assert monitor.client is None
        assert isinstance(monitor.error, CloudUnreachable)
        await until(lambda: monitor.connection is Connection.CONNECTED)
        assert (monitor.client, monitor.error, client.looks) == (client, None, 3)


async def test_an_answer_that_cannot_reach_the_cloud_has_it_looked_at_at_once(monitoring):
    client = Client()
    async with monitoring(client) as monitor:
        await until(lambda: monitor.connection is not Connection.CONNECTING)
        client.errors = [CloudUnreachable("gone")]
        monitor.suspect(CloudUnreachable("gone"))
        assert monitor.client is None
        await until(lambda: client.looks == 2)


async def test_an_answer_that_lost_the_cloud_has_it_looked_at_too(monitoring):
    client = Client()
    async with monitoring(client) as monitor:
        await until(lambda: monitor.connection is not Connection.CONNECTING)
        client.errors = [CloudUnreachable("gone")]
        monitor.suspect(CloudLost("no first token"))
        assert monitor.client is client, "one stream that broke off says nothing about the next request"
        await until(lambda: monitor.connection is Connection.DOWN)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_a_refusal_has_the_cloud_looked_at_which_may_be_another(monitoring, status):
    client = Client()
    async with monitoring(client) as monitor:
        await until(lambda: monitor.connection is not Connection.CONNECTING)
        monitor.suspect(CloudRefused("no", status=status))
        assert monitor.client is client
        await until(lambda: client.looks == 2)


async def test_a_cloud_that_wants_to_be_left_alone_is(monitoring, monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)
        await left_alone.wait()

    left_alone, client = anyio.Event(), Client()
    async with monitoring(client) as monitor:
        await until(lambda: monitor.connection is not Connection.CONNECTING)
        monkeypatch.setattr("pdd_llamacpp_adapter.cloud.cloud_monitor.anyio", SimpleNamespace(**vars(anyio)))
        monkeypatch.setattr("pdd_llamacpp_adapter.cloud.cloud_monitor.anyio.sleep", sleep)
        monitor.suspect(CloudRefused("busy", status=429, retry_after=50_000.0))
        assert (monitor.client, monitor.connection) == (None, Connection.DOWN)
        await until(lambda: slept)
        assert (slept, client.looks) == ([3600.0], 1)
        left_alone.set()
        await until(lambda: client.looks == 2)
        assert monitor.client is client


async def test_a_refusal_that_says_nothing_of_the_cloud_is_no_reason_to_look(monitoring):
    client = Client()
    async with monitoring(client) as monitor:
        await until(lambda: monitor.connection is not Connection.CONNECTING)
        before = monitor._look_now
        monitor.suspect(CloudRefused("the answer was another one", code="not_repeated"))
        assert not before.is_set()


async def test_a_cloud_that_takes_the_connection_and_says_nothing_is_down(monitoring, monkeypatch):
    monkeypatch.setattr("pdd_llamacpp_adapter.cloud.cloud_monitor._LOOK_WITHIN_S", 0.05)
    client = Client()

    async def silent(vocab, *, retries):
        await anyio.sleep_forever()

    client.connect = silent
    async with monitoring(client) as monitor:
        await until(lambda: monitor.connection is Connection.DOWN)
        assert "no answer within 0.05 s" in str(monitor.error)


async def test_a_connected_cloud_tells_how_long_a_round_trip_takes():
    trips, client = [], Client()
    monitor = CloudMonitor(client, vocab=object(), on_round_trip=trips.append)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(monitor.run)
        await until(lambda: trips)
        tasks.cancel_scope.cancel()
    assert client.looks == 2, "the first one also opened the connection"
    assert 0 <= trips[0] < 1

    broken = Client()
    broken.errors = [CloudUnreachable("gone")]
    monitor = CloudMonitor(broken, vocab=object(), on_round_trip=trips.append)
    await monitor._look(broken)
    assert len(trips) == 1

import asyncio
from contextvars import ContextVar
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry
from vllm_fakes import FakeEngine, output, sampling_params

from pdd_core.handoff import Status
from pdd_core.kept_fields import MAX_KEPT_IDS, MAX_STOP_CHARS
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.generate_recorder import GenerateRecorder
from pdd_vllm_plugin.handoff_names import MAX_REQUEST_ID_CHARS
from pdd_vllm_plugin.handoff_store import HandoffStore
from pdd_vllm_plugin.metrics import CloudMetrics
from pdd_vllm_plugin.question_window import window_of, with_window

pytestmark = pytest.mark.anyio
ID = "a" * 32
OPT_IN = {"pdd_handoff": ID, "pdd_decode_budget": 2}
REPORT = {"pdd": {"engine": 0, "tokens": 2, "set_by": "client"}}


def recorder_over(engine, **config):
    store = HandoffStore(PDDConfig(**config))
    metrics = CloudMetrics(CollectorRegistry())
    return GenerateRecorder(engine, store, model="m", tokenizer="digest", metrics=metrics), store


async def test_a_request_without_opt_in_gets_the_engines_own_generator():
    engine = FakeEngine()
    own = object()
    engine.generate = lambda *args, **kwargs: own
    recorder, store = recorder_over(engine)
    assert recorder.generate("p", sampling_params(), "cmpl-x-0") is own
    assert recorder.generate("p", sampling_params({"mine": 1}), "cmpl-x-0") is own
    assert recorder.generate("p", sampling_params(kind="FINAL_ONLY"), "cmpl-x-0") is own
    assert len(store) == 0


async def test_the_state_has_each_token_when_it_is_streamed_and_never_before():
    engine = FakeEngine(
        [output([7], "a"), output([8, 9], "bc"), output([], "", "length", "pdd_handoff", kv=REPORT)]
    )
    recorder, store = recorder_over(engine)
    streamed = []
    prompt = {"prompt_token_ids": [1, 2, 3]}
    generator = recorder.generate(prompt, sampling_params(OPT_IN), "cmpl-" + "x" * 20 + "-0")
    assert store.get(ID).state(expires=0).prompt_token_ids == [1, 2, 3]
    async for item in generator:
        streamed += item.outputs[0].token_ids
        assert store.get(ID).state(expires=0).output_token_ids == streamed
    state = store.get(ID).state(expires=0)
    assert (state.status, state.finish_reason, state.stop_reason) == (Status.HANDED_OFF, "length", "pdd_handoff")
    assert state.decode_budget.tokens == 2
    assert state.request_id == "cmpl-" + "x" * 20
    assert state.sampling_params["temperature"] == 0.0


async def test_the_scheduler_report_does_not_reach_the_client():
    mixed = {**REPORT, "remote": 1}
    engine = FakeEngine([output([7], kv=dict(REPORT)), output([8], finish_reason="stop", kv=mixed)])
    recorder, _ = recorder_over(engine)
    seen = [item.kv_transfer_params async for item in recorder.generate({}, sampling_params(OPT_IN), "cmpl-1-0")]
    assert seen == [None, {"remote": 1}]


ROWS = [{7: SimpleNamespace(logprob=-0.1)}, {8: SimpleNamespace(logprob=-0.2)}, {9: SimpleNamespace(logprob=-3.0)}]


async def test_an_answer_that_is_not_streamed_is_recorded_while_it_is_made_and_given_out_at_its_end():
    last = output([7, 8, 9], "abc", "stop", logprobs=ROWS)
    begun = [output([7], "a", logprobs=ROWS[:1]), output([7, 8], "ab", logprobs=ROWS[:2], kv=REPORT)]
    seen = []

    def made():
        for part in begun:
            yield part
            record = store.get(ID)  # as a reader finds it, before the engine makes more
            seen.append((record.output_token_ids.tolist(), "".join(record.text), record.output_logprobs[-1]))
        yield last

    engine = FakeEngine(made())
    recorder, store = recorder_over(engine)
    given = sampling_params(OPT_IN, kind="FINAL_ONLY")
    assert [item async for item in recorder.generate({}, given, "chatcmpl-1")] == [last]
    assert seen == [([7], "a", {7: -0.1}), ([7, 8], "ab", {8: -0.2})]
    assert (engine.params[0].output_kind.name, given.output_kind.name) == ("CUMULATIVE", "FINAL_ONLY")
    state = store.get(ID).state(expires=0)
    assert (state.prompt_token_ids, state.output_token_ids, state.status) == (
        [1, 2, 3],
        [7, 8, 9],
        Status.FINISHED,
    )
    assert state.output_logprobs == [{7: -0.1}, {8: -0.2}, {9: -3.0}]
    assert state.decode_budget.tokens == 2


async def test_logprobs_are_kept_when_asked_for():
    rows = [{7: SimpleNamespace(logprob=-0.1), 5: SimpleNamespace(logprob=-3.0)}]
    engine = FakeEngine([output([7], logprobs=rows), output([], "", "stop")])
    recorder, store = recorder_over(engine)
    async for _ in recorder.generate({}, sampling_params(OPT_IN), "cmpl-1-0"):
        pass
    assert store.get(ID).state(expires=0).output_logprobs == [{7: -0.1, 5: -3.0}]


async def test_a_client_that_leaves_ends_the_engines_request_at_once():
    engine = FakeEngine([output([7]), output([8]), output([9], finish_reason="stop")])
    recorder, store = recorder_over(engine)
    generator = recorder.generate({}, sampling_params(OPT_IN), "cmpl-1-0")
    await anext(generator)
    await generator.aclose()
    assert engine.closed == 1
    assert store.get(ID).status is Status.ABORTED


async def test_the_time_to_live_runs_from_the_last_token_not_from_its_being_read():
    engine = FakeEngine([output([7], finish_reason="stop")])
    store = HandoffStore(PDDConfig(ttl_s=60.0), clock=lambda: 1e9)  # long after the request came
    metrics = CloudMetrics(CollectorRegistry())
    generator = GenerateRecorder(engine, store, model="m", tokenizer="d", metrics=metrics).generate(
        {}, sampling_params(OPT_IN), "cmpl-1-0"
    )
    await anext(generator)  # the client has not asked for more
    assert store.expires_in(store.get(ID)) == 60
    await generator.aclose()


async def test_an_engine_that_dies_leaves_an_aborted_state():
    engine = FakeEngine()

    async def dies():
        yield output([7])
        raise RuntimeError("engine dead")

    engine.generate = lambda *args, **kwargs: dies()
    recorder, store = recorder_over(engine)
    with pytest.raises(RuntimeError, match="engine dead"):
        async for _ in recorder.generate({}, sampling_params(OPT_IN), "cmpl-1-0"):
            pass
    state = store.get(ID).state(expires=0)
    assert (state.status, state.output_token_ids) == (Status.ABORTED, [7])


async def test_an_engine_abort_is_not_a_finish():
    recorder, store = recorder_over(FakeEngine([output([7]), output([], "", "abort")]))
    async for _ in recorder.generate({}, sampling_params(OPT_IN), "cmpl-1-0"):
        pass
    assert store.get(ID).status is Status.ABORTED


async def test_two_requests_with_one_request_id_have_two_engine_ids():
    engine = FakeEngine()
    recorder, _ = recorder_over(engine)
    recorder.generate({}, sampling_params(OPT_IN), "chatcmpl-same")
    recorder.generate({}, sampling_params({"pdd_handoff": "b" * 32}), "chatcmpl-same")
    first, second = (request_id for request_id, _ in engine.calls)
    assert first != second
    assert first.startswith("chatcmpl-same-")


async def test_a_wrong_opt_in_is_refused_before_the_engine():
    engine = FakeEngine()
    recorder, store = recorder_over(engine)
    for wrong, param in (
        ({"pdd_handoff": "x"}, "vllm_xargs.pdd_handoff"),
        ({**OPT_IN, "pdd_decode_budget": 0}, "vllm_xargs.pdd_decode_budget"),
    ):
        with pytest.raises(ValueError, match="pdd_") as caught:
            recorder.generate({}, sampling_params(wrong), "cmpl-1-0")
        assert caught.value.parameter == param
    with pytest.raises(ValueError, match="n must be 1"):
        recorder.generate({}, sampling_params(OPT_IN, n=2), "cmpl-1-0")
    assert engine.calls == []
    assert len(store) == 0


@pytest.mark.parametrize(
    ("opt_in", "fields", "request_id", "param"),
    [
        ({"pdd_protect": [0, 2, 3, 5]}, {}, "cmpl-1-0", "vllm_xargs.pdd_protect"),
        ({}, {"stop": ["x" * MAX_STOP_CHARS, "y"]}, "cmpl-1-0", "stop"),
        ({}, {"stop": ["x"], "bad_words": ["y" * MAX_STOP_CHARS]}, "cmpl-1-0", "bad_words"),
        ({}, {"stop_token_ids": [7] * (MAX_KEPT_IDS + 1)}, "cmpl-1-0", "stop_token_ids"),
        ({}, {}, "cmpl-" + "x" * MAX_REQUEST_ID_CHARS, "X-Request-Id"),
    ],
)
async def test_what_a_state_would_keep_without_bounds_is_refused_by_name(opt_in, fields, request_id, param):
    engine = FakeEngine()
    recorder, store = recorder_over(engine)
    prompt = {"prompt_token_ids": [1, 2, 3, 4]}
    with pytest.raises(ValueError, match="must") as caught:
        recorder.generate(prompt, sampling_params({**OPT_IN, **opt_in}, **fields), request_id)
    assert caught.value.parameter == param
    assert (engine.calls, len(store)) == ([], 0)
    recorder.generate(prompt, sampling_params(**fields), request_id)  # as on plain vLLM
    assert [called for called, _ in engine.calls] == [request_id]


async def test_ids_of_another_vocabulary_are_refused_before_the_engine():
    engine = FakeEngine()
    store, metrics = HandoffStore(PDDConfig()), CloudMetrics(CollectorRegistry())
    recorder = GenerateRecorder(engine, store, model="m", tokenizer="a" * 64, metrics=metrics)
    with pytest.raises(ValueError, match="pdd_tokenizer is not the digest") as caught:
        recorder.generate({}, sampling_params({**OPT_IN, "pdd_tokenizer": "b" * 64}), "cmpl-1-0")
    assert caught.value.parameter == "vllm_xargs.pdd_tokenizer"
    assert (engine.calls, len(store)) == ([], 0)
    recorder.generate({}, sampling_params({**OPT_IN, "pdd_tokenizer": "a" * 64}), "cmpl-1-0")
    assert (len(engine.calls), len(store)) == (1, 1)


async def test_what_the_client_gave_makes_earlier_states_make_way():
    engine = FakeEngine([output([7], finish_reason="stop")])
    recorder, store = recorder_over(engine, max_state_tokens=100_000)
    for number in range(8):
        given = {"stop_token_ids": list(range(1_000_000, 1_005_000))}  # as much as 45,000 ids of 4 bytes
        async for _ in recorder.generate(
            {}, sampling_params({"pdd_handoff": f"{number:032}"}, **given), "cmpl-1-0"
        ):
            pass
    assert len(store) == 2


async def test_nothing_of_a_request_is_kept_for_its_state_to_be_dropped_in_time(monkeypatch):
    """A timer keeps the variables of who started it: vLLM's, and with ``pdd_inline`` the connection itself."""
    timers = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda *_, context=None: timers.append(context))
    of_request = ContextVar("of_request")
    of_request.set("a connection")
    recorder, _ = recorder_over(FakeEngine([output([7], finish_reason="stop")]))
    async for _ in recorder.generate({}, sampling_params(OPT_IN), "cmpl-1-0"):
        pass
    assert [len(context) for context in timers] == [0]


async def test_an_id_in_use_is_refused_and_the_first_request_goes_on():
    recorder, store = recorder_over(FakeEngine([output([7], finish_reason="stop")]))
    first = recorder.generate({}, sampling_params(OPT_IN), "cmpl-1-0")
    with pytest.raises(ValueError, match="in use"):
        recorder.generate({}, sampling_params(OPT_IN), "cmpl-2-0")
    assert [item.outputs[0].token_ids async for item in first] == [[7]]
    assert store.get(ID).status is Status.FINISHED


async def test_a_delete_before_the_first_iteration_is_not_lost():
    engine = FakeEngine([output([7])])
    recorder, store = recorder_over(engine)
    generator = recorder.generate({}, sampling_params(OPT_IN), "cmpl-1-0")
    store.get(ID).cancelled = True
    with pytest.raises(ValueError, match="deleted before"):
        await anext(generator)
    assert store.get(ID).status is Status.ABORTED


async def test_a_state_leaves_memory_when_its_time_is_up_though_nobody_asks(monkeypatch):
    timers = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda delay, call, **_: timers.append((delay, call)))
    engine = FakeEngine([output([7], finish_reason="stop")])
    clock = SimpleNamespace(now=0.0)
    store = HandoffStore(PDDConfig(ttl_s=60.0), lambda: clock.now)
    metrics = CloudMetrics(CollectorRegistry())
    recorder = GenerateRecorder(engine, store, model="m", tokenizer="digest", metrics=metrics)
    async for _ in recorder.generate({}, sampling_params(OPT_IN), "cmpl-1-0"):
        pass
    ((delay, purge),) = timers
    clock.now += delay
    assert len(store) == 1
    purge()
    assert len(store) == 0


async def test_the_model_of_a_lora_request_is_the_adapter():
    recorder, store = recorder_over(FakeEngine())
    recorder.generate({}, sampling_params(OPT_IN), "cmpl-1-0", lora_request=SimpleNamespace(lora_name="tuned"))
    assert store.get(ID).model == "tuned"


@pytest.mark.parametrize("kind", ["DELTA", "FINAL_ONLY"])
async def test_a_prompt_that_is_to_be_refined_says_what_it_waits_for(kind):
    store = HandoffStore(PDDConfig())
    metrics = CloudMetrics(CollectorRegistry())
    refiner = SimpleNamespace(with_question=lambda params, ids: params)
    recorder = GenerateRecorder(
        FakeEngine(), store, model="m", tokenizer="digest", metrics=metrics, refiner=refiner
    )
    recorder.generate({}, sampling_params({**OPT_IN, "pdd_refine_ratio": 0.5}, kind=kind), "cmpl-1-0")
    refinement = store.get(ID).state(expires=0).refinement
    assert refinement.reason == "pending"
    assert "still being processed" in refinement.message


@pytest.mark.parametrize("kind", ["DELTA", "FINAL_ONLY"])
@pytest.mark.parametrize("ratio", [{}, {"pdd_refine_ratio": 0.5}])
async def test_the_workers_are_told_of_the_question_where_the_prompt_is_to_be_refined(kind, ratio):
    engine, told = FakeEngine(), []
    engine.generate = lambda prompt, params, *args, **kwargs: told.append(params)
    refiner = SimpleNamespace(with_question=lambda params, ids: with_window(params, len(ids)))
    metrics = CloudMetrics(CollectorRegistry())
    store = HandoffStore(PDDConfig())
    recorder = GenerateRecorder(engine, store, model="m", tokenizer="d", metrics=metrics, refiner=refiner)
    asked = sampling_params({**OPT_IN, **ratio}, kind=kind)
    recorder.generate({"prompt_token_ids": [1, 2, 3]}, asked, "cmpl-1-0")
    assert window_of(told[0].extra_args, most=64) == (3 if ratio else 64)
    assert asked.extra_args == {**OPT_IN, **ratio}, "the client's own stay as they are"

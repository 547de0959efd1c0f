"""The worker class and the attention backends over vLLM's own, up to where compiled code would begin."""

import dataclasses
import importlib
import inspect
from types import SimpleNamespace

import pytest
from vllm_by_hand import model_output, request_by_hand, scheduler_by_hand

from pdd_vllm_plugin import compat
from pdd_vllm_plugin.capture import backends
from pdd_vllm_plugin.failsafe import Failsafe

ID = "h" * 32
KEPT = "kv"


@pytest.fixture(params=["vllm.v1.worker.cpu_worker.CPUWorker", "vllm.v1.worker.gpu_worker.Worker"])
def platforms(request):
    """vLLM's own worker class."""
    module, _, name = request.param.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.fixture
def worker_cls(platforms, monkeypatch):
    """`PDDWorker` on a platform with that worker."""
    import pdd_vllm_plugin.worker

    monkeypatch.setattr(compat, "platform_worker", lambda: platforms)
    return importlib.reload(pdd_vllm_plugin.worker).PDDWorker


def test_the_platforms_worker_is_the_one_that_vllm_takes(model_dir):
    config = scheduler_by_hand(model_dir).vllm_config
    own = compat.platform_worker()
    assert config.parallel_config.worker_cls == f"{own.__module__}.{own.__qualname__}"


def test_what_the_worker_overrides_is_there_and_takes_what_vllm_gives(worker_cls, platforms):
    for name in ("load_model", "initialize_from_config", "execute_model"):
        theirs = inspect.signature(getattr(platforms, name)).parameters
        ours = inspect.signature(vars(worker_cls)[name]).parameters
        open_ended = any(one.kind is one.VAR_KEYWORD for one in ours.values())
        positional = [one.name for one in theirs.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
        assert open_ended or [*ours] == positional, name
    for name in vars(worker_cls):
        if name.startswith(("pdd_", "_pdd_")):
            assert not hasattr(platforms, name)


def test_vllm_calls_the_step_with_the_schedulers_output_alone():
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    assert "self.worker.execute_model(scheduler_output)" in inspect.getsource(WorkerWrapperBase.execute_model)


@pytest.fixture(params=backends.BACKENDS)
def entry(request):
    """vLLM's name for a backend, which stands for vLLM's own class here."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    yield AttentionBackendEnum[request.param]
    for name in backends.BACKENDS:
        AttentionBackendEnum[name].clear_override()


def test_the_backends_are_overridden_by_ones_that_look_the_same(entry):
    plain = entry.get_class()
    backends.register_backends()
    ours = entry.get_class()
    assert issubclass(ours, plain)
    assert ours is not plain
    assert ours.get_name() == plain.get_name()
    impl, stock = ours.get_impl_cls(), plain.get_impl_cls()
    assert impl.__mro__[1:3] == (backends.CapturingImpl, stock)
    expected = list(inspect.signature(backends.CapturingImpl.forward).parameters)[:7]
    assert list(inspect.signature(stock.forward).parameters)[:7] == expected
    update = list(inspect.signature(stock.do_kv_cache_update).parameters)
    assert update == ["self", "layer", "key", "value", "kv_cache", "slot_mapping"]


def test_the_metadata_tell_what_the_scorer_reads(entry):
    module = inspect.getmodule(entry.get_class())
    own = [one for one in vars(module).values() if getattr(one, "__module__", "") == module.__name__]
    [metadata] = [one for one in own if dataclasses.is_dataclass(one) and one.__name__.endswith("Metadata")]
    assert {"query_start_loc", "seq_lens", "block_table"} <= {one.name for one in dataclasses.fields(metadata)}


class Scorer:
    """Writes down what is asked of it."""

    def __init__(self):
        self.failsafe = Failsafe("prompts are not refined from here on")
        self.score_store = SimpleNamespace(take=lambda handoff_id: None)
        self.begun, self.looked, self.ended, self.forgotten = [], 0, 0, set()

    def forget(self, request_ids):
        self.forgotten |= set(request_ids)

    def begin_step(self, chunks):
        self.begun += chunks

    def on_layer(self, *_):
        self.looked += 1

    def end_step(self):
        self.ended += 1


class Keeper:
    """Writes down which prompts are complete."""

    def __init__(self):
        self.failsafe = Failsafe("no KV cache is handed over from here on")
        self.seen, self.completed = [], []

    def wants(self, new, opt_in):
        self.seen.append((new.req_id, new.lora_request, list(new.mm_features)))
        return opt_in.kv

    def end_step(self, chunks):
        self.completed += [one for one in chunks if KEPT in one.features and one.completes]


@pytest.fixture
def steps(worker_cls, platforms, model_dir, monkeypatch):
    """Runs two requests, one of which wants its prompt looked after."""
    from pdd_vllm_plugin.capture.windows import FEATURE, wants_scores
    from pdd_vllm_plugin.prompt_tracker import PromptTracker

    ran = []

    class Stock:
        def forward(self, layer, *_):
            ran.append(layer)

    class Impl(backends.CapturingImpl, Stock):
        pass

    def execute_model(self, scheduler_output):
        Impl().forward("layer", "q", "k", "v", "cache", "metadata")
        return "result"

    monkeypatch.setattr(platforms, "execute_model", execute_model)

    def run(scorer=None, keeper=None):
        scheduler = scheduler_by_hand(model_dir)
        worker = worker_cls.__new__(worker_cls)
        worker._pdd_scorer = scorer
        worker._pdd_keeper = keeper
        worker._pdd_config = SimpleNamespace(refine_window=16)
        worker._pdd_failsafe = Failsafe("prompts are neither refined nor handed over from here on")
        wishes = {} if scorer is None else {FEATURE: wants_scores(1000)}
        wishes |= {} if keeper is None else {KEPT: keeper.wants}
        worker._pdd_tracker = PromptTracker(wishes)
        extra = {"pdd_handoff": ID, "pdd_refine_ratio": 0.5, "pdd_kv": 1}
        scheduler.add_request(request_by_hand("a", range(90), max_tokens=4, extra_args=extra))
        scheduler.add_request(request_by_hand("b", range(30), max_tokens=9))
        count = 0
        while scheduler.has_unfinished_requests():
            step = scheduler.schedule()
            assert worker.execute_model(step) == "result"
            scheduler.update_from_output(step, model_output(scheduler, step))
            count += 1
        assert len(ran) == count
        assert backends.scorer is None
        return worker

    return run


def test_a_window_is_found_in_vllms_steps(steps):
    scorer = Scorer()
    steps(scorer)
    assert [(one.request_id, one.first, one.last) for one in scorer.begun] == [("a", 74, 90)]
    assert (scorer.looked, scorer.ended, scorer.forgotten) == (1, 1, {"a"})
    [chunk] = scorer.begun
    assert len(chunk.block_ids[0]) == 6
    assert not scorer.failsafe.failed


def test_a_prompts_cells_are_taken_once_it_is_complete(steps):
    keeper = Keeper()
    steps(keeper=keeper)
    assert keeper.seen == [("a", None, [])]
    [chunk] = keeper.completed
    assert (chunk.request_id, chunk.handoff_id, chunk.prompt_tokens) == ("a", ID, 90)
    assert len(chunk.block_ids[0]) == 6
    assert not keeper.failsafe.failed


@pytest.mark.parametrize("name", ["wants", "end_step"])
def test_a_keeper_that_fails_ends_no_step(steps, caplog, name):
    keeper = Keeper()

    def broken(*_):
        raise ZeroDivisionError

    setattr(keeper, name, broken)
    steps(keeper=keeper)
    assert len([one for one in caplog.records if "from here on" in one.getMessage()]) == 1


def test_both_look_after_the_same_prompt(steps):
    scorer, keeper = Scorer(), Keeper()
    steps(scorer, keeper)
    assert scorer.ended == len(keeper.completed) == 1


@pytest.mark.parametrize("name", ["begin_step", "on_layer", "end_step", "forget"])
def test_a_capture_that_fails_ends_no_step_and_is_logged_once(steps, caplog, name):
    scorer = Scorer()

    def broken(*_):
        raise ZeroDivisionError

    setattr(scorer, name, broken)
    worker = steps(scorer)
    lines = [one.getMessage() for one in caplog.records if "are not refined" in one.getMessage()]
    assert len(lines) == 1
    assert worker.pdd_take_scores([ID]) == [{"missed": "the capture failed: see the server's log"}]

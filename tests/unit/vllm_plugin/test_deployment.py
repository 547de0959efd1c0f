from types import SimpleNamespace

import pytest
from vllm_fakes import parallel

from pdd_core.errors import ConfigurationError, UnsupportedDeployment
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.deployment import (
    WORKER_CLS,
    check_api_server,
    check_before_launch,
    engine_ranks,
    gives_cells,
    refine_method,
)
from pdd_vllm_plugin.scheduler_mixin import BudgetMixin


class OurScheduler(BudgetMixin):
    pass


class OtherScheduler:
    pass


VLLMS = "vllm.v1.worker.gpu_worker.Worker"


def config(
    *, servers=1, engines=1, scheduler=OurScheduler, tokenizer=True, worker=WORKER_CLS, pdd=None,
    runner="generate", cache="auto",
):  # fmt: skip
    return SimpleNamespace(
        additional_config={"pdd": pdd or {}},
        parallel_config=parallel(engines=engines, _api_process_count=servers, worker_cls=worker),
        model_config=SimpleNamespace(skip_tokenizer_init=not tokenizer, runner_type=runner),
        scheduler_config=SimpleNamespace(
            scheduler_cls=None if scheduler is OtherScheduler else "its name", get_scheduler_cls=lambda: scheduler
        ),
        cache_config=SimpleNamespace(cache_dtype=cache),
        compilation_config=SimpleNamespace(cudagraph_mode=None, pass_config=SimpleNamespace()),
    )


@pytest.mark.parametrize(("engines", "servers"), [(1, 1), (4, 1), (1, 4), (2, 2)])
def test_our_scheduler_is_fine(engines, servers):
    check_api_server(config(engines=engines, servers=servers), SimpleNamespace())


@pytest.mark.parametrize(
    ("vllm_config", "args", "setting"),
    [
        (config(tokenizer=False), SimpleNamespace(), "--skip-tokenizer-init"),
        (
            config(scheduler=OtherScheduler),
            SimpleNamespace(),
            "OtherScheduler.*add --scheduler-cls pdd_vllm_plugin",
        ),
        (config(), SimpleNamespace(tokens_only=True), "--tokens-only"),
        (config(worker=VLLMS, pdd={"refine": "attention"}), SimpleNamespace(), "add --worker-cls pdd_vllm_plugin"),
        (
            config(worker="auto", pdd={"refine": "attention"}),
            SimpleNamespace(),
            "add --worker-cls pdd_vllm_plugin",
        ),
        (
            config(worker=VLLMS, pdd={"kv": "on"}),
            SimpleNamespace(),
            "pdd.kv is on.*add --worker-cls pdd_vllm_plugin",
        ),
    ],
)
def test_others_are_refused_with_the_setting_to_change(vllm_config, args, setting, caplog):
    with pytest.raises(UnsupportedDeployment, match=setting):
        check_api_server(vllm_config, args)
    assert "pdd: refusing to start" in caplog.text


@pytest.mark.parametrize(
    ("refine", "worker", "method"),
    [
        ("auto", WORKER_CLS, "attention"),
        ("auto", VLLMS, "off"),
        ("off", WORKER_CLS, "off"),
        ("lexical", VLLMS, "lexical"),
        ("attention", "theirs.Worker", "attention"),  # a subclass of ours, for all we know
    ],
)
def test_refined_prompts_come_from_what_the_settings_and_the_workers_allow(refine, worker, method):
    vllm_config = config(worker=worker)
    assert refine_method(PDDConfig(refine=refine), vllm_config) == method


@pytest.mark.parametrize(
    ("kv", "worker", "gives"),
    [
        ("auto", WORKER_CLS, True),
        ("auto", VLLMS, False),
        ("auto", "theirs.Worker", False),
        ("on", WORKER_CLS, True),
        ("on", "theirs.Worker", True),  # a subclass of ours, for all we know
        ("off", WORKER_CLS, False),
    ],
)
def test_cells_come_from_what_the_settings_and_the_workers_allow(kv, worker, gives):
    assert gives_cells(PDDConfig(kv=kv), config(worker=worker)) is gives


NAMED = {"VLLM_PLUGINS": "theirs,pdd"}


@pytest.mark.parametrize(
    ("vllm_config", "environ", "setting"),
    [
        (config(scheduler=OtherScheduler), NAMED, "add --scheduler-cls pdd_vllm_plugin"),
        (config(tokenizer=False), NAMED, "--skip-tokenizer-init"),
        (config(tokenizer=False), {}, "--skip-tokenizer-init"),  # the scheduler is ours
        (config(worker=VLLMS, pdd={"refine": "attention"}), NAMED, "add --worker-cls pdd_vllm_plugin"),
        (config(cache="fp8"), NAMED, "--kv-cache-dtype"),
        (config(cache="fp8", pdd={"kv": "on", "refine": "off"}), NAMED, "pdd.kv is on, but --kv-cache-dtype fp8"),
        (config(pdd={"ttl": 5}), NAMED, "pdd.ttl is unknown"),
        (config(pdd=7), NAMED, "additional_config.pdd must be an object"),
        (config(), {**NAMED, "VLLM_USE_RUST_FRONTEND": "1"}, "unset VLLM_USE_RUST_FRONTEND"),
    ],
)
def test_what_the_configuration_shows_is_refused_before_an_engine_is_launched(vllm_config, environ, setting):
    with pytest.raises(ConfigurationError, match=setting):
        check_before_launch(vllm_config, environ)


@pytest.mark.parametrize(
    ("vllm_config", "environ"),
    [
        (config(), NAMED),
        (config(engines=8), {**NAMED, "VLLM_USE_RUST_FRONTEND": "0"}),
        (config(scheduler=OtherScheduler, tokenizer=False), {"VLLM_PLUGINS": "theirs"}),
        (config(scheduler=OtherScheduler, tokenizer=False, pdd={"ttl": 5}), {}),
        (config(scheduler=OtherScheduler, runner="pooling"), NAMED),
        (config(worker=VLLMS, cache="fp8"), NAMED),  # nothing is captured
        (config(cache="fp8", pdd={"refine": "off"}), NAMED),  # no cells are handed over
    ],
)
def test_others_are_launched(vllm_config, environ):
    check_before_launch(vllm_config, environ)


@pytest.mark.parametrize(
    ("parallel_config", "ranks"),
    [
        (parallel(), [0]),
        (parallel(engines=3), [0, 1, 2]),  # vLLM balances the load
        (parallel(engines=4, first=2, local=2), [2, 3]),  # one of two servers, each with two engines
        (parallel(engines=4, first=3, local=1), [3]),  # one server per engine
    ],
)
def test_the_engines_of_a_server(parallel_config, ranks):
    assert list(engine_ranks(SimpleNamespace(parallel_config=parallel_config))) == ranks

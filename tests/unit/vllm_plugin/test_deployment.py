from types import SimpleNamespace

import pytest

from pdd_core.errors import UnsupportedDeployment
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.deployment import WORKER_CLS, check_api_server, refine_method
from pdd_vllm_plugin.scheduler_mixin import BudgetMixin


class OurScheduler(BudgetMixin):
    pass


class OtherScheduler:
    pass


VLLMS = "vllm.v1.worker.gpu_worker.Worker"


def config(*, servers=1, engines=1, scheduler=OurScheduler, tokenizer=True, worker=WORKER_CLS, pdd=None):
    return SimpleNamespace(
        additional_config={"pdd": pdd or {}},
        parallel_config=SimpleNamespace(_api_process_count=servers, data_parallel_size=engines, worker_cls=worker),
        model_config=SimpleNamespace(skip_tokenizer_init=not tokenizer),
        scheduler_config=SimpleNamespace(get_scheduler_cls=lambda: scheduler),
    )


@pytest.mark.parametrize("servers", [1, 4])
def test_one_engine_with_our_scheduler_is_fine(servers):
    check_api_server(config(servers=servers), SimpleNamespace())


@pytest.mark.parametrize(
    ("vllm_config", "args", "setting"),
    [
        (config(engines=4), SimpleNamespace(), "--data-parallel-size"),
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

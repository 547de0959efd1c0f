from types import SimpleNamespace

import pytest

from pdd_core.errors import UnsupportedDeployment
from pdd_vllm_plugin.admission import BudgetMixin
from pdd_vllm_plugin.deployment import check_api_server


class OurScheduler(BudgetMixin):
    pass


class OtherScheduler:
    pass


def config(*, servers=1, engines=1, scheduler=OurScheduler, tokenizer=True):
    return SimpleNamespace(
        parallel_config=SimpleNamespace(_api_process_count=servers, data_parallel_size=engines),
        model_config=SimpleNamespace(skip_tokenizer_init=not tokenizer),
        scheduler_config=SimpleNamespace(get_scheduler_cls=lambda: scheduler),
    )


def test_one_server_with_our_scheduler_is_fine():
    check_api_server(config(), SimpleNamespace())


@pytest.mark.parametrize(
    ("vllm_config", "args", "setting"),
    [
        (config(servers=2), SimpleNamespace(), "--api-server-count 1"),
        (config(engines=4), SimpleNamespace(), "--data-parallel-size"),
        (config(tokenizer=False), SimpleNamespace(), "--skip-tokenizer-init"),
        (
            config(scheduler=OtherScheduler),
            SimpleNamespace(),
            "OtherScheduler.*add --scheduler-cls pdd_vllm_plugin",
        ),
        (config(), SimpleNamespace(tokens_only=True), "--tokens-only"),
    ],
)
def test_others_are_refused_with_the_setting_to_change(vllm_config, args, setting, caplog):
    with pytest.raises(UnsupportedDeployment, match=setting):
        check_api_server(vllm_config, args)
    assert "pdd: refusing to start" in caplog.text

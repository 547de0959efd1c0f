from types import SimpleNamespace

import pytest

import pdd_vllm_plugin
from pdd_core.errors import UnsupportedDeployment


def test_a_server_that_names_the_plugin_is_checked_however_often_vllm_registers_it(arg_utils, monkeypatch):
    monkeypatch.setattr(pdd_vllm_plugin, "_registered", False)
    own = arg_utils.EngineArgs.create_engine_config
    pdd_vllm_plugin.register()
    pdd_vllm_plugin.register()
    assert arg_utils.EngineArgs.create_engine_config.__wrapped__ is own
    monkeypatch.setattr(
        arg_utils.EngineArgs, "made", SimpleNamespace(model_config=SimpleNamespace(runner_type="generate"))
    )
    monkeypatch.setenv("VLLM_PLUGINS", "pdd")
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(UnsupportedDeployment, match="unset VLLM_USE_RUST_FRONTEND"):
        arg_utils.EngineArgs().create_engine_config(SimpleNamespace(name="OPENAI_API_SERVER"))

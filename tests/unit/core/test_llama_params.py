"""llama.cpp's settings: one list, read from flags, variables and files, and what cannot work together."""

from pathlib import Path

import pytest

from pdd_core.env import ServeSettings
from pdd_core.errors import ConfigurationError
from pdd_core.llama_params import LlamaParams


def test_each_setting_is_one_of_the_server_and_travels_whole():
    assert set(LlamaParams.model_fields) <= set(ServeSettings.model_fields)
    settings = ServeSettings.load(None, {"n_ctx": 128, "gpu_layers": "7", "cache_type_k": "q8_0", "port": 0})
    assert settings.llama == LlamaParams.of(n_ctx=128, gpu_layers=7, cache_type_k="q8_0")


def test_flags_win_over_variables_and_these_over_the_file(monkeypatch, tmp_path):
    file = tmp_path / "pdd.toml"
    file.write_text('gpu_layers = "all"\nthreads = 3\nbatch_size = 64\ntensor_split = [3, 1]\n')
    monkeypatch.setenv("PDD_THREADS", "5")
    monkeypatch.setenv("PDD_BATCH_SIZE", "32")
    llama = ServeSettings.load(file, {"batch_size": "16"}).llama
    assert (llama.gpu_layers, llama.threads, llama.batch_size, llama.shares) == ("all", 5, 16, (3.0, 1.0))


@pytest.mark.parametrize("old", [True, "true", "1"])
def test_flash_attention_is_still_said_as_it_was(old):
    assert LlamaParams.of(flash_attn=old).flash_attn == "on"
    assert LlamaParams.of(flash_attn=False).flash_attn == LlamaParams().flash_attn == "off"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"cache_type_v": "q8_0"}, "cache_type_v"),
        ({"split_mode": "tensor"}, "split_mode"),
        ({"batch_size": 32, "ubatch_size": 64}, "ubatch_size"),
        ({"rope_scale": 2, "rope_freq_scale": 0.5}, "rope_scale"),
        ({"chat_template": "x", "chat_template_file": "y"}, "chat_template"),
        ({"device": "none", "gpu_layers": "all"}, "device"),
        ({"device": "none,CUDA0"}, "device"),
        ({"tensor_split": "3,x"}, "tensor_split"),
        ({"tensor_split": "0,0"}, "tensor_split"),
        ({"tensor_split": "nan"}, "tensor_split"),
        ({"override_kv": "a=int:b"}, "override_kv"),
        ({"override_kv": "a=list:1"}, "override_kv"),
        ({"override_kv": "=int:1"}, "override_kv"),
        ({"override_kv": "a=bool:yes"}, "override_kv"),
        ({"override_kv": "a=str:" + "x" * 128}, "override_kv"),
        ({"gpu_layers": -1}, "gpu_layers"),
        ({"threads": 0}, "threads"),
        ({"cache_type_k": "q3"}, "cache_type_k"),
        ({"numa": "yes"}, "numa"),
        ({"n_gpu": 1}, "n_gpu"),
    ],
)
def test_what_cannot_work_is_refused_by_name(fields, named):
    with pytest.raises(ConfigurationError, match=named):
        LlamaParams.of(**fields)
    with pytest.raises(ConfigurationError, match=named):
        ServeSettings.load(None, fields)


def test_quantised_values_are_taken_with_flash_attention_or_where_llama_decides():
    for flash in ("on", "auto"):
        assert LlamaParams.of(cache_type_v="q4_0", flash_attn=flash).cache_type_v == "q4_0"


def test_a_smaller_batch_needs_no_smaller_step_to_be_named():
    assert LlamaParams.of(batch_size=64).ubatch == 64
    assert LlamaParams.of(batch_size=2048).ubatch == 512


def test_adapters_have_scales_and_paths_may_have_colons():
    llama = LlamaParams.of(lora=r"a.gguf,b.gguf:0.5,C:\x\c.gguf,")
    assert llama.adapters == ((Path("a.gguf"), 1.0), (Path("b.gguf"), 0.5), (Path(r"C:\x\c.gguf"), 1.0))


def test_overrides_have_types():
    text = "a.b=int:-3,c=float:0.5,d=bool:false,e=str:x:y"
    assert LlamaParams.of(override_kv=text).overrides == (
        ("a.b", "int", -3),
        ("c", "float", 0.5),
        ("d", "bool", False),
        ("e", "str", "x:y"),
    )


def test_what_makes_the_model_another_one_is_known():
    assert LlamaParams().other_model == ()
    changed = LlamaParams.of(lora="a.gguf", rope_scale=2, yarn_ext_factor=0, override_kv="a=int:1")
    assert changed.other_model == ("lora", "rope_scale", "yarn_ext_factor", "override_kv")
    assert changed.freq_scale == 0.5


def test_what_was_learnt_belongs_to_the_settings_that_change_the_speed():
    plain = LlamaParams()
    for fields in (
        {"threads": 2},
        {"gpu_layers": 3},
        {"cache_type_k": "q8_0"},
        {"flash_attn": "on"},
        {"lora": "a"},
    ):
        assert plain.changed(**fields).speed_key != plain.speed_key
    for fields in ({"n_ctx": 64}, {"chat_template": "x"}, {"mlock": True}):
        assert plain.changed(**fields).speed_key == plain.speed_key

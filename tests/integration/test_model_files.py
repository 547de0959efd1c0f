"""What `pdd-device model` makes of other models' files: one model for both sides, or a refusal that says why."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from gguf_files import Model, bpe, llama3_rope_freqs, spm, ugm, wpm

from pdd_cli.convert.agreement import BOUND, Agreement
from pdd_cli.convert.cloud import to_cloud_folder
from pdd_cli.convert.device import to_device_file
from pdd_core.errors import ModelError

QWEN = bpe(pre="qwen2")
LINEAR = {".rope.scaling.type": "linear", ".rope.scaling.factor": 8.0}
YARN = {".rope.scaling.type": "yarn", ".rope.scaling.factor": 4.0, ".rope.scaling.original_context_length": 128}


@pytest.fixture
def converted(tmp_path):
    """Makes both forms of a model, and returns the cloud's folder."""

    def make(model, *, tensors_per_part=0):
        parts = model.write(tmp_path / "model.gguf", tensors_per_part=tensors_per_part)
        to_device_file(parts[0], tmp_path / "device.gguf")
        to_cloud_folder(parts[-1], tmp_path / "cloud", tmp_path / "device.gguf")
        return tmp_path / "cloud"

    return make


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Model(spm()), id="llama"),
        pytest.param(Model(bpe(), tied=False), id="llama-untied"),
        pytest.param(Model(spm(), biases=tuple("qkv")), id="llama-biases"),
        pytest.param(Model(spm(), biases=("v",), tied=False), id="llama-one-bias"),
        pytest.param(Model(spm(), metadata=LINEAR), id="llama-linear"),
        pytest.param(Model(spm(), metadata=YARN), id="llama-yarn"),
        pytest.param(Model(QWEN, arch="qwen2"), id="qwen2"),
        pytest.param(Model(QWEN, arch="qwen2", tied=False), id="qwen2-untied"),
        pytest.param(Model(QWEN, arch="qwen3"), id="qwen3"),
        pytest.param(Model(spm(add_space_prefix=False), arch="gemma2"), id="gemma2"),
        pytest.param(Model(spm(add_space_prefix=False), arch="gemma3", layers=7), id="gemma3"),
        pytest.param(
            Model(spm(), arch="gemma3", layers=7, tied=False, metadata=LINEAR), id="gemma3-linear-untied"
        ),
    ],
)
def test_both_forms_predict_the_same(converted, model) -> None:
    found = Agreement.of(converted(model))
    assert found.same_next == found.prompts == 4
    assert found.mean < BOUND / 10


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_positions_are_scaled_in_the_cloud_as_the_tensor_says(converted, factor: float) -> None:
    from transformers import AutoModelForCausalLM

    divisors = llama3_rope_freqs(16, factor=factor)
    folder = converted(Model(bpe(), rope_freqs=divisors, context=32_768))
    frequencies = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(frequencies, 10_000.0 ** (-np.arange(0, 16, 2) / 16) / divisors, rtol=1e-5)


@pytest.mark.parametrize(
    ("vocabulary", "add_bos", "add_eos"),
    [(spm, True, False), (spm, False, True), (bpe, True, True), (bpe, False, False)],
)
def test_a_text_begins_and_ends_in_the_cloud_as_on_the_device(converted, vocabulary, add_bos, add_eos) -> None:
    from transformers import AutoTokenizer

    made = vocabulary(add_bos=add_bos, add_eos=add_eos)
    ids = AutoTokenizer.from_pretrained(converted(Model(made))).encode("the sky")
    assert (ids[0] == made.ids["bos"], ids[-1] == made.ids["eos"]) == (add_bos, add_eos)


@pytest.mark.parametrize("prefix", [True, False])
def test_a_word_begins_with_a_blank_in_the_cloud_only_where_the_file_says_so(converted, prefix: bool) -> None:
    from transformers import AutoTokenizer

    folder = converted(Model(spm(add_bos=False, add_space_prefix=prefix)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("the sky") == ["▁the" if prefix else "the", "▁sky"]


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "tekken"])
def test_the_cloud_splits_a_text_by_the_files_expression(converted, pre: str) -> None:
    converted(Model(bpe(pre=pre)))  # refuses itself where the two sides' tokens differ


def test_the_cloud_spells_every_token_as_the_file_does(converted) -> None:
    from transformers import AutoTokenizer

    made = spm()
    table = AutoTokenizer.from_pretrained(converted(Model(made))).get_vocab()
    assert sorted(table, key=table.__getitem__) == [text for text, _, _ in made.tokens]


def test_a_split_file_gives_the_whole_model(converted, tmp_path) -> None:
    from safetensors.numpy import load_file

    model = Model(spm(), tied=False)
    folder = converted(model, tensors_per_part=8)
    assert len(list(tmp_path.glob("model-*-of-00003.gguf"))) == 3
    weights = load_file(folder / "model.safetensors")
    assert len(weights) == len(model.tensors())
    # the last of the third part
    np.testing.assert_array_equal(weights["lm_head.weight"], model.tensors()["output.weight"])


def test_the_cloud_ends_and_samples_answers_as_the_file_says(converted) -> None:
    made = spm()
    end_of_turn = next(number for number, (text, _, _) in enumerate(made.tokens) if text == "<|im_end|>")
    told = {"tokenizer.ggml.eot_token_id": end_of_turn, "general.sampling.temp": 0.5, "general.sampling.top_k": 7}
    config = json.loads((converted(Model(made, metadata=told)) / "generation_config.json").read_text())
    assert (config["eos_token_id"], config["temperature"], config["top_k"]) == ([2, end_of_turn], 0.5, 7)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Model(spm(), more={"blk.1.attn_gate.weight": np.ones((4, 4), np.float32)}), r"blk\.1\.attn_gate\.weight"),
        (Model(spm(), more={"blk.0.attn_q.scale": np.ones(1, np.float32)}), r"blk\.0\.attn_q\.scale"),
        (Model(spm(), without=("blk.1.ffn_up.weight",)), r"lacks blk\.1\.ffn_up\.weight"),
        (Model(QWEN, arch="qwen2", without=("blk.0.attn_k.bias",)), r"lacks blk\.0\.attn_k\.bias"),
        (Model(spm(), layers=1, metadata={".block_count": 2}), r"lacks blk\.1\.attn_q\.weight .* and 5 more"),
        (Model(spm(), rope_freqs=np.linspace(1, 9, 8)), r"rope_freqs\.weight"),
        (Model(spm(), rope_freqs=llama3_rope_freqs(16), metadata=LINEAR), r"rope_freqs\.weight"),
        (Model(spm(), metadata={".rope.scaling.type": "longrope", ".rope.scaling.factor": 4.0}), "longrope"),
        (Model(spm(), metadata={".rope.dimension_count": 8}), r"rope\.dimension_count is not 16"),
        (Model(spm(), metadata={".logit_scale": 3.0}), r"logit_scale = 3\.0"),
        (Model(spm(), metadata={".expert_count": 8}), "expert_count = 8"),
        (Model(spm(), metadata={".attention.causal": False}), r"attention\.causal = False"),
        (Model(spm(), arch="gemma"), "its architecture is gemma, not one of llama"),
    ],
)
def test_what_the_cloud_could_not_hold_is_refused_by_name(tmp_path, model, reason: str) -> None:
    source = model.write(tmp_path / "model.gguf")[0]
    with pytest.raises(ModelError, match=reason):
        to_cloud_folder(source, tmp_path / "cloud", tmp_path / "never-read.gguf")


@pytest.mark.parametrize(
    ("vocabulary", "reason"),
    [(ugm(), "is t5"), (wpm(), "is bert"), (bpe(pre="deepseek-llm"), "is deepseek-llm")],
)
def test_a_vocabulary_that_the_cloud_could_not_cut_by_is_refused(converted, tmp_path, vocabulary, reason) -> None:
    with pytest.raises(ModelError, match=reason):
        converted(Model(vocabulary))
    assert not (tmp_path / "cloud").exists()


def test_a_token_that_transformers_would_add_is_named(converted) -> None:
    tokens = tuple((text.replace("endoftext", "end"), sort, score) for text, sort, score in QWEN.tokens)
    with pytest.raises(ModelError, match=r"token .*'<\|endoftext\|>'\) is on one side only"):
        converted(Model(replace(QWEN, tokens=tokens), arch="qwen2"))


def test_an_unknown_pre_tokenizer_is_refused_with_llama_cpps_reason(tmp_path) -> None:
    source = Model(bpe(pre="moonish")).write(tmp_path / "model.gguf")[0]
    with pytest.raises(ModelError, match=r"unknown pre-tokenizer type: 'moonish'$"):
        to_device_file(source, tmp_path / "device.gguf")


def test_a_file_that_is_cut_off_is_refused_with_llama_cpps_reason(tmp_path) -> None:
    source = Model(spm()).write(tmp_path / "model.gguf")[0]
    source.write_bytes(source.read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_down\.weight.* not within the file"):
        to_device_file(source, tmp_path / "device.gguf")


def test_what_llama_cpp_does_not_load_is_not_made(tmp_path) -> None:
    source = Model(spm(), more={"blk.1.attn_gate.weight": np.ones((4, 4), np.float32)}).write(tmp_path / "m.gguf")[
        0
    ]
    with pytest.raises(ModelError, match="wrong number of tensors"):
        to_device_file(source, tmp_path / "device.gguf")


def test_two_forms_that_are_not_one_model_are_refused(tmp_path) -> None:
    source = Model(spm()).write(tmp_path / "model.gguf")[0]
    other = Model(spm(), rope_base=500.0).write(tmp_path / "other.gguf")[0]
    with pytest.raises(ModelError, match="the two forms disagree: both predict the same token behind"):
        to_cloud_folder(source, tmp_path / "cloud", other)

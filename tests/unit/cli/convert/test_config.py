from __future__ import annotations

import pytest

from pdd_cli.convert.config import config_fields
from pdd_cli.convert.gguf_file import GgufFile
from pdd_core.errors import ModelError

SHAPE = {
    "general.architecture": "llama",
    "llama.context_length": 4096,
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
    "tokenizer.ggml.tokens": ["a", "b"],
}


def fields(tensors=(), **keys):
    named = {f"llama.{key.replace('__', '.')}": value for key, value in keys.items()}
    return config_fields(GgufFile({**SHAPE, **named}, dict.fromkeys(tensors)))


def test_what_the_file_leaves_out_is_llama_cpps_default() -> None:
    made = fields()
    assert (made["num_key_value_heads"], made["head_dim"], made["rope_theta"]) == (4, 16, 10_000.0)
    assert made["tie_word_embeddings"]
    assert "rope_scaling" not in made


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.1.attn_output.bias"])
def test_a_bias_of_any_layer_is_configured(name: str) -> None:
    made = fields([name, "output.weight"])
    assert (made["attention_bias"], made["mlp_bias"], made["tie_word_embeddings"]) == (True, False, False)


@pytest.mark.parametrize("keys", [{"expert_count": 0}, {"attention__causal": True}, {"vocab_size": 2}])
def test_keys_that_change_nothing_pass(keys) -> None:
    assert fields(**keys) == fields()


@pytest.mark.parametrize(
    "keys",
    [
        {"expert_count": 8},
        {"attention__causal": False},
        {"rope__scaling__type": "yarn"},
        {"feed_forward_length": [1, 2]},
    ],
)
def test_keys_that_the_configuration_cannot_hold_are_named(keys) -> None:
    with pytest.raises(ModelError, match=next(iter(keys)).replace("__", ".")):
        fields(**keys)


def test_a_key_that_must_be_there_is_named() -> None:
    metadata = {key: value for key, value in SHAPE.items() if key != "llama.embedding_length"}
    with pytest.raises(ModelError, match="embedding_length is missing"):
        config_fields(GgufFile(metadata, {}))

"""Which models take cells in, and which cells are theirs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pdd_core.kv.cell_types import CellType
from pdd_core.kv.geometry import KVGeometry, KVPart, RopeGeometry
from pdd_core.llama_params import LlamaParams
from pdd_llamacpp_adapter.engine.kv.key_order import KeyOrder
from pdd_llamacpp_adapter.engine.kv.kv_support import KVShape, KVSupport, ModelFacts, supported, unsuited


def facts(architecture="llama", rope_type=0, *, fields=None, without=(), **others):
    """A model of 4 layers, and 8 heads of 64 elements."""
    names = {"attention.head_count": "8", "attention.head_count_kv": "2", "rope.freq_base": "500000.000000"}
    names |= fields or {}
    metadata = {f"{architecture}.{name}": text for name, text in names.items() if name not in without}
    usual = {"num_layers": 4, "num_heads": 8, "num_kv_heads": 2, "embedding": 512, "window": 0, "recurrent": False}
    model = ModelFacts(metadata={"general.architecture": architecture, **metadata}, rope_type=rope_type, **usual)
    return replace(model, **others)


def test_a_llama_model_takes_cells_in():
    assert supported(facts()).shape == KVShape(4, 2, 64, 500_000.0, 64, "default", 1.0, KeyOrder.PAIRS)


def test_a_part_of_the_head_may_be_turned_where_its_order_is_known():
    fields = {"attention.key_length": "96", "attention.value_length": "96", "rope.dimension_count": "48"}
    shape = supported(facts("phi3", 2, fields=fields)).shape
    assert (shape.head_size, shape.rotary_dim, shape.order) == (96, 48, KeyOrder.HALVES)


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": "4.000000"}
LLAMA3 = np.array([1, 1, 3.5, 32, 32], dtype=np.float32)
SCALED = [
    ({}, None, ("default", 1.0)),
    ({"rope.scaling.type": "none", "rope.scaling.factor": "4.000000"}, None, ("default", 1.0)),
    ({"rope.scaling.type": "linear", "rope.scaling.factor": "4.000000"}, None, ("linear", 4.0)),
    ({"rope.scale_linear": "4.000000"}, None, ("linear", 4.0)),
    (YARN, None, ("yarn", 4.0)),
    ({}, LLAMA3, ("llama3", 32.0)),
]


@pytest.mark.parametrize(("fields", "freqs", "expected"), SCALED)
def test_scaling_is_told_in_hugging_faces_words(fields, freqs, expected):
    shape = supported(facts(fields=fields, rope_freqs=freqs)).shape
    assert (shape.scaling, shape.factor) == expected


LATENT = {"attention.kv_lora_rank": "512"}
UNSUPPORTED = {
    "recurrent": (facts("mamba", -1, recurrent=True), "recurrent"),
    "latent": (facts("deepseek2", fields=LATENT), "MLA"),
    "window": (facts("gemma3", 2, window=1024), "sliding window"),
    "unknown": (facts("command-r"), "'command-r'"),
    "m-rope": (facts("qwen2vl", 8), "'qwen2vl'"),
    "other rope": (facts("qwen2", 8), "type 8"),
    "query heads": (facts(without=["attention.head_count"]), "number of heads"),
    "kv heads": (facts(without=["attention.head_count_kv"]), "number of heads"),
    "values": (facts(fields={"attention.value_length": "32"}), "differ in size"),
    "part": (facts(fields={"rope.dimension_count": "32"}), "a part of each head"),
    "longrope": (facts("phi3", 2, fields={"rope.scaling.type": "longrope"}), "longrope"),
    "long factors": (facts("phi3", 2, long_factors=True), "longrope"),
    "both": (facts(fields=YARN, rope_freqs=LLAMA3), "not those of llama3"),
    "freqs": (facts(rope_freqs=LLAMA3[::-1]), "not those of llama3"),
    "no freqs": (facts(rope_freqs=LLAMA3[:0]), "not those of llama3"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_cannot_be_handed_over_is_told(case):
    model, reason = UNSUPPORTED[case]
    support = supported(model)
    assert support.shape is None
    assert reason in support.reason


def geometry(**others):
    rope = RopeGeometry(theta=500_000.0, rotary_dim=64)
    usual = {
        "num_layers": 4,
        "num_kv_heads": 2,
        "head_size": 64,
        "rope": rope,
        "key_rotation": 1,
        "value_rotation": 1,
    }
    usual |= {"key_type": CellType.Q8_0, "value_type": CellType.Q4_0} | others
    parts = [KVPart(layers=(0, usual["num_layers"]), heads=(0, usual["num_kv_heads"]))]
    return KVGeometry(parts=parts, **usual)


def test_cells_of_the_same_model_do_not_differ():
    assert supported(facts()).differs_from(geometry()) is None


def turned(**others):
    return {"rope": RopeGeometry(**{"theta": 500_000.0, "rotary_dim": 64} | others)}


DIFFERENT = [
    ({"version": "2"}, "version of the cells: 1"),
    ({"num_layers": 5}, "number of layers: 4 in the device's file, 5 in the cloud"),
    ({"num_kv_heads": 4}, "number of KV heads: 2"),
    ({"head_size": 128}, "size of a head: 64"),
    (turned(theta=10_000.0), "RoPE's base: 500000.0"),
    (turned(scaling="llama3", factor=32.0), "RoPE's scaling: default"),
    (turned(factor=2.0), "RoPE's factor: 1.0"),
    (turned(rotary_dim=32), "RoPE's rotary dimensions: 64"),
]


@pytest.mark.parametrize(("others", "told"), DIFFERENT)
def test_the_first_difference_is_named(others, told):
    assert supported(facts()).differs_from(geometry(**others)).startswith(told)


def test_a_file_from_before_llama3s_factors_differs():
    """Old converters left them out, and such a file runs with other positions than the cloud."""
    llama3 = geometry(**turned(scaling="llama3", factor=32.0))
    assert (
        supported(facts()).differs_from(llama3)
        == "RoPE's scaling: default in the device's file, llama3 in the cloud"
    )
    assert supported(facts(rope_freqs=LLAMA3)).differs_from(llama3) is None


def test_a_model_that_takes_none_in_differs_from_all_by_its_reason():
    assert KVSupport(None, "why").differs_from(geometry()) == "why"
    assert "not switched on" in KVSupport().differs_from(geometry())


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"lora": "a.gguf"}, "lora"),
        ({"rope_scale": 2.0}, "rope_scale"),
        ({"yarn_orig_ctx": 100}, "yarn_orig_ctx"),
        ({"override_kv": "a=int:1"}, "override_kv"),
        ({"cache_type_k": "q8_0"}, "cache_type_v is f16"),
        ({"cache_type_k": "bf16", "cache_type_v": "bf16"}, "bf16"),
    ],
)
def test_settings_that_make_other_cells_than_the_clouds_are_named(fields, why):
    assert why in unsuited(LlamaParams.of(**fields))


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_caches_of_one_type_are_suited(kind):
    params = LlamaParams.of(cache_type_k=kind, cache_type_v=kind, flash_attn="auto", threads=2, n_ctx=100)
    assert unsuited(params) is None

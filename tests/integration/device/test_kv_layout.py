"""What llama.cpp's own code decides about cells: how it stores them, and what it says of a model."""

from __future__ import annotations

import llama_cpp
import numpy as np
import pytest
from gguf_files import VOCABULARIES, Model, llama3_rope_freqs

from pdd_core.kv.cell_types import CellType
from pdd_core.kv.packing import pack as numpy_pack
from pdd_llamacpp_adapter import DeviceEngine
from pdd_llamacpp_adapter.engine.kv import ggml, sequence_state
from pdd_llamacpp_adapter.engine.kv.key_order import KEY_ORDER, KeyOrder, in_halves
from pdd_llamacpp_adapter.engine.kv.kv_support import ROPE_TYPES
from pdd_llamacpp_adapter.engine.kv.layout_check import VERIFIED
from pdd_llamacpp_adapter.engine.kv.sequence_state import read

pytestmark = pytest.mark.anyio


def test_this_llama_cpp_was_read():
    """A new release: read these parts of its vendor/llama.cpp, run test_kv_cells.py, and add it to VERIFIED.

    - src/llama-kv-cache.cpp: state_write_meta, state_write_data (the form of a state: sequence_state.py);
      attn_rot_k, attn_rot_v, build_input_k_rot, build_input_v_rot (the rotation: pdd_core/kv/rotation.py)
    - src/llama-model.cpp: llama_model_rope_type; conversion/: which classes permute (the order: key_order.py)
    """
    assert llama_cpp.__version__ in VERIFIED


@pytest.mark.parametrize("kind", CellType)
def test_ggml_packs_the_same_bits_as_numpy(kind):
    random = np.random.default_rng(0)
    values = random.standard_normal((3, 40, 2, 64), dtype=np.float32) * 10 ** random.uniform(-9, 4, (3, 40, 1, 1))
    values[0, 0] = 0
    values = values.astype(np.float32)
    assert np.array_equal(ggml.pack(values, kind), numpy_pack(values, kind))


def opened(tmp_path, **fields):
    model = Model(VOCABULARIES["spm"](), **fields)
    path = model.write(tmp_path / "tiny.gguf")[0]
    return model, DeviceEngine.open(path, n_ctx=256, kv=True)


SHAPES = {
    "llama": ({}, ("default", 1.0, KeyOrder.PAIRS)),
    "llama3": ({"rope_freqs": llama3_rope_freqs(16, factor=8.0)}, ("llama3", 8.0, KeyOrder.PAIRS)),
    "yarn": (
        {"arch": "qwen2", "metadata": {".rope.scaling.type": "yarn", ".rope.scaling.factor": 4.0}},
        ("yarn", 4.0, KeyOrder.HALVES),
    ),
    "qwen3": ({"arch": "qwen3"}, ("default", 1.0, KeyOrder.HALVES)),
}


@pytest.mark.parametrize("case", SHAPES)
def test_a_models_file_says_what_its_cells_look_like(tmp_path, case):
    fields, expected = SHAPES[case]
    with opened(tmp_path, **fields)[1] as engine:
        shape = engine.kv.shape
        assert engine.kv.reason == ""
    assert (shape.num_layers, shape.num_kv_heads, shape.head_size, shape.rotary_dim) == (2, 2, 16, 16)
    assert (shape.scaling, shape.factor, shape.order) == expected
    assert shape.theta == 10_000.0


def test_a_model_with_a_sliding_window_takes_none_in_and_works(tmp_path):
    with opened(tmp_path, arch="gemma3")[1] as engine:
        assert engine.kv.shape is None
        assert "sliding window" in engine.kv.reason
        assert engine.slots[0].memory.sequence.cells is None


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
async def test_keys_are_those_that_a_cloud_would_compute(tmp_path, arch):
    """The first layer's, by numpy, from the weights as Hugging Face has them."""
    model, engine = opened(tmp_path, arch=arch)
    ids = [5, 9, 30, 41, 7, 22]
    with engine:
        await engine.slots[0].extend(ids)
        cells = engine.slots[0].memory.sequence.cells
        found = read(cells.layout, cells.own(0, len(ids))).keys[0]
    weights = model.tensors()
    inputs = weights["token_embd.weight"].astype(np.float32)[ids]
    inputs = inputs / np.sqrt((inputs**2).mean(axis=-1, keepdims=True) + 1e-6) * weights["blk.0.attn_norm.weight"]
    keys = inputs @ weights["blk.0.attn_k.weight"].astype(np.float32).T
    keys += weights.get("blk.0.attn_k.bias", np.float32(0))
    keys = keys.reshape(len(ids), model.kv_heads, model.head)
    if arch == "llama":  # the converter has reordered the rows
        keys = in_halves(keys)
    angles = np.arange(len(ids))[:, None] * model.rope_base ** (-np.arange(0, model.head, 2) / model.head)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    low, high = np.split(keys, 2, axis=-1)
    expected = np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
    np.testing.assert_allclose(found, expected, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_llama_cpp_has_the_rope_that_the_table_says(tmp_path, arch):
    import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions

    with opened(tmp_path, arch=arch)[1] as engine, engine.slots[0].memory.sequence.context.model as handle:
        assert ROPE_TYPES[L.llama_model_rope_type(handle)] is KEY_ORDER[arch]


async def test_a_llama_cpp_with_another_layout_takes_none_in_and_works(gguf, monkeypatch, caplog):
    monkeypatch.setattr(sequence_state, "_MAGIC", 1)
    with DeviceEngine.open(gguf, n_ctx=256, kv=True) as engine:
        assert engine.kv.shape is None
        assert "does not give back a known state" in engine.kv.reason
        logits = await engine.slots[0].extend([1, 2, 3], want_logits=True)
    (record,) = caplog.records
    assert "takes in no KV cache" in record.message
    with DeviceEngine.open(gguf, n_ctx=256) as engine:
        assert np.array_equal(await engine.slots[0].extend([1, 2, 3], want_logits=True), logits)


async def test_a_layout_that_gives_back_other_numbers_is_noticed(gguf, monkeypatch, caplog):
    """As if llama.cpp began to store heads in another order."""
    monkeypatch.setattr("pdd_llamacpp_adapter.engine.kv.layout_check.read", lambda *_: _turned(read(*_)))
    with DeviceEngine.open(gguf, n_ctx=256, kv=True) as engine:
        assert engine.kv.reason == "llama.cpp gives back a known state with other numbers"
    assert "other numbers" in caplog.text


def _turned(cells):
    return type(cells)(cells.positions, cells.keys, cells.values[:, :, ::-1])

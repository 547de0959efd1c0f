import sys
from types import ModuleType, SimpleNamespace

import pytest

from pdd_core.errors import UnsupportedDeployment
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.kv.keeper import keeper_of
from pdd_vllm_plugin.kv.rank_cells import Rank, rank_cells


class FullAttentionSpec(SimpleNamespace):
    """As vLLM's."""


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    """Stands for what has to be imported of vLLM, and for the layout that is found in a cache."""
    interface = ModuleType("vllm.v1.kv_cache_interface")
    interface.FullAttentionSpec = FullAttentionSpec
    for name in ("vllm", "vllm.v1"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.v1.kv_cache_interface", interface)
    layout = ModuleType("pdd_vllm_plugin.capture.layout")

    def probe_layout(layer, impl, kv_cache, *, values):
        impl.do_kv_cache_update()
        return SimpleNamespace(block_size=16, values=values)

    layout.probe_layout = probe_layout
    monkeypatch.setitem(sys.modules, "pdd_vllm_plugin.capture.layout", layout)


def layer(heads=2, size=64, *, window=None, dtype="torch.bfloat16", shape=(9, 2, 16), value_size=64, **impl):
    made = SimpleNamespace(
        sliding_window=window, attn_type="decoder", num_kv_heads=heads, head_size=size,
        do_kv_cache_update=lambda: None, **impl,
    )  # fmt: skip
    cache = SimpleNamespace(shape=shape, stride=lambda: (32, 16, 1), dtype=dtype)
    spec = FullAttentionSpec(head_size_v=value_size)
    return SimpleNamespace(impl=made, kv_cache=cache, get_kv_cache_spec=lambda _: spec)


def name(number):
    return f"model.layers.{number}.self_attn.attn"


def rank(
    layers=None, *, numbers=range(4), kv_heads=2, tp=1, tp_rank=0, size=64, groups=None, model=None, halves=True
):
    layers = {name(number): layer() for number in numbers} if layers is None else layers
    whole = SimpleNamespace(layer_names=[*layers], kv_cache_spec=SimpleNamespace(block_size=32))
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            hf_text_config=SimpleNamespace(num_hidden_layers=4, rope_theta=1e4), get_head_size=lambda: size,
            get_total_num_kv_heads=lambda: kv_heads, **(model or {}),
        ),
        cache_config=SimpleNamespace(cache_dtype="auto"), parallel_config=SimpleNamespace(tensor_parallel_size=tp),
    )  # fmt: skip
    rotary = SimpleNamespace(is_neox_style=halves, rotary_dim=size)
    return Rank(config, layers, [whole] if groups is None else groups, [rotary], tp_rank)


def cells(*args, **kwargs):
    return rank_cells(rank(*args, **kwargs), PDDConfig())


def test_a_single_worker_has_all():
    found = cells()
    assert (found.part.layers, found.part.heads, found.gives) == ((0, 4), (0, 2), True)
    assert (found.keys.values, found.values.values, found.split, len(found.caches)) == (False, True, 2, 4)
    geometry = found.geometry
    assert (geometry.key_type, geometry.value_type, geometry.key_rotation, geometry.value_rotation) == (
        "q8_0", "q4_0", 64, 64,
    )  # fmt: skip
    assert found.cell_bytes == geometry.cell_bytes == 4 * 2 * (68 + 36)


def test_blocks_are_those_of_the_kernel():
    # the scheduler's blocks of 32 tokens are two of the kernel's, of 16
    assert cells().blocks([(5, 2)], 33) == [10, 11, 4]


def test_a_pipeline_rank_has_its_layers():
    found = cells(numbers=(2, 3))
    assert (found.part.layers, found.geometry.num_layers) == ((2, 4), 4)
    assert found.cell_bytes * 2 == found.geometry.cell_bytes


def test_layers_come_in_the_order_of_their_numbers():
    layers = {name(number): layer(mark=number) for number in (3, 0, 2, 1)}
    found = cells(layers)
    assert [found.caches.index(layers[name(number)].kv_cache) for number in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("tp_rank", [0, 1, 3])
def test_a_tensor_parallel_rank_has_its_heads(tp_rank):
    found = cells(kv_heads=8, tp=4, tp_rank=tp_rank)
    assert (found.part.heads, found.gives) == ((2 * tp_rank, 2 * tp_rank + 2), True)
    assert found.geometry.num_kv_heads == 8


@pytest.mark.parametrize(("tp_rank", "head", "gives"), [(0, 0, True), (1, 0, False), (2, 1, True), (3, 1, False)])
def test_of_ranks_with_the_same_head_the_first_gives_it(tp_rank, head, gives):
    layers = {name(number): layer(heads=1) for number in range(4)}
    found = cells(layers, kv_heads=2, tp=4, tp_rank=tp_rank)
    assert (found.part.heads, found.gives) == ((head, head + 1), gives)


def test_layers_behind_the_models_last_are_a_drafters():
    layers = {name(number): layer() for number in range(4)} | {name(4): layer(heads=7, window=9)}
    assert cells(layers).part.layers == (0, 4)


def with_one(**attributes):
    return {name(number): layer(**(attributes if number == 2 else {})) for number in range(4)}


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda: rank(with_one(window=4096)), "layer 2 .* sliding window"),
        (lambda: rank(with_one(attn_type_="x", alibi_slopes=[1.0])), "layer 2"),
        (lambda: rank(with_one(heads=4)), "different numbers of KV heads"),
        (lambda: rank({name(n): layer(heads=3) for n in range(4)}), "do not have 2 KV heads of 64"),
        (lambda: rank({name(n): layer(value_size=32) for n in range(4)}), "do not have 2 KV heads of 64"),
        (lambda: rank(with_one(shape=(9, 2, 32))), "several shapes"),
        (lambda: rank({name(n): layer(dtype="torch.uint8") for n in range(4)}), "torch.uint8"),
        (lambda: rank(numbers=(0, 2, 3)), "not attention"),
        (lambda: rank(numbers=()), "not attention"),
        (lambda: rank({"model.layers.1.experts.2.attn": layer()}), "not clear"),
        (lambda: rank({name(1): layer(), "encoder.layers.1.attn": layer()}), "not clear"),
        (lambda: rank(groups=[]), "several KV cache groups"),
        (lambda: rank(halves=False), "GPT-J"),
        (lambda: rank({name(n): layer(size=48, value_size=48) for n in range(4)}, size=48), "no whole blocks"),
        (lambda: rank(model={"use_mla": True}), "MLA"),
        (lambda: rank(model={"uses_mrope": True}), "M-RoPE"),
        (lambda: rank(model={"is_encoder_decoder": True}), "encoder"),
    ],
)
def test_others_are_refused_by_name(made, named):
    with pytest.raises(UnsupportedDeployment, match=named):
        rank_cells(made(), PDDConfig())
    none = keeper_of(made(), PDDConfig())
    assert none.reason == "unsupported"


def test_a_backend_that_shows_nothing_is_refused():
    layers = {number: layer() for number in map(name, range(4))}
    del layers[name(0)].impl.do_kv_cache_update
    with pytest.raises(UnsupportedDeployment, match="SimpleNamespace does not show"):
        cells(layers)


def test_heads_of_any_size_go_as_f16():
    layers = {number: layer(size=48, value_size=48) for number in map(name, range(4))}
    found = rank_cells(rank(layers, size=48), PDDConfig(kv_key_type="f16", kv_value_type="f16"))
    assert (found.geometry.key_rotation, found.geometry.value_rotation) == (1, 1)

import sys
from enum import Enum
from types import ModuleType, SimpleNamespace

import pytest

from pdd_core.errors import UnsupportedDeployment
from pdd_core.refinement.capture import CAPTURE_DEPTHS
from pdd_vllm_plugin.capture.backends import CapturingImpl
from pdd_vllm_plugin.capture.capture_layer import CaptureLayer
from pdd_vllm_plugin.capture.layers import layers_of, of_target, refuse_unsupported
from pdd_vllm_plugin.capture.windows import WindowChunk


def mode(name):
    return SimpleNamespace(mixed_mode=lambda: SimpleNamespace(name=name))


def config(*, mla=False, dtype="auto", dcp=1, graphs="PIECEWISE", fused=False):
    return SimpleNamespace(
        model_config=SimpleNamespace(use_mla=mla),
        cache_config=SimpleNamespace(cache_dtype=dtype),
        parallel_config=SimpleNamespace(decode_context_parallel_size=dcp),
        compilation_config=SimpleNamespace(
            cudagraph_mode=mode(graphs), pass_config=SimpleNamespace(fuse_attn_quant=fused)
        ),
    )


def test_a_usual_server_is_fine():
    refuse_unsupported(config())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mla": True}, "MLA"),
        ({"dtype": "fp8"}, "--kv-cache-dtype fp8"),
        ({"dcp": 2}, "--decode-context-parallel-size"),
        ({"graphs": "FULL"}, "cudagraph_mode FULL"),
        ({"fused": True}, "fuse_attn_quant"),
    ],
)
def test_others_are_refused_with_the_setting_to_change(settings, named):
    with pytest.raises(UnsupportedDeployment, match=named) as refusal:
        refuse_unsupported(config(**settings))
    assert '"refine": "off"' in str(refusal.value)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [(32, (3, 9)), (16, (6, 18)), (8, (13, 37))],
)
def test_the_block_in_writing_is_found_in_the_kernels_own_numbers(kernel, expected):
    layout = SimpleNamespace(block_size=kernel)
    chunk = WindowChunk("a", "h", 120, start=64, tokens=41, first=100, last=105, block_ids=((), (4, 5, 6, 9)))
    assert CaptureLayer(3, layout, group=1, block_size=32).written_block(chunk) == expected


class FullAttentionSpec(SimpleNamespace):
    sliding_window = attention_chunk_size = None


class SinkSpec(FullAttentionSpec):
    """As vLLM's ``SinkFullAttentionSpec``: a subclass whose cache begins with something else."""


class ChunkedSpec(SimpleNamespace):
    """As vLLM's ``ChunkedLocalAttentionSpec``."""


class AttentionType(str, Enum):  # noqa: UP042 - a StrEnum would print as it compares
    """As vLLM's, which prints otherwise than it compares."""

    DECODER = "decoder"


@pytest.fixture(autouse=True)
def specs(monkeypatch):
    interface = ModuleType("vllm.v1.kv_cache_interface")
    interface.FullAttentionSpec = FullAttentionSpec
    for name in ("vllm", "vllm.v1"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.v1.kv_cache_interface", interface)


class Impl(CapturingImpl):
    def __init__(self, **attributes):
        vars(self).update({"sliding_window": None, "attn_type": "decoder", **attributes})


class FlashInferImpl:
    sliding_window, attn_type = None, "decoder"


def layer(spec=None, impl=None, **attributes):
    impl = Impl(**attributes) if impl is None else impl
    spec = FullAttentionSpec() if spec is None else spec
    return SimpleNamespace(impl=impl, get_kv_cache_spec=lambda _: spec)


def model(layers, *, ranks=1):
    return SimpleNamespace(
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=layers)),
        parallel_config=SimpleNamespace(pipeline_parallel_size=ranks),
    )


def decoder(count, name="model.layers.{}.self_attn.attn", **attributes):
    return {name.format(number): layer(**attributes) for number in range(count)}


MIDDLE = {"model.layers.5.self_attn.attn": 5}


def test_the_layer_nearest_to_a_depth_is_chosen():
    assert layers_of(model(10), decoder(10), (0.5,)) == MIDDLE


def test_an_attention_type_is_compared_and_not_printed():
    assert layers_of(model(10), decoder(10, attn_type=AttentionType.DECODER), (0.5,)) == MIDDLE


def test_a_draft_model_is_not_captured():
    draft = decoder(8, "draft_model.model.layers.{}.self_attn.attn")
    other = decoder(8, "helper.layers.{}.self_attn.attn")
    mine = of_target(decoder(10) | draft | other, SimpleNamespace(modules=other.values))
    assert layers_of(model(10), mine, (0.5,)) == MIDDLE
    assert of_target(decoder(10), None).keys() == decoder(10).keys()


def test_heads_that_speculate_behind_the_models_last_layer_are_not_captured():
    """EAGLE's and MTP's layers are numbered on from the model's."""
    assert layers_of(model(10), decoder(12), (0.99,)) == {"model.layers.9.self_attn.attn": 9}


def test_of_an_encoder_decoder_the_decoders_own_attention_counts():
    cross = decoder(10, "model.layers.{}.encoder_attn.attn", attn_type="encoder_decoder")
    encoder = decoder(10, "model.encoder.layers.{}.self_attn.attn", attn_type="encoder")
    assert layers_of(model(10), encoder | decoder(10) | cross, (0.5,)) == MIDDLE


def test_of_gemma_3_the_full_layers_nearest_to_the_depths_are_chosen():
    """One layer of six is full. `eval refine` measures the same: tests/unit/lab/evaluate/test_run.py."""
    windows = {name: layer(sliding_window=(511, 0)) for name in decoder(18)}
    for number in (5, 11, 17):
        windows |= {f"model.layers.{number}.self_attn.attn": layer()}
    assert sorted(layers_of(model(18), windows, CAPTURE_DEPTHS).values()) == [5, 11]


@pytest.mark.parametrize(
    "odd",
    [
        {"spec": ChunkedSpec()},
        {"spec": SinkSpec()},
        {"spec": FullAttentionSpec(attention_chunk_size=8192)},
        {"spec": FullAttentionSpec(sliding_window=512)},
        {"sliding_window": 512},
        {"sliding_window": (511, 0)},
        {"alibi_slopes": [0.5]},
        {"kv_sharing_target_layer_name": "model.layers.0.self_attn.attn"},
    ],
)
def test_only_plain_full_attention_counts(odd):
    assert layers_of(model(10), decoder(10) | {"model.layers.5.self_attn.attn": layer(**odd)}, (0.5,)) == {
        "model.layers.4.self_attn.attn": 4
    }
    with pytest.raises(UnsupportedDeployment, match="attends to its whole prompt") as refusal:
        layers_of(model(10), decoder(10, **odd), (0.5,))
    assert '"refine": "off"' in str(refusal.value)


def test_a_backend_that_is_not_looked_at_is_refused_by_name():
    with pytest.raises(UnsupportedDeployment, match=r"\(FlashInferImpl\) is not supported: set --att"):
        layers_of(model(10), decoder(10, impl=FlashInferImpl()), (0.5,))
    with pytest.raises(UnsupportedDeployment, match=r"\(none\)"):
        layers_of(model(10), {}, (0.5,))


@pytest.mark.parametrize(
    ("odd", "named"),
    [
        ("model.layers.5.shared_transformer.self_attn.attn.0", "has no single number"),
        ("model.shared.attn", "has no single number"),
        ("talker.layers.5.self_attn.attn", r"model\.layers\.5\.self_attn\.attn and talker\.layers\.5"),
    ],
)
def test_layers_that_cannot_be_told_apart_are_refused_by_name(odd, named):
    with pytest.raises(UnsupportedDeployment, match=named):
        layers_of(model(10), decoder(10) | {odd: layer()}, (0.5,))


def test_a_pipeline_rank_without_a_chosen_layer_captures_none():
    first = dict(list(decoder(10).items())[:4])
    assert layers_of(model(10, ranks=2), first, (0.5,)) == {}
    assert layers_of(model(10, ranks=2), first, (0.1, 0.5)) == {"model.layers.1.self_attn.attn": 1}

from types import SimpleNamespace

import pytest

from pdd_core.errors import UnsupportedDeployment
from pdd_vllm_plugin.capture.layers import CaptureLayer, refuse_unsupported
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

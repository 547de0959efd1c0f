from types import SimpleNamespace

import pytest

from pdd_vllm_plugin.kv.unsupported import why_unsupported


def config(*, cache="auto", parallel=None, **model):
    return SimpleNamespace(
        model_config=SimpleNamespace(**model),
        cache_config=SimpleNamespace(cache_dtype=cache),
        parallel_config=SimpleNamespace(**parallel or {}),
    )


@pytest.mark.parametrize("cache", ["auto", "float32", "bfloat16", "float16"])
def test_a_plain_model_is_fine(cache):
    assert why_unsupported(config(cache=cache, use_mla=False, uses_mrope=False)) is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"use_mla": True}, "latent attention"),
        ({"is_hybrid": True}, "layers that are not attention"),
        ({"has_inner_state": True}, "recurrent state"),
        ({"is_attention_free": True}, "no attention"),
        ({"is_encoder_decoder": True}, "encoder"),
        ({"uses_mrope": True}, "M-RoPE"),
        ({"uses_alibi": True}, "ALiBi"),
        ({"cache": "fp8_e4m3"}, "--kv-cache-dtype fp8_e4m3 is not supported: set it to auto"),
        ({"parallel": {"decode_context_parallel_size": 2}}, "--decode-context-parallel-size above 1"),
        ({"parallel": {"prefill_context_parallel_size": 2}}, "--prefill-context-parallel-size above 1"),
    ],
)
def test_what_cannot_be_handed_over_is_named(given, why):
    assert why in why_unsupported(config(**given))

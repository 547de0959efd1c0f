"""llama.cpp's own attention weights against transformers' eager ones, on the same weights."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from gguf_files import Model, spm

from pdd_core.errors import ContextOverflow, DeviceEngineFailed, ModelError
from pdd_core.refinement.scores import prompt_scores
from pdd_llamacpp_adapter.engine import prompt_attention as module
from pdd_llamacpp_adapter.engine.prompt_attention import AttentionContext, n_ctx_train

WINDOW = 32
LARGEST_DIFFERENCE = 2e-2
"""Of one weight: the device's file and its keys are float16, the reference is float32. Seen: 7e-3, of 0.1."""
LARGEST_SCORE_DIFFERENCE = 5e-4
"""Of a mean over 16 queries and four layers. Seen: 1e-4."""


@pytest.fixture(scope="module")
def context(gguf):
    context = AttentionContext(gguf, n_ctx=1024, n_threads=1)
    yield context
    context.close()


@pytest.fixture(scope="module")
def ids(loaded):
    return loaded.vocab.tokenize("The quick brown fox jumps over 13 lazy dogs. " * 10 + "Nobody saw it. " * 30)[
        :200
    ]


@pytest.fixture(scope="module")
def reference(ids):
    """Of the same weights in float32, all layers: (layers, heads, window, tokens)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from pdd_cli.demo_model import prepare

    model = transformers.AutoModelForCausalLM.from_pretrained(
        prepare().vllm_dir, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        layers = model.model(torch.tensor([ids]), output_attentions=True).attentions
    return np.stack([layer[0, :, -WINDOW:].numpy() for layer in layers])


def test_weights_equal_those_of_transformers(context, ids, reference):
    found = context.attention(ids, window=WINDOW)
    assert list(found) == list(range(context.n_layer)) == list(range(len(reference)))
    for layer, weights in found.items():
        assert weights.shape == reference[layer].shape
        assert np.abs(weights - reference[layer]).max() < LARGEST_DIFFERENCE


@pytest.mark.parametrize("heads", ["max", "mean"])
def test_scores_equal_those_of_transformers(context, ids, reference, heads):
    layers = (12, 14, 16, 18)
    found = prompt_scores(context.attention(ids, window=WINDOW, layers=layers), heads=heads, window=16)
    expected = prompt_scores({layer: reference[layer] for layer in layers}, heads=heads, window=16)
    assert found.layers == expected.layers == layers
    assert found.window == 16
    np.testing.assert_allclose(found.values, expected.values, atol=LARGEST_SCORE_DIFFERENCE)
    best = [set(np.argsort(-scores.over_layers())[: len(ids) // 5].tolist()) for scores in (found, expected)]
    assert len(best[0] & best[1]) >= 0.95 * len(best[0])


def test_each_row_sums_to_one_and_looks_at_nothing_ahead(context, ids):
    weights = context.attention(ids, window=WINDOW, layers=[7])[7]
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    for query in range(WINDOW):
        assert not weights[:, query, len(ids) - WINDOW + query + 1 :].any()


def test_what_was_read_before_does_not_matter(context, ids):
    cold = context.attention(ids, window=WINDOW, layers=[14])[14]
    context.attention(ids[50:], window=8, layers=[3])
    context.sequences[0].rewind(20)
    assert np.array_equal(context.attention(ids, window=WINDOW, layers=[14])[14], cold)


def test_a_prompt_shorter_than_the_window_is_looked_at_whole(context, ids):
    weights = context.attention(ids[:5], window=WINDOW, layers=[14])[14]
    assert weights.shape[1:] == (5, 5)
    assert prompt_scores({14: weights}, heads="max").window == 5


def test_logits_are_those_of_a_plain_context(context, ids, engine):
    context.attention(ids, window=WINDOW, layers=[14])
    logits = context.logits_at(WINDOW - 1).copy()
    context.sequences[0].rewind(0)
    plain = context.sequences[0].decode(ids, want_logits=True)
    np.testing.assert_allclose(logits, plain, atol=0.1)


def test_a_prompt_that_does_not_fit_is_refused(context, ids):
    with pytest.raises(ContextOverflow):
        context.attention(ids * 10, window=WINDOW)


def test_a_model_without_such_weights_is_refused(context, ids, monkeypatch):
    monkeypatch.setattr(module, "NODE", "no_such_node-")
    with pytest.raises(ModelError, match=r"no attention weights in layer 0 \(30 of 30"):
        context.attention(ids, window=WINDOW)


def test_weights_in_an_unknown_order_are_refused(context, ids, monkeypatch):
    read = module._read
    monkeypatch.setattr(module, "_read", lambda tensor: np.roll(read(tensor), 1, axis=-1))
    with pytest.raises(DeviceEngineFailed, match="not in the order of the prompt"):
        context.attention(ids, window=WINDOW, layers=[14])


def test_what_fails_while_llama_computes_is_raised(context, ids, monkeypatch):
    def fail(tensor):
        raise OSError("broken")

    monkeypatch.setattr(module, "_read", fail)
    with pytest.raises(DeviceEngineFailed, match="broken"):
        context.attention(ids, window=WINDOW, layers=[14])


def test_every_layer_of_a_plain_model_is_full(context, ids):
    assert context.full_layers() == tuple(range(context.n_layer))
    assert context.attention(ids, window=WINDOW, layers=[7])[7].shape[-1] == len(ids), "it can be asked afterwards"


@pytest.mark.parametrize(
    ("arch", "layers", "metadata", "full"),
    [
        ("gemma3", 18, {}, (5, 11, 17)),
        ("gemma3", 12, {".attention.sliding_window_pattern": 3}, (2, 5, 8, 11)),
        ("gemma3", 18, {".attention.shared_kv_layers": 7}, (5,)),
        ("llama", 4, {}, (0, 1, 2, 3)),
    ],
)
def test_layers_with_a_sliding_window_are_not_full(tmp_path, arch, layers, metadata, full):
    file = tmp_path / "m.gguf"
    Model(vocabulary=spm(), arch=arch, layers=layers, metadata=metadata).write(file)
    context = AttentionContext(file, n_ctx=64, n_threads=1)
    try:
        assert context.full_layers() == full
        assert context.attention([5, 6, 7], window=2, layers=[full[0]])[full[0]].shape == (4, 2, 3)
    finally:
        context.close()


def test_the_model_says_what_it_was_trained_for(context):
    assert n_ctx_train(context) == 8192


@pytest.mark.parametrize("splits", [(), (128,), (2, 4, 7, 100), (64, 128), (197,)])
def test_batches_of_any_size_but_one_give_the_same_bits(context, ids, splits):
    """What an evaluation's reuse of common beginnings stands on."""

    def last(ends):
        context.sequences[0].rewind(0)
        for start, end in pairwise((0, *ends, len(ids))):
            context.sequences[0].decode(ids[start:end], want_logits=False, outputs=[end - start - 1])
        return context.logits_at(len(ids) - ends[-1] - 1 if ends else len(ids) - 1).copy()

    assert np.array_equal(last(splits), last((99,)))


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (0, 2), (5, 134), (5, 135), (0, 385), (7, 7), (0, 1000)])
def test_chunks_are_all_tokens_and_none_is_alone(begin, end):
    found = list(module.chunks(begin, end))
    assert [position for start, stop in found for position in range(start, stop)] == list(range(begin, end))
    assert all(stop - start > 1 for start, stop in found) or end - begin == 1
    assert all(stop - start <= module.CHUNK + 1 for start, stop in found)

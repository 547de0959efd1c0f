"""What becomes of a window that passes in parts, some of them unseen. No server: the scorer and torch alone."""

import logging
import time
from types import SimpleNamespace

import pytest
import torch

from pdd_vllm_plugin.capture import window_attention as attention
from pdd_vllm_plugin.capture.capture_layer import CaptureLayer
from pdd_vllm_plugin.capture.layers import capture_layers
from pdd_vllm_plugin.capture.layout import CacheLayout, probe_layout
from pdd_vllm_plugin.capture.score_store import KEEP_S, ScoreStore
from pdd_vllm_plugin.capture.window_scorer import WindowScorer
from pdd_vllm_plugin.capture.windows import WindowChunk

BLOCK, HEADS, SIZE = 32, 2, 4
PROMPT, WINDOW = 40, 16
ID = "h" * 32


def layout():
    elements = BLOCK * HEADS * SIZE
    return CacheLayout(BLOCK, (BLOCK, HEADS, SIZE), 2 * elements, torch.arange(elements), (HEADS * SIZE, SIZE, 1), 0)


@pytest.fixture
def cache():
    return torch.randn(8, 2 * BLOCK * HEADS * SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def scorer():
    return made()


def made(*, strict=False, clock=time.monotonic):
    layers = {"L": CaptureLayer(3, layout(), 0, BLOCK)}
    return WindowScorer(layers, window=WINDOW, heads="max", score_store=ScoreStore(8, clock), strict=strict)


def step(scorer, start, end, *, cache=None, name="a", handoff=ID):
    """Run the prompt's tokens from `start` to `end`; they are seen where there is a `cache`."""
    first = max(start, PROMPT - WINDOW)
    chunk = WindowChunk(name, handoff, PROMPT, start, end - start, first, end, ((1, 2),))
    scorer.begin_step((chunk,))
    if cache is not None:
        metadata = SimpleNamespace(
            query_start_loc=torch.tensor([0, end - start]), seq_lens=torch.tensor([end]),
            block_table=torch.tensor([[1, 2]]),
        )  # fmt: skip
        query = torch.randn(end - start, 4, SIZE, generator=torch.Generator().manual_seed(end))
        impl = SimpleNamespace(head_size=SIZE, scale=1.0)
        scorer.on_layer(SimpleNamespace(layer_name="L"), impl, query, cache, metadata)
    scorer.end_step()


def test_a_window_in_two_seen_parts_is_whole(scorer, cache):
    step(scorer, 0, 30, cache=cache)
    step(scorer, 30, PROMPT, cache=cache)
    assert scorer.score_store.take(ID)["window"] == WINDOW
    assert (scorer.scored, scorer.missed) == (1, 0)


def test_a_window_whose_first_part_passed_unseen_gives_no_scores(scorer, cache):
    step(scorer, 0, 30)
    step(scorer, 30, PROMPT, cache=cache)
    assert "10 of the prompt's last 16 tokens" in scorer.score_store.take(ID)["missed"]
    assert (scorer.scored, scorer.missed) == (0, 1)


def test_a_window_that_was_computed_elsewhere_gives_no_scores(scorer, cache):
    """A KV connector, or the prefill server of a pair, leaves one token to compute."""
    step(scorer, PROMPT - 1, PROMPT, cache=cache)
    assert "1 of the prompt's last 16 tokens" in scorer.score_store.take(ID)["missed"]
    assert (scorer.scored, scorer.missed) == (0, 1)


def test_a_part_that_passed_unseen_is_made_up_for_when_the_prompt_is_computed_anew(scorer, cache):
    step(scorer, 0, 30)
    step(scorer, 0, PROMPT, cache=cache)
    assert scorer.score_store.take(ID)["window"] == WINDOW
    assert (scorer.scored, scorer.missed) == (1, 0)


def test_what_passed_unseen_is_told_of_once(scorer, caplog):
    for name in "ab":
        step(scorer, 20, PROMPT, name=name)
        assert "0 of 1 layers" in scorer.score_store.take(ID)["missed"]
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING]
    assert scorer.counts() == {"scored": 0, "missed": 2, "stored": 0, "partial": 0}


def test_strict_tells_of_each_and_ends_nothing(cache, caplog):
    """An exception in a step would end the engine, and with it everybody's requests."""
    scorer = made(strict=True)
    step(scorer, 20, PROMPT)
    step(scorer, PROMPT - 1, PROMPT, cache=cache)
    assert [entry.levelno for entry in caplog.records] == [logging.ERROR] * 2
    step(scorer, 0, PROMPT, cache=cache)
    assert scorer.score_store.take(ID)["window"] == WINDOW


def test_scores_begin_to_age_when_their_request_has_ended(cache, monkeypatch):
    now = [0.0]
    scorer = made(clock=lambda: now[0])
    step(scorer, 0, PROMPT, cache=cache)
    now[0] = 2 * KEEP_S
    step(scorer, 20, PROMPT, name="b", handoff="i" * 32)
    scorer.forget({"a", "plain"})
    now[0] += KEEP_S
    scorer.forget({"b"})
    assert scorer.score_store.take(ID)["window"] == WINDOW
    now[0] += KEEP_S + 1
    step(scorer, 0, PROMPT, cache=cache)
    assert scorer.score_store.take("i" * 32) is None


class Quantised:
    num_kv_heads, head_size = HEADS, SIZE

    def do_kv_cache_update(self, layer, keys, values, cache, slots):
        cache.zero_()


def test_a_cache_that_does_not_give_keys_back_is_refused():
    from pdd_core.errors import UnsupportedDeployment

    with pytest.raises(
        UnsupportedDeployment, match=r"KV cache of Quantised .* additional_config\.pdd\.refine off"
    ):
        probe_layout(None, Quantised(), torch.zeros(3, 2, HEADS, BLOCK, SIZE))


@pytest.mark.parametrize("heads", ["max", "mean"])
def test_a_long_prompts_scores_are_made_head_by_head(monkeypatch, heads):
    drawn = torch.Generator().manual_seed(0)
    queries = torch.randn(3, 8, SIZE, generator=drawn)
    keys = torch.randn(PROMPT, 4, SIZE, generator=drawn)
    whole = attention.window_attention(queries, keys, first=PROMPT - 3, scale=0.5, heads=heads)
    for most in (1, 2 * PROMPT * 2 * 3):  # one KV head at a time, and two: a head's logits are more than its keys
        monkeypatch.setattr(attention, "_MOST_ELEMENTS", most)
        parts = attention.window_attention(queries, keys, first=PROMPT - 3, scale=0.5, heads=heads)
        torch.testing.assert_close(parts, whole)


class Plain:
    num_kv_heads, head_size = HEADS, SIZE

    def do_kv_cache_update(self, layer, keys, values, cache, slots):
        cache[0, 0, :, slots] = keys.transpose(0, 1)


def test_each_layer_is_read_as_its_own_group_has_it():
    kv_cache = torch.zeros(3, 2, HEADS, BLOCK, SIZE)
    attention_layers = {name: SimpleNamespace(impl=Plain(), kv_cache=kv_cache) for name in ("a", "b")}
    groups = [
        SimpleNamespace(layer_names=[name], kv_cache_spec=SimpleNamespace(block_size=size))
        for name, size in (("b", BLOCK), ("a", 2 * BLOCK))
    ]
    found = capture_layers({"a": 3, "b": 5}, attention_layers, groups)
    assert [(one.index, one.group, one.block_size) for one in found.values()] == [(3, 1, 2 * BLOCK), (5, 0, BLOCK)]
    assert found["a"].layout is found["b"].layout
    keys = torch.arange(BLOCK * HEADS * SIZE, dtype=torch.float32).view(BLOCK, HEADS, SIZE)
    Plain().do_kv_cache_update(None, keys, None, kv_cache[1:], torch.arange(BLOCK))
    assert torch.equal(found["a"].layout.rows(kv_cache, torch.tensor([1]), BLOCK - 2), keys[:-2])

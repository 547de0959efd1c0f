"""A server's shelf has the model's own cells: those that transformers computes, packed."""

import numpy as np
import pytest
from cloud_support import complete, state_of, wait_until

from pdd_core.kv.geometry import KVGeometry
from pdd_core.kv.pieces import packed_part, pieces_between
from pdd_vllm_plugin.kv.shelf_file import CELLS, NONE, ShelfFile
from pdd_vllm_plugin.processes.folder import default_base

GEOMETRY = KVGeometry(
    num_layers=30, num_kv_heads=3, head_size=64, key_type="q8_0", value_type="q4_0", key_rotation=64,
    value_rotation=64, rope={"theta": 1e5, "rotary_dim": 64}, parts=[{"layers": (0, 30), "heads": (0, 3)}],
)  # fmt: skip
PROMPT = "".join(
    f"Line {number}: the {number * 7} boats of the harbour carry {number} lamps.\n" for number in range(40)
)


def shelves_with(handoff_id, suffix=CELLS):
    files = (ShelfFile(folder, handoff_id) for folder in default_base().glob("pdd-*-kv-*"))
    return [file for file in files if file.path(suffix).exists()]


@pytest.fixture(scope="module")
def reference(prepared):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(prepared.vllm_dir, dtype="float32", attn_implementation="eager")


def expected(reference, ids):
    """Keys and values of a prompt less its last token, float32 of shape (layers, tokens, heads, head size)."""
    import torch

    with torch.no_grad():
        past = reference(torch.tensor([ids]), use_cache=True).past_key_values
    return [
        np.stack([getattr(layer, side)[0].transpose(0, 1)[:-1].numpy() for layer in past.layers])
        for side in ("keys", "values")
    ]


def test_a_prompt_that_is_computed_and_one_that_is_cached(client, reference):
    """Twice the same prompt: the second time most of it comes out of the prefix cache."""
    for _ in range(2):
        done = complete(client, prompt=PROMPT, budget=4, max_tokens=4, xargs={"pdd_kv": 1})
        [file] = wait_until(lambda: shelves_with(done.handoff_id))  # noqa: B023
        ids = state_of(client, done.handoff_id)["prompt_token_ids"]
        keys, values = expected(reference, ids)
        with file.open(GEOMETRY, 0) as cells:
            assert cells.tokens == len(ids) - 1 > 256
            for piece in pieces_between(0, cells.tokens):
                at = slice(piece.start, piece.end)
                wanted = np.frombuffer(packed_part(keys[:, at], values[:, at], GEOMETRY), dtype=np.uint8)
                got = np.frombuffer(cells.frame(piece)[1], dtype=np.uint8)
                # two computations in float32 seldom round to different sides
                assert (wanted != got).mean() < 0.01


def test_a_prompt_of_one_token_has_none(client):
    """And no worker is asked for any, so that nothing comes before the cells of a later request."""
    one = complete(client, prompt=[1], budget=2, max_tokens=2, xargs={"pdd_kv": 1})
    assert state_of(client, one.handoff_id)["kv"]["reason"] == "not_captured"
    asked = complete(client, prompt=PROMPT[:200], budget=4, max_tokens=4, xargs={"pdd_kv": 1})
    wait_until(lambda: shelves_with(asked.handoff_id))
    assert shelves_with(one.handoff_id, NONE) == shelves_with(one.handoff_id) == []


def test_who_does_not_ask_leaves_nothing(client):
    done = complete(client, prompt=PROMPT, budget=4, max_tokens=4)
    asked = complete(client, prompt=PROMPT[:200], budget=4, max_tokens=4, xargs={"pdd_kv": 1})
    wait_until(lambda: shelves_with(asked.handoff_id))
    assert shelves_with(done.handoff_id) == []

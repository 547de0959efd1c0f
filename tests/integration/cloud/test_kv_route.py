"""The prompt's KV cache over HTTP: all of it, from the back to the front, resumable, and gone with its state."""

from uuid import uuid4

import httpx
import numpy as np
import pytest
from cloud_support import KEY, complete

from pdd_core.handoff import KV_HANDOVER, CloudInfo, HandoffState, KVCells, NoKV
from pdd_core.kv.frames import END, MEDIA_TYPE, FrameReader
from pdd_core.kv.geometry import KVGeometry
from pdd_core.kv.pieces import unpacked_part

HEADERS = {"authorization": f"Bearer {KEY}"}
PROMPT = " ".join(f"Room {n} of the museum shows things of the year {1700 + 7 * n}." for n in range(30))


@pytest.fixture
def http(cloud):
    with httpx.Client(base_url=cloud.base_url, headers=HEADERS, timeout=120) as client:
        yield client


@pytest.fixture
def geometry(http):
    info = CloudInfo.model_validate_json(http.get("/pdd/info").content)
    assert KV_HANDOVER in info.features
    assert isinstance(info.kv, KVGeometry), info.kv
    return info.kv


@pytest.fixture
def handoff(client):
    """Of a request that has ended; its cells may still be on their way to the shelf."""
    return complete(client, budget=2, prompt=PROMPT, xargs={"pdd_kv": 1}).handoff_id


def state_of(http, handoff):
    return HandoffState.model_validate_json(http.get(f"/pdd/handoffs/{handoff}").content)


def cells(http, handoff, **span):
    return http.get(f"/pdd/handoffs/{handoff}/kv", params=span)


def test_the_server_says_what_its_cells_look_like(geometry):
    """SmolLM2-135M."""
    assert (geometry.num_layers, geometry.num_kv_heads, geometry.head_size) == (30, 3, 64)
    assert (geometry.key_type, geometry.value_type) == ("q8_0", "q4_0")
    assert (geometry.rope.theta, geometry.rope.rotary_dim) == (100_000.0, 64)


def test_all_cells_of_a_prompt_are_streamed(http, geometry, handoff):
    state = state_of(http, handoff)
    assert state.kv == KVCells(tokens=len(state.prompt_token_ids) - 1)
    answer = cells(http, handoff)
    assert (answer.status_code, answer.headers["content-type"]) == (200, MEDIA_TYPE)
    reader, got = FrameReader(geometry, 0, state.kv.tokens), []
    for frame in reader.feed(answer.content):
        if frame.last:
            break
        got += range(frame.start, frame.start + frame.tokens)
        for side in unpacked_part(frame.payload, frame.tokens, frame.part, geometry):
            assert side.shape == (30, frame.tokens, 3, 64)
            # no position and no layer was left out
            assert np.abs(side).max(axis=(2, 3)).min() > 0
    assert reader.ended
    assert sorted(got) == list(range(state.kv.tokens))


def test_a_stream_that_is_cut_goes_on_with_the_same_bytes(http, geometry, handoff):
    whole, taken = cells(http, handoff).content, b""
    reader = FrameReader(geometry, 0, state_of(http, handoff).kv.tokens)
    with http.stream("GET", f"/pdd/handoffs/{handoff}/kv") as stream:
        for chunk in stream.iter_bytes(1000):
            taken += chunk
            if frames := list(reader.feed(chunk)):
                break  # and leave in the middle of the next piece
    start = frames[-1].start
    rest = cells(http, handoff, to=start).content
    assert whole.endswith(rest)
    assert whole.startswith(taken[: len(whole) - len(rest)])
    front = cells(http, handoff, **{"from": 5, "to": 200}).content
    assert sum(frame.tokens for frame in FrameReader(geometry, 5, 200).feed(front)) == 195


def test_a_post_and_a_request_from_the_prefix_cache_give_the_same_cells(client, http, handoff):
    again = complete(client, budget=1, prompt=PROMPT, xargs={"pdd_kv": 1}).handoff_id
    question = {"model": "smollm2", "prompt": "", "vllm_xargs": {"pdd_cells": again, "pdd_to": 300}}
    asked = http.post("/completions", json=question)
    assert asked.headers["content-type"] == MEDIA_TYPE
    assert asked.content == cells(http, handoff, to=300).content
    assert asked.content.endswith(END)


def test_they_can_be_asked_for_before_they_are_there(client, http):
    handoff, got = uuid4().hex, []
    prompt = f"{handoff} {PROMPT}"  # in no cache
    complete(
        client, budget=8, handoff_id=handoff, prompt=prompt, xargs={"pdd_kv": 1},
        on_chunk=lambda streamed: got or got.append(cells(http, streamed.handoff_id)),
    )  # fmt: skip
    assert got[0].status_code == 200
    assert got[0].content.endswith(END)


def test_a_delete_drops_them(client, http, handoff):
    assert cells(http, handoff).status_code == 200
    assert http.delete(f"/pdd/handoffs/{handoff}").status_code == 200
    assert cells(http, handoff).status_code == 404


def test_who_did_not_ask_has_none(client, http):
    handoff = complete(client, budget=2, prompt=PROMPT).handoff_id
    assert state_of(http, handoff).kv.reason == "not_requested"
    answer = cells(http, handoff)
    assert answer.status_code == 409
    assert NoKV.model_validate(answer.json()["kv"]).reason == "not_requested"


def test_positions_that_are_not_there_are_refused(http, handoff):
    assert cells(http, handoff, to=10**6).status_code == 400
    assert cells(http, handoff, **{"from": -1}).status_code == 400


def test_what_was_sent_is_counted(cloud, http, handoff):
    sent = len(cells(http, handoff).content)
    text = http.get(cloud.base_url.replace("/v1", "/metrics")).text
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("pdd_kv_"))
    assert float(counts["pdd_kv_sent_bytes_total"]) >= sent
    assert float(counts['pdd_kv_streams_total{outcome="sent"}']) >= 1

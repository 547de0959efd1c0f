"""Whatever an answer does, its stream tells it in order, once, and to the end."""

import json

import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pdd_core.errors import CloudLost, DeviceEngineFailed
from pdd_llamacpp_adapter.server.answers.http_limits import HttpLimits
from pdd_llamacpp_adapter.server.answers.service import Service
from pdd_llamacpp_adapter.server.app import create_app

ASK = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
KEEP_ALIVE = 0.003
STEPS = st.text(max_size=3).filter(lambda text: "<" not in text) | st.sampled_from([0, KEEP_ALIVE * 2])
ENDS = st.sampled_from([None, CloudLost, DeviceEngineFailed, ZeroDivisionError])


@pytest.fixture(scope="module")
def service(fake_runtime):
    return Service(HttpLimits(keep_alive=KEEP_ALIVE, stored_answers=1), fake_runtime())


@pytest.fixture(scope="module")
def http(service):
    with TestClient(create_app(service)) as client:
        yield client


def payloads(text):
    """What an event stream says, its comments left out; refuses what is no event stream."""
    *blocks, rest = text.split("\n\n")
    assert rest == ""
    assert all(block == ": keep-alive" or block.startswith("data: ") for block in blocks)
    return [block[6:] for block in blocks if block.startswith("data: ")]


@examples(120)
@given(steps=st.lists(STEPS, max_size=6), end=ENDS, tail=st.sampled_from(["", "T"]), usage=st.booleans())
def test_a_stream_tells_all_of_an_answer_in_order(service, http, steps, end, tail, usage):
    service.runtime.script = [*steps, *([] if end is None else [end("why")])]
    service.runtime.options = {"withheld": tail}
    said = "".join(step for step in steps if isinstance(step, str))
    response = http.post("/v1/chat/completions", json={**ASK, "stream_options": {"include_usage": usage}})
    if response.status_code != 200:
        assert end is not None
        assert not any(isinstance(step, str) for step in steps)
        assert response.json()["error"]["message"]
        return
    *chunks, done = payloads(response.text)
    assert done == "[DONE]"
    role, *rest = [json.loads(chunk) for chunk in chunks]
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    if end is not None:
        *rest, failure = rest
        assert failure["error"]["code"] in ("cloud_unavailable", "device_unavailable", "internal_error")
    else:
        if usage:
            *rest, last = rest
            assert (last["choices"], last["usage"]["completion_tokens"]) == (
                [],
                sum(isinstance(step, str) for step in steps),
            )
        *rest, finish = rest
        assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "stop")
        assert finish["pdd"]["finish_reason"] == "stop"
        said += tail
    told = "".join(chunk["choices"][0]["delta"]["content"] for chunk in rest)
    assert told == said
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in rest)
    # and what is stored is what was streamed
    stored = http.get(f"/v1/chat/completions/{role['id']}").json()
    assert stored["choices"][0]["message"]["content"] == told
    assert stored["pdd"]["status"] == ("finished" if end is None else "failed")
    assert (service.queue.running, service.queue.waiting) == (0, 0)

"""The bytes of the local server's HTTP, as curl would show them."""

import json
import threading
from importlib.metadata import version

import httpx2
import pytest
from cloud_support import wait_until
from device_server import DeviceServer

CHAT = {
    "messages": [{"role": "user", "content": "Name three colours."}],
    "temperature": 0,
    "max_tokens": 5,
    "stream": True,
}


@pytest.fixture
def http(device):
    with device.http() as client:
        yield client


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A server with room for long answers, and what its /health said from the beginning."""
    seen = []
    with DeviceServer(tmp_path_factory.mktemp("fresh"), "--gguf", "demo") as server:
        server.started()
        wait_until(lambda: seen.append(server.get("/health")) or seen[-1].status_code == 200, seconds=120)
        yield server, seen


def events_of(body):
    """Split a stream's bytes to the letter: every event is one `data:` line and an empty one."""
    assert body.endswith(b"\n\n")
    lines = body[:-2].split(b"\n\n")
    assert all(line.startswith(b"data: ") and b"\n" not in line for line in lines), body
    return [line[len(b"data: ") :] for line in lines]


def test_a_streamed_chat_is_in_openais_order_to_the_letter(http):
    answer = http.post("/v1/chat/completions", json={**CHAT, "stream_options": {"include_usage": True}})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-pdd"] == "mode=device_only"
    *data, done = events_of(answer.content)
    assert done == b"[DONE]"
    first, *middle, finish, usage = [json.loads(text) for text in data]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"].keys() for chunk in middle] == [{"content"}] * len(middle)
    assert all(chunk["choices"][0]["delta"]["content"] for chunk in middle)
    assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "length")
    assert finish["pdd"]["tokens"]["device"] == 5
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    chunks = [first, *middle, finish, usage]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in [first, *middle]] == [None] * (1 + len(middle))
    assert [chunk["usage"] for chunk in [first, *middle, finish]] == [None] * (2 + len(middle))


def test_without_include_usage_no_chunk_has_a_usage(http):
    answer = http.post("/v1/chat/completions", json=CHAT)
    *data, done = events_of(answer.content)
    assert done == b"[DONE]"
    assert not any("usage" in json.loads(text) for text in data)
    assert json.loads(data[-1])["choices"][0]["finish_reason"] == "length"


def test_tokens_are_sent_while_they_are_made(device, http):
    with http.stream(
        "POST", "/v1/chat/completions", json={**CHAT, "max_tokens": 900, "ignore_eos": True}
    ) as answer:
        parts = answer.iter_raw()
        heard = [next(parts) for _ in range(6)]
        assert device.metric("pdd_device_running") == 1, "the answer is not complete"
    assert b"finish_reason" in heard[-1]
    device.wait_idle()


def test_a_request_id_comes_back_and_one_is_made_where_there_is_none(http):
    for path, method in (
        ("/version", "GET"),
        ("/v1/models", "GET"),
        ("/nothing", "GET"),
        ("/v1/responses", "POST"),
    ):
        answer = http.request(method, path, headers={"x-request-id": "mine-17"})
        assert answer.headers["x-request-id"] == "mine-17"
    made = [http.get("/version").headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2
    assert all(made)


def test_the_log_has_the_request_id_and_no_text(device, http):
    secret = "xylophone"
    messages = [{"role": "user", "content": f"Say {secret}."}]
    http.post("/v1/chat/completions", json={**CHAT, "messages": messages}, headers={"x-request-id": "logged-1"})
    wait_until(lambda: "logged-1" in device.log())
    line = next(line for line in device.log().splitlines() if "logged-1" in line)
    assert '"device":5' in line
    assert secret not in device.log()


def test_a_connection_serves_many_requests(device):
    with device.http() as client:
        with client.stream("GET", "/version") as first:
            first.read()
            ours = first.extensions["network_stream"].get_extra_info("client_addr")
        for path in ("/v1/models", "/health", "/nothing"):
            with client.stream("GET", path) as answer:
                answer.read()
                assert answer.extensions["network_stream"].get_extra_info("client_addr") == ours
        with client.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
            answer.read()
            assert answer.extensions["network_stream"].get_extra_info("client_addr") == ours


def test_a_stream_that_waits_for_its_turn_is_kept_alive(fresh):
    """The device makes one answer at a time: the second has nothing to say for longer than a keep-alive takes."""
    server, _ = fresh
    long = {**CHAT, "max_tokens": 4000, "ignore_eos": True}
    with server.http() as http, http.stream("POST", "/v1/chat/completions", json=long) as first:
        assert first.status_code == 200
        with http.stream("POST", "/v1/chat/completions", json=CHAT) as second:
            assert second.status_code == 200
            parts = second.iter_raw()
            heard = b""
            while b": keep-alive\n\n" not in heard:
                heard += next(parts)
            first.close()
            heard += b"".join(parts)
    comments = heard.count(b": keep-alive\n\n")
    events = events_of(heard.replace(b": keep-alive\n\n", b""))
    assert comments >= 1
    assert json.loads(events[0])["choices"][0]["delta"]["role"] == "assistant"
    assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    assert events[-1] == b"[DONE]"


def test_metrics_count_what_was_answered(device, http):
    def counts():
        return (
            device.metric("pdd_device_requests_total", route="/v1/chat/completions", status="200"),
            device.metric("pdd_device_answers_total", finish_reason="length"),
            device.metric("pdd_device_tokens_total", source="device"),
            device.metric("pdd_device_time_to_first_token_seconds_count"),
            device.metric("pdd_device_token_gap_seconds_count"),
        )

    before = counts()
    http.post("/v1/chat/completions", json=CHAT)
    wait_until(lambda: counts()[0] > before[0])
    assert [after - was for after, was in zip(counts(), before, strict=True)] == [1, 1, 5, 1, 4]
    assert http.get("/metrics").headers["content-type"].startswith("text/plain")


def test_version_and_models(http):
    assert http.get("/version").json() == {"version": version("pdd-device")}
    [model] = http.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("smollm2", "model")
    assert model["pdd"]["cloud"]["state"] == "none"
    assert http.get("/v1/models/smollm2").json() == model


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("GET", "/nothing", b"", 404, "not_found"),
        ("GET", "/v1/chat/completions", b"", 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", b"{", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"[]", 400, None),
        ("POST", "/v1/chat/completions", b"{}", 400, "missing_required_parameter"),
        ("POST", "/v1/completions", b'{"prompt": "x", "max_tokens": "many"}', 400, None),
        ("POST", "/v1/chat/completions", b" " * (8 * 2**20 + 1), 413, "request_too_large"),
    ],
)
def test_every_refusal_is_openais_error_object(http, method, path, content, status, code):
    answer = http.request(method, path, content=content)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert error["code"] == code
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    assert {"message", "type", "param", "code"} <= error.keys()


def test_without_the_key_only_what_is_open_answers(device):
    for path, status in (("/health", 200), ("/version", 200), ("/v1/models", 401), ("/metrics", 401)):
        answer = httpx2.get(device.root + path)
        assert answer.status_code == status, path
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_while_the_model_loads_the_port_says_so_in_llama_cpps_words(fresh):
    server, seen = fresh
    *loading, ready = seen
    assert loading
    assert {answer.status_code for answer in loading} == {503}
    assert loading[0].json() == {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    assert ready.json() == {"status": "ok"}
    assert "Ready: model smollm2" in wait_until(lambda: "Ready" in server.printed() and server.printed())


def test_a_crowd_is_served_in_turn(device):
    """Sixteen at once, as many as the server takes."""
    answers = []

    def ask(number):
        body = {**CHAT, "stream": bool(number % 2), "seed": number}
        answers.append(
            httpx2.post(f"{device.url}/chat/completions", json=body, headers=device.headers, timeout=200)
        )

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert [answer.status_code for answer in answers] == [200] * 16
    device.wait_idle()

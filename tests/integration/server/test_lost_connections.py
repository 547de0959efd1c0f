"""A client whose network breaks in the middle of an answer comes back, and gets the rest once."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import openai
import pytest
from cloud_support import wait_until
from device_server import DeviceServer, closed_port, forwarded
from readme import blocks

PAGE = Path(__file__).parents[3] / "docs" / "server.md"
QUESTION = "Tell me a long story about a lighthouse."
COMMON = {"temperature": 0, "stream": True}
BODIES = {
    "/v1/chat/completions": {
        **COMMON,
        "messages": [{"role": "user", "content": QUESTION}],
        "stream_options": {"include_usage": True},
        "max_tokens": 40,
        "ignore_eos": True,
    },
    "/v1/completions": {**COMMON, "prompt": QUESTION, "max_tokens": 40, "ignore_eos": True},
    "/v1/responses": {**COMMON, "input": QUESTION, "max_output_tokens": 40},
}


def port_of(server):
    return int(server.root.rsplit(":", 1)[1])


def named(name):
    return {"X-Conversation-Id": name}


def until_cut(http, forwarder, path, body, name, events):
    """Ask, and cut the connection once there are so many events; returns the bytes that came."""
    heard = b""
    broken = pytest.raises(httpx2.TransportError)
    with broken, http.stream("POST", path, json=body, headers=named(name)) as answer:
        for data in answer.iter_raw():
            heard += data
            if heard.count(b"\n\n") >= events:
                forwarder.close()
    assert heard.count(b"\n\n") >= events
    return heard


@pytest.mark.parametrize("path", BODIES)
def test_a_client_whose_connection_breaks_gets_the_rest_once(device, path):
    name = path.replace("/", "_")
    with device.http() as http:
        http.post(
            path, json=BODIES[path]
        )  # of a prompt that it has read, the device makes the same answer each time
    answers = device.metric("pdd_device_answers_total")
    with forwarded(closed_port(), port_of(device)) as forwarder, device.http() as direct:
        forwarder.open()
        with httpx2.Client(base_url=f"http://127.0.0.1:{forwarder.port}", headers=device.headers) as http:
            heard = until_cut(http, forwarder, path, BODIES[path], name, 8)
        rest = direct.get(f"/v1/stream/{name}", params={"from": len(heard)}).content
        whole = direct.get(f"/v1/stream/{name}").content
        [told] = direct.get("/v1/streams", params={"conversation_id": name}).json()
        # and it is the answer of a client that stays
        stayed = direct.post(path, json=BODIES[path]).content
    assert heard + rest == whole
    assert rest
    assert (told["is_done"], told["total_bytes"]) == (True, len(whole))
    assert texts(whole) == texts(stayed) != ""
    assert device.metric("pdd_device_answers_total") == answers + 2


def texts(body):
    """The words that a stream brings."""
    said = []
    for line in body.decode().splitlines():
        if line.startswith("data: {"):
            data = json.loads(line[6:])
            if "choices" in data:
                said += [
                    choice.get("text") or choice.get("delta", {}).get("content") for choice in data["choices"]
                ]
            elif data["type"] == "response.output_text.delta":
                said.append(data["delta"])
    return "".join(filter(None, said))


def test_the_pages_client_survives_its_network(tmp_path):
    """The program of docs/server.md, whose connection is cut twice."""
    [program] = [block for block in blocks(PAGE, "python") if "X-Conversation-Id" in block]
    with DeviceServer(tmp_path, "--gguf", "demo", "--n-ctx", "1024", "--rate", "20") as server:
        server.ready()
        with forwarded(closed_port(), port_of(server)) as forwarder:
            forwarder.open()
            script = tmp_path / "client.py"
            changed = program.replace("8090", str(forwarder.port)).replace(": 200", ': 80, "ignore_eos": True')
            assert changed.count(str(forwarder.port)) == 1
            script.write_text(changed.replace("buffer.write(data)", "buffer.write(data); sys.stdout.flush()"))
            with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as client:
                heard = b""
                for events in (5, 40):
                    while heard.count(b"\n\n") < events:
                        heard += client.stdout.readline()
                    forwarder.close()
                    forwarder.open()
                heard += client.stdout.read()
                assert client.wait(120) == 0
        [stream] = server.get("/v1/streams").json()
        assert heard == server.get(f"/v1/stream/{stream['conversation_id']}").content
        assert heard.endswith(b"data: [DONE]\n\n")
        assert server.metric("pdd_device_answers_total") == 1


def test_openais_client_leaves_and_the_answer_goes_on(device, local):
    with local.chat.completions.create(**asked(60), extra_headers=named("openais")) as stream:
        first = next(iter(stream))
    device.wait_idle(seconds=60)
    whole = device.get("/v1/stream/openais").text
    assert first.id in whole
    assert '"finish_reason":"length"' in whole
    assert whole.endswith("data: [DONE]\n\n")


def asked(tokens):
    return {
        "model": "smollm2",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": tokens,
        "stream": True,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }


def test_deleting_the_stream_frees_the_device(device, local):
    with local.chat.completions.create(**asked(900), extra_headers=named("deleted")) as stream:
        next(iter(stream))
    assert device.metric("pdd_device_running") == 1
    with device.http() as http:
        assert http.delete("/v1/stream/deleted").status_code == 204
        device.wait_idle(seconds=20)
        assert http.get("/v1/stream/deleted").status_code == 404


def test_a_conversations_next_answer_ends_the_one_before(device, local):
    with local.chat.completions.create(**asked(900), extra_headers=named("next")) as first:
        next(iter(first))
        second = local.chat.completions.create(**asked(5), extra_headers=named("next"))
        assert list(second)[-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.APIError, match="another answer"):
            list(first)
    device.wait_idle(seconds=20)


def test_an_answer_that_nobody_reads_is_given_up(tmp_path):
    with DeviceServer(tmp_path, "--gguf", "demo", PDD_STREAM_TTL_S="0.5") as server:
        leave(server.ready())
        server.wait_idle(seconds=60)
        assert server.metric("pdd_device_answers_total", finish_reason="cancelled") == 1


def test_a_signal_ends_an_answer_that_nobody_reads(tmp_path):
    with DeviceServer(tmp_path, "--gguf", "demo", PDD_GRACE_S="0.2") as server:
        leave(server.ready())
        assert server.stop(signal.SIGTERM) == 0
        assert "Traceback" not in server.log()
        wait_until(lambda: "server_shutting_down" in server.log())
        assert LEFT not in server.log()


LEFT = "talk-xyzzy"


def leave(server):
    """Ask for a long answer, and leave it for good."""
    with (
        server.client() as client,
        client.chat.completions.create(**asked(3000), extra_headers=named(LEFT)) as stream,
    ):
        next(iter(stream))

"""Ctrl-C and SIGTERM with answers in flight: no stream is cut off without a word, and the exit code is 0."""

import json
import signal
import threading

import httpx2
import pytest
from cloud_support import KEY, still, wait_until
from device_server import DeviceServer

BODY = {
    "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse."}],
    "temperature": 0,
    "stream": True,
    "ignore_eos": True,
}


class Listener:
    """Reads one streamed answer on a thread of its own, to its very end."""

    def __init__(self, server, **fields):
        self.status, self.events, self.broken = None, [], None
        self._thread = threading.Thread(target=self._listen, args=(server, {**BODY, **fields}))
        self._thread.start()

    def _listen(self, server, body):
        try:
            with server.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
                self.status = answer.status_code
                for line in answer.iter_lines():
                    if line.startswith(("data: ", "{")):
                        self.events.append(line.removeprefix("data: "))
        except httpx2.HTTPError as error:
            self.broken = error

    def heard(self, count):
        wait_until(lambda: len(self.events) >= count, seconds=60)
        return self

    def end(self):
        """Wait for the end of the stream, which must be a proper one, and return its events."""
        self._thread.join(240)
        assert not self._thread.is_alive()
        assert self.broken is None
        return self.events


def assert_ended_with_error(events):
    *_, error, done = events
    assert json.loads(error)["error"]["code"] == "server_shutting_down"
    assert done == "[DONE]"


def test_an_answer_that_takes_no_longer_than_the_grace_is_finished(tmp_path):
    with DeviceServer(tmp_path, "--gguf", "demo", PDD_GRACE_S="240") as server:
        server.ready()
        listener = Listener(server, max_tokens=400).heard(3)  # long enough to look at the server meanwhile
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/v1/models").status_code == 503)
        refused = httpx2.post(f"{server.url}/chat/completions", json=BODY)
        assert refused.json()["error"]["code"] == "server_shutting_down"
        *_, last, done = listener.end()
        assert json.loads(last)["choices"][0]["finish_reason"] == "length"
        assert done == "[DONE]"
        assert server.process.wait(60) == 0
        assert "Traceback" not in server.log()


def test_a_longer_one_and_one_that_waits_end_with_an_error(tmp_path):
    with DeviceServer(tmp_path, "--gguf", "demo", PDD_GRACE_S="0.5") as server:
        server.ready()
        listener = Listener(server, max_tokens=3000).heard(3)
        waiting = Listener(server, max_tokens=5)
        wait_until(lambda: server.at_work() == 2)
        assert server.stop(signal.SIGINT) == 0
        assert_ended_with_error(listener.end())
        assert (waiting.status, json.loads(waiting.end()[-1])["error"]["code"]) == (503, "server_shutting_down")
        assert "Traceback" not in server.log()


def test_a_second_signal_ends_them_at_once(tmp_path):
    with DeviceServer(tmp_path, "--gguf", "demo", PDD_GRACE_S="600") as server:
        server.ready()
        listener = Listener(server, max_tokens=3000).heard(3)
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: server.get("/v1/models").status_code == 503)
        assert server.stop(signal.SIGINT) == 0
        assert_ended_with_error(listener.end())


def test_a_signal_while_the_model_loads_ends_it(tmp_path):
    with DeviceServer(tmp_path, "--gguf", "demo") as server:
        server.started()
        assert server.stop(signal.SIGINT) == 0
        assert "Traceback" not in server.log()


@pytest.mark.parametrize("limit", [400, 3000], ids=["both engines", "the cloud alone"])
def test_the_clouds_part_is_cancelled(cloud, tmp_path, limit):
    flags = ("--gguf", "demo", "--cloud", cloud.base_url, "--cloud-api-key", KEY, "--decode-budget", "300")
    with DeviceServer(tmp_path, *flags, "--n-ctx", "1024", PDD_GRACE_S="0.5") as server:
        server.connected()
        listener = Listener(server, max_tokens=limit).heard(3)
        assert server.stop(signal.SIGINT) == 0
        assert_ended_with_error(listener.end())
        assert "Traceback" not in server.log()
    still(cloud)

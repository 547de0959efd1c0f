"""A cloud that is down, comes up, goes away and comes back: the device answers all the time."""

import pytest
from cloud_support import KEY, wait_until
from device_server import PATIENT, DeviceServer, closed_port, forwarded

ASK = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Write one sentence about the moon."}],
    "temperature": 0,
    "max_tokens": 24,
}
"""One of the questions of test_with_cloud, whose greedy answers are the same wherever the device takes over."""
PROBING_S = 60.0
"""The longest pause between two attempts is 30 s."""


def tokens(client):
    answer = client.chat.completions.create(**ASK)
    made = answer.pdd["tokens"]
    assert made["cloud"] + made["device"] == answer.usage.completion_tokens > 0
    return answer.choices[0].message.content, made


def test_answers_never_stop_whatever_the_cloud_does(cloud, tmp_path):
    port = closed_port()
    flags = ("--gguf", "demo", "--n-ctx", "1024", "--decode-budget", "8")
    with DeviceServer(
        tmp_path, *flags, "--cloud", f"http://127.0.0.1:{port}/v1", "--cloud-api-key", KEY, **PATIENT
    ) as server:
        server.ready()
        with server.client() as client:
            wait_until(lambda: server.cloud_state()["state"] == "down")
            assert server.cloud_state()["error"].startswith("CloudUnreachable")
            said, made = tokens(client)
            assert made["cloud"] == 0

            target = int(cloud.base_url.rsplit(":", 1)[1].split("/")[0])
            with forwarded(port, target) as forwarder:
                forwarder.open()
                wait_until(lambda: server.cloud_state()["state"] == "connected", seconds=PROBING_S)
                again, made = tokens(client)
                assert again == said
                assert made["cloud"] > 0
                assert forwarder.connections > 0

            # gone again, which nobody notices before an answer asks for it
            again, made = tokens(client)
            assert (again, made["cloud"]) == (said, 0)
            wait_until(lambda: server.cloud_state()["state"] == "down")

            with forwarded(port, target) as forwarder:
                forwarder.open()
                wait_until(lambda: server.cloud_state()["state"] == "connected", seconds=PROBING_S)
                assert tokens(client)[1]["cloud"] > 0


@pytest.mark.parametrize("wrong", ["key", "path"])
def test_a_cloud_that_refuses_is_named_and_done_without(cloud, tmp_path, wrong):
    url = cloud.base_url if wrong == "key" else cloud.base_url.replace("/v1", "/elsewhere/v1")
    key = "wrong" if wrong == "key" else KEY
    flags = ("--gguf", "demo", "--n-ctx", "512", "--cloud", url, "--cloud-api-key", key)
    with DeviceServer(tmp_path, *flags) as server:
        server.ready()
        wait_until(lambda: server.cloud_state()["state"] == "down")
        assert server.cloud_state()["error"].startswith("CloudRefused")
        assert key not in server.log().replace(url, "")
        with server.client() as client:
            made = tokens(client)[1]
            assert (made["cloud"], made["cloud_in_vain"]) == (0, 0)

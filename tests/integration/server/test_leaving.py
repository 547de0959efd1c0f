"""Clients that leave, and crowds: both engines are free again, and nobody is refused without being told why."""

import anyio
import openai
import pytest
from cloud_support import KEY, still
from device_server import DeviceServer

LONG = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse."}],
    "temperature": 0,
    "stream": True,
    "extra_body": {"ignore_eos": True},
}
SHORT = {**LONG, "stream": False, "max_tokens": 4}
FITS_ONLY_THE_CLOUD = 3000
"""Tokens: more than the device's context holds."""
ROOM = 16
"""Answers that the server takes at a time."""


def after(stream, chunks):
    """Read so many chunks."""
    for _, chunk in zip(range(chunks), stream, strict=False):
        last = chunk
    return last


@pytest.mark.parametrize("chunks", [1, 5])
def test_a_client_that_leaves_its_stream_frees_the_device(device, local, chunks):
    with local.chat.completions.create(**LONG, max_tokens=900) as stream:
        after(stream, chunks)
        assert device.metric("pdd_device_running") == 1
    device.wait_idle(seconds=20)
    assert local.chat.completions.create(**SHORT).usage.completion_tokens == 4


async def test_a_client_that_waits_for_the_whole_and_leaves_frees_the_device(device, anyio_backend):
    cancelled = device.metric("pdd_device_answers_total", finish_reason="cancelled")
    async with device.async_client() as client, anyio.create_task_group() as tasks:

        async def ask():
            await client.chat.completions.create(**{**LONG, "stream": False}, max_tokens=900)
            pytest.fail("the answer was not to be waited for")

        tasks.start_soon(ask)
        with anyio.fail_after(60):
            while not device.metric("pdd_device_running"):
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()
    device.wait_idle(seconds=20)
    assert device.metric("pdd_device_answers_total", finish_reason="cancelled") == cancelled + 1


async def test_a_full_queue_is_a_rate_limit_and_those_who_wait_can_leave(device, anyio_backend):
    async with device.async_client() as client:
        async with anyio.create_task_group() as crowd:
            for _ in range(ROOM):
                crowd.start_soon(read_all, client)
            with anyio.fail_after(60):
                while device.at_work() < ROOM:
                    await anyio.sleep(0.1)
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(**SHORT)
            crowd.cancel_scope.cancel()
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.code == "rate_limit_exceeded"
        device.wait_idle(seconds=20)
        assert (await client.chat.completions.create(**SHORT)).usage.completion_tokens == 4


async def read_all(client):
    async with await client.chat.completions.create(**LONG, max_tokens=900) as stream:
        async for _ in stream:
            pass


def ask_at_once(server, times):
    """Ask again as soon as an answer's last event is there; returns how often this was refused."""
    refused = 0
    with server.client() as client:
        for number in range(times):
            try:
                if number % 2:
                    client.chat.completions.create(**SHORT)
                else:
                    with client.chat.completions.create(**{**SHORT, "stream": True}) as stream:
                        assert list(stream)
            except openai.RateLimitError:
                refused += 1
    return refused


def test_who_has_all_of_an_answer_can_ask_again_at_once(tmp_path):
    with DeviceServer(tmp_path, "--gguf", "demo", "--n-ctx", "1024", "--max-queue", "0") as server:
        assert ask_at_once(server.ready(), 30) == 0


def test_also_while_the_cloud_is_still_told_that_the_answer_has_ended(cloud, tmp_path):
    flags = ("--cloud", cloud.base_url, "--cloud-api-key", KEY, "--decode-budget", "8")
    with DeviceServer(tmp_path, "--gguf", "demo", "--n-ctx", "1024", "--max-queue", "0", *flags) as server:
        assert ask_at_once(server.ready(), 30) == 0


def test_a_client_that_leaves_frees_the_cloud_too(paired, cloud):
    with paired.client() as client:
        with client.chat.completions.create(**LONG, max_tokens=FITS_ONLY_THE_CLOUD) as stream:
            after(stream, 5)
            assert cloud.steps()[-1]["running"] == 1
        paired.wait_idle(seconds=20)
        still(cloud)
        with client.chat.completions.create(**LONG, max_tokens=900) as stream:
            after(stream, 5)
        paired.wait_idle(seconds=20)
        still(cloud)
        assert client.chat.completions.create(**SHORT).usage.completion_tokens == 4

"""After hundreds of answers the server is what it was: memory, threads, open files, tasks."""

import asyncio
import os
import threading
import time

import anyio
import openai
import psutil
import pytest
from cloud_support import wait_until

from pdd_core.env import ServeSettings
from pdd_llamacpp_adapter.runtime.serving import serve_device

WARM_UP = 70
"""Answers until the 64 that can be retrieved have their places."""
ANSWERS = 200
MARGIN = 24 * 2**20
"""Bytes by which the resident memory may differ: what allocators keep, far below a leak of 0.2 MiB per answer."""

CONNECTIONS = 2
"""More of them to the cloud than before: one answer cancels on a second, another does not; a pool keeps them."""
ASYNCIOS_OWN = min(32, (os.cpu_count() or 1) + 4)


class Footprint:
    """What a process holds."""

    def __init__(self, server):
        process = psutil.Process(server.process.pid)
        self.memory, self.threads, self.files = process.memory_info().rss, process.num_threads(), process.num_fds()


def ask(client, number):
    """One short answer; every fourth is a completion, half of the others are streamed."""
    sampling = {"model": "smollm2", "max_tokens": 2, "seed": number, "logprobs": None}
    if number % 4 == 0:
        answer = client.completions.create(**sampling, prompt=f"{number} and")
        return answer.usage.completion_tokens
    messages = [{"role": "user", "content": f"{number}?"}]
    if number % 4 == 1:
        with client.chat.completions.create(**sampling, messages=messages, stream=True) as stream:
            return sum(1 for chunk in stream if chunk.choices[0].finish_reason)
    answer = client.chat.completions.create(**sampling, messages=messages)
    return answer.usage.completion_tokens


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_two_hundred_answers_leave_nothing_behind(device):
    with device.client() as client:
        for number in range(WARM_UP):
            ask(client, number)
        before = Footprint(device)
        made = [ask(client, number) for number in range(ANSWERS)]
        device.wait_idle()
        after = Footprint(device)
    assert min(made) >= 1
    assert after.memory - before.memory < MARGIN
    assert after.threads <= before.threads + 1
    assert after.files <= before.files + 1


def crowd(server, rounds):
    """Sixteen clients at once; returns how many answers each got."""
    got = []

    def talk(number):
        with server.client() as client:
            got.append(sum(ask(client, 1000 * number + turn) > 0 for turn in range(rounds)))

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    return got


def test_sixteen_clients_at_once_leave_nothing_behind(device):
    crowd_comes_and_goes(device)


def test_sixteen_clients_at_once_leave_nothing_behind_with_a_cloud(paired):
    crowd_comes_and_goes(paired)


def crowd_comes_and_goes(server):
    crowd(server, 1)  # each thread that has worked once has an allocator's arena, and keeps it
    server.wait_idle()
    before = Footprint(server)
    assert crowd(server, 3) == [3] * 16
    server.wait_idle()
    with server.client() as client:
        # anyio's pool lets go of idle threads when it is used again; asyncio's, for host names, keeps its few
        wait_until(lambda: ask(client, 1) and rested(server).threads <= before.threads + ASYNCIOS_OWN)
        # nor does httpx's close a connection before it is used again
        wait_until(lambda: ask(client, 1) and rested(server).files <= before.files + CONNECTIONS)
    assert Footprint(server).memory - before.memory < MARGIN


def rested(server):
    time.sleep(1)
    return Footprint(server)


async def test_no_task_is_left(prepared, anyio_backend):
    """In this process, where tasks can be counted: after answers, errors and clients that leave."""
    settings = ServeSettings.load(None, {"port": 0, "n_ctx": 512, "gguf": str(prepared.gguf)})
    url, ready = "", anyio.Event()

    def started(root):
        nonlocal url
        url = f"{root}/v1"

    async with anyio.create_task_group() as tasks:

        async def serve():
            await serve_device(
                prepared.gguf, settings, on_started=started, on_ready=lambda _: ready.set(), signals=False
            )

        tasks.start_soon(serve)
        with anyio.fail_after(120):
            await ready.wait()
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            await trouble(client)
            await rest(url)
            before = len(asyncio.all_tasks())
            for _ in range(5):
                await trouble(client)
            await rest(url)
        with anyio.fail_after(20):
            while len(asyncio.all_tasks()) > before:
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()


async def trouble(client):
    """A good answer, a refused one, a stream that is left, and a deleted one."""
    asked = {"model": "default", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 4}
    assert (await client.chat.completions.create(**asked)).choices
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(**asked, n=2)
    endless = {**asked, "max_tokens": 400, "stream": True, "extra_body": {"ignore_eos": True}}
    async with await client.chat.completions.create(**endless) as stream:
        await anext(aiter(stream))
    async with await client.chat.completions.create(**endless) as stream:
        chunk = await anext(aiter(stream))
        await client.chat.completions.delete(chunk.id)
        with pytest.raises(openai.APIError, match="deleted"):
            async for _ in stream:
                pass


async def rest(url):
    """Wait until nothing is made."""
    async with openai.DefaultAsyncHttpxClient() as http:
        with anyio.fail_after(20):
            while "pdd_device_running 0.0" not in (await http.get(url.replace("/v1", "/metrics"))).text:
                await anyio.sleep(0.05)

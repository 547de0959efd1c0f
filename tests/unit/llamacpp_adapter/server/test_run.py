import os
import signal
import socket

import anyio
import httpx2
import openai
import pytest

from pdd_core.errors import ConfigurationError
from pdd_llamacpp_adapter.server.run import serve

pytestmark = pytest.mark.anyio

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def running():
    """Serve `service` in a task group; returns the URL and a record of serve's return."""

    async def start(tasks, service, **options):
        urls, returned = [], []
        started = anyio.Event()

        async def main():
            await serve(service, port=0, on_started=lambda url: (urls.append(url), started.set()), **options)
            returned.append(True)

        tasks.start_soon(main)
        await started.wait()
        return urls[0], returned

    return start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_an_idle_server(service, running, until, number):
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            _, returned = await running(tasks, service())
            os.kill(os.getpid(), number)
            await until(lambda: returned)


async def test_a_running_answer_may_finish_and_a_new_one_is_refused(service, running, until):
    may_finish = anyio.Event()
    made = service(["A", may_finish.wait, "B"])
    async with anyio.create_task_group() as tasks:
        url, returned = await running(tasks, made, grace=60)
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as client:
            stream = await client.chat.completions.create(**ASK, stream=True)
            await anext(stream)
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: made.stopping)
            with pytest.raises(openai.InternalServerError) as refused:
                await client.chat.completions.create(**ASK)
            assert (refused.value.status_code, refused.value.code) == (503, "server_shutting_down")
            assert refused.value.response.headers["x-should-retry"] == "false"
            may_finish.set()
            assert [chunk.choices[0].delta.content async for chunk in stream] == ["A", "B", None]
        await until(lambda: returned)


async def test_after_the_grace_an_answer_ends_with_an_error(service, running, until):
    made = service(["A", 60.0])
    async with anyio.create_task_group() as tasks:
        url, returned = await running(tasks, made, grace=0.1)
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as client:
            stream = await client.chat.completions.create(**ASK, stream=True)
            await anext(stream)
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(openai.APIError, match="shutting down") as ended:
                [chunk async for chunk in stream]
            assert ended.value.code == "server_shutting_down"
        await until(lambda: returned)
    assert made.runtime.sessions[0].left


async def test_a_second_signal_does_not_wait(service, running, until):
    made = service([60.0])
    failed = []
    async with anyio.create_task_group() as tasks:
        url, returned = await running(tasks, made, grace=60)
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as client:

            async def ask():
                try:
                    await client.chat.completions.create(**ASK)
                except openai.APIStatusError as error:
                    failed.append(error.status_code)

            tasks.start_soon(ask)
            await until(lambda: made.queue.running == 1)
            os.kill(os.getpid(), signal.SIGINT)
            await until(lambda: made.stopping)
            os.kill(os.getpid(), signal.SIGINT)
            await until(lambda: failed)
        await until(lambda: returned)
    assert failed == [503]


async def test_cancelling_frees_the_port_and_the_engines(service, running, until):
    made = service(["A", 60.0])
    async with anyio.create_task_group() as tasks:
        url, _ = await running(tasks, made)
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as client:
            stream = await client.chat.completions.create(**ASK, stream=True)
            await anext(stream)
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await until(lambda: made.runtime.sessions[0].left)
                await stream.close()
    port = int(url.rsplit(":", 1)[1])
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_a_port_in_use_is_named(service):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"port {port} of 127.0.0.1 is in use"):
            await serve(service(), port=port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
async def test_an_address_of_another_machine_is_named(service, host):
    with pytest.raises(ConfigurationError, match=host):
        await serve(service(), host=host, port=0)


async def test_it_answers_while_the_model_is_loading(service, running, fake_runtime):
    made = service(loaded=False)
    async with anyio.create_task_group() as tasks:
        url, _ = await running(tasks, made)
        async with httpx2.AsyncClient() as client:
            assert (await client.get(url + "/health")).status_code == 503
            made.runtime = fake_runtime()
            assert (await client.get(url + "/health")).status_code == 200
        tasks.cancel_scope.cancel()


async def test_nothing_is_printed(service, running, capfd):
    async with anyio.create_task_group() as tasks:
        url, _ = await running(tasks, service())
        async with httpx2.AsyncClient() as client:
            await client.get(url + "/nothing")
        tasks.cancel_scope.cancel()
    assert capfd.readouterr() == ("", "")

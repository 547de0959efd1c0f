"""PDDevice and AsyncPDDevice: the device as a Python object."""

import threading

import openai
import pytest
from cloud_support import wait_until
from device_server import settled

from pdd_core.errors import ConfigurationError, ModelError
from pdd_llamacpp_adapter import AsyncPDDevice, PDDevice

ASK = {"messages": [{"role": "user", "content": "Name three colours."}], "temperature": 0, "max_tokens": 8}


def own_threads():
    """All but those of the servers that start meanwhile, for other tests."""
    return [thread for thread in threading.enumerate() if thread.name not in ("boots", "server-output")]


def text_of(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_a_device_answers_streamed_and_not_and_closes_twice(prepared):
    threads = len(own_threads())
    with PDDevice(prepared.gguf, n_ctx=512, model_name="mine") as device:
        assert device.model == "mine"
        whole = settled(device.chat.completions.create, **ASK, model=device.model)
        with device.chat.completions.create(**ASK, model=device.model, stream=True) as stream:
            assert text_of(stream) == whole.choices[0].message.content
        assert (
            device.completions.create(model=device.model, prompt="The", max_tokens=2).usage.completion_tokens == 2
        )
        assert device.responses.create(model=device.model, input="Hello", max_output_tokens=2).output_text
        assert device.start() is device  # harmless
        url = str(device.client.base_url)
        device.close()
        device.close()
    wait_until(lambda: len(own_threads()) <= threads)  # a worker thread ends by itself, a moment later
    with (
        openai.OpenAI(base_url=url, api_key="any", max_retries=0) as late,
        pytest.raises(openai.APIConnectionError),
    ):
        late.models.list()


def test_a_device_can_be_closed_while_it_answers_and_started_again(prepared):
    device = PDDevice(prepared.gguf, n_ctx=512).start()
    try:
        stream = device.chat.completions.create(**{**ASK, "max_tokens": 400}, model=device.model, stream=True)
        next(iter(stream))
        device.close()
        device.start()
        assert device.chat.completions.create(**ASK, model=device.model).usage.completion_tokens == 8
    finally:
        device.close()


async def test_the_asynchronous_one_answers_streamed_and_not(prepared, anyio_backend):
    async with AsyncPDDevice(prepared.gguf, n_ctx=512) as device:
        await device.chat.completions.create(**ASK, model=device.model)
        whole = await device.chat.completions.create(**ASK, model=device.model)
        async with await device.chat.completions.create(**ASK, model=device.model, stream=True) as stream:
            assert text_of([chunk async for chunk in stream]) == whole.choices[0].message.content
        device.close()
    device.close()


def test_nobody_else_has_the_key(prepared):
    with PDDevice(prepared.gguf, n_ctx=512) as device:
        url = str(device.client.base_url)
        stranger = openai.OpenAI(base_url=url, api_key="guess", max_retries=0)
        with stranger, pytest.raises(openai.AuthenticationError):
            stranger.models.list()


@pytest.mark.parametrize("kind", [PDDevice, AsyncPDDevice])
@pytest.mark.parametrize(
    ("settings", "named"),
    [({"port": 1}, "port"), ({"api_key": "x"}, "api_key"), ({"n_ctxx": 1}, "n_ctxx"), ({"n_ctx": 1}, "n_ctx")],
)
def test_a_setting_that_cannot_work_is_named(kind, settings, named):
    with pytest.raises(ConfigurationError, match=named):
        kind("model.gguf", **settings)


def test_a_model_that_is_not_there_is_an_error_and_leaves_no_thread(tmp_path):
    threads = len(own_threads())
    device = PDDevice(tmp_path / "none.gguf")
    for _ in range(2):
        with pytest.raises(ModelError, match=r"none\.gguf"):
            device.start()
    device.close()
    wait_until(lambda: len(own_threads()) <= threads)


async def test_the_asynchronous_one_raises_the_same(tmp_path, anyio_backend):
    with pytest.raises(ModelError, match=r"none\.gguf"):
        async with AsyncPDDevice(tmp_path / "none.gguf"):
            pytest.fail("there is no model")

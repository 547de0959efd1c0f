"""What other replicas ask is answered while the connection lasts, and no longer."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace

import pytest

from pdd_core.state_request import Verb
from pdd_vllm_plugin.shared_store.names import ASK, digest
from pdd_vllm_plugin.shared_store.questions import Questions, _Question

pytestmark = pytest.mark.anyio


async def test_no_answer_is_worked_on_once_the_connection_has_ended():
    began, ended = asyncio.Event(), asyncio.Event()

    async def answer_here(_):
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    heard = asyncio.Queue()
    question = _Question(number="1" * 16, replica="another", verb=Verb.READ, name=digest("a"))
    heard.put_nowait({"channel": ASK.encode(), "data": question.model_dump_json().encode()})

    async def get_message(**_):
        return await heard.get()

    questions = Questions(lambda _: "a", answer_here)
    listening = asyncio.create_task(questions.listen(SimpleNamespace(get_message=get_message), client=None))
    await began.wait()
    listening.cancel()
    with suppress(asyncio.CancelledError):
        await listening
    assert ended.is_set()

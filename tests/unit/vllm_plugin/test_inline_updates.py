"""vLLM's bytes pass as they are, with our events between its own, whatever way it cuts them."""

import asyncio
import json
from dataclasses import replace
from itertools import pairwise

import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from vllm_fakes import FakeEngine, output, sampling_params

from pdd_core.errors import InvalidOptIn
from pdd_core.handoff import DecodeBudget, HandoffUpdate, KVCells, NoRefinement, Refinement, Status
from pdd_core.optin import OptIn
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.generate_recorder import GenerateRecorder
from pdd_vllm_plugin.handoff_record import NOT_ENABLED, NOT_REQUESTED, PENDING, HandoffRecord
from pdd_vllm_plugin.handoff_service import HandoffService
from pdd_vllm_plugin.handoff_store import HandoffStore
from pdd_vllm_plugin.inline_updates import InlineUpdates, follow
from pdd_vllm_plugin.kv.offer import LORA
from pdd_vllm_plugin.kv.offer import NOT_REQUESTED as NO_KV_REQUESTED
from pdd_vllm_plugin.metrics import CloudMetrics
from pdd_vllm_plugin.middleware import OptInCheck

pytestmark = pytest.mark.anyio
ID = "a" * 32
CHAT_ID = "chatcmpl-" + "c" * 20
CHAT = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"
EVENTS = [b'data: {"n":%d}\n\n' % n for n in range(4)]
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}
BUDGET = DecodeBudget(tokens=2, set_by="client")
FAILED = NoRefinement(reason="failed", message="KeyError")


def a_record(*, ratio=None, refinement=NOT_REQUESTED):
    return HandoffRecord(
        opt_in=OptIn(ID, refine_ratio=ratio, inline=True), completion_id=CHAT_ID, engine_request_id="e", model="m",
        tokenizer="d", sampling_params={}, created=7.5, touched=0.0, refinement=refinement,
    )  # fmt: skip


def refined(kept):
    ids = [token * 7 for token in kept]
    return Refinement(
        method="attention",
        ratio=0.5,
        kept_indices=kept,
        kept_token_ids=ids,
        protected=[(0, 1)],
        window=16,
        layers=[3],
    )


def body(data, *, more=True):
    return {"type": "http.response.body", "body": data, "more_body": more}


class Sent:
    """What went out, message by message."""

    def __init__(self):
        self.messages = []
        self.settled = asyncio.Event()
        """Set when a refinement has gone out."""

    async def __call__(self, message):
        await asyncio.sleep(0)  # as a socket whose buffer is full
        self.messages.append(message)
        if self.bytes.endswith(b"}}\n\n") and b'"refinement":{' in self.events[-1]:
            self.settled.set()

    @property
    def bytes(self):
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def events(self):
        return [event + b"\n\n" for event in self.bytes.split(b"\n\n")[:-1]]

    @property
    def updates(self):
        found = [event for event in self.events if b'"pdd":{' in event]
        return [HandoffUpdate.model_validate(json.loads(event[6:])["pdd"]) for event in found]

    @property
    def without_ours(self):
        return self.bytes if not self.events else b"".join(e for e in self.events if b'"pdd":{' not in e)


def told(update):
    return (
        update.status,
        update.decode_budget and update.decode_budget.tokens,
        update.refinement and update.refinement.kind,
    )


async def test_what_becomes_of_the_cells_is_told_to_who_asks_for_them():
    for wish, kv in ((True, KVCells(tokens=3)), (True, LORA), (False, NO_KV_REQUESTED)):
        sent, record = Sent(), a_record()
        record.opt_in, record.kv, record.decode_budget = replace(record.opt_in, kv=wish), kv, BUDGET
        updates = InlineUpdates(sent, CHAT, hold_s=1.0)
        with updates.active():
            follow(record)
            await updates(START)
            await updates(body(EVENTS[0]))
            await updates(body(DONE))
        assert [update.kv for update in sent.updates] == [kv if wish else None] * 2


async def test_the_budget_comes_behind_the_first_event_and_the_status_before_done():
    sent, record = Sent(), a_record()
    updates = InlineUpdates(sent, CHAT, hold_s=1.0)
    with updates.active():
        follow(record)
        await updates(START)
        await updates(body(b": keep-alive\n\n"))
        record.decode_budget = BUDGET
        await updates(body(EVENTS[0]))
        await updates(body(EVENTS[1]))
        record.end("length", "pdd_handoff")
        await updates(body(EVENTS[2]))
        await updates(body(DONE))
        await updates(body(b"", more=False))
    kinds = ["vllm" if b'"pdd"' not in event else "pdd" for event in sent.events]
    assert kinds == ["vllm", "vllm", "pdd", "vllm", "vllm", "pdd", "vllm"]
    first, last = sent.updates
    assert told(first) == (Status.RUNNING, 2, None)
    assert told(last) == (Status.HANDED_OFF, 2, None)
    assert (last.finish_reason, last.stop_reason) == ("length", "pdd_handoff")
    assert (last.handoff_id, last.request_id) == (ID, CHAT_ID)
    assert sent.without_ours == b": keep-alive\n\n" + b"".join(EVENTS[:3]) + DONE
    assert sent.messages[-1] == body(b"", more=False)


async def test_an_update_is_an_openai_chunk_without_choices():
    for path, kind in ((CHAT, "chat.completion.chunk"), ("/v1/completions", "text_completion")):
        sent = Sent()
        updates = InlineUpdates(sent, path, hold_s=1.0)
        with updates.active():
            follow(a_record())
            await updates(START)
            await updates(body(DONE))
        chunk = json.loads(sent.events[0][6:])
        assert chunk.pop("pdd")["status"] == "aborted"  # vLLM says that it is over
        assert chunk == {"id": CHAT_ID, "object": kind, "created": 7, "model": "m", "choices": []}


async def test_a_refined_prompt_goes_out_when_it_is_there_and_not_with_the_next_token():
    sent, record = Sent(), a_record(ratio=0.5, refinement=PENDING)
    updates = InlineUpdates(sent, CHAT, hold_s=1.0)
    with updates.active():
        follow(record)
        await updates(START)
        await updates(body(EVENTS[0]))
        assert not sent.updates
        made = refined(list(range(20_000)))  # more than are made JSON at a time
        record.refined_as(made)
        await asyncio.wait_for(sent.settled.wait(), 10)
        [update] = sent.updates
        assert update.refinement == made
        await updates(body(EVENTS[1] + DONE, more=False))
    assert [told(update)[2] for update in sent.updates] == ["refined", None]


async def test_a_token_waits_until_a_long_refined_prompt_has_gone_out():
    sent, record = Sent(), a_record(ratio=0.5, refinement=PENDING)
    updates = InlineUpdates(sent, CHAT, hold_s=1.0)
    with updates.active():
        follow(record)
        await updates(START)
        await updates(body(EVENTS[0]))
        record.refined_as(refined(list(range(20_000))))
        before = len(sent.messages)
        while len(sent.messages) == before:
            await asyncio.sleep(0)
        assert not sent.settled.is_set(), "it goes out in parts"
        await updates(body(EVENTS[1] + DONE, more=False))
    assert sent.without_ours == EVENTS[0] + EVENTS[1] + DONE
    assert [told(update)[2] for update in sent.updates] == ["refined", None]


async def test_done_waits_for_the_refinement():
    sent, record = Sent(), a_record(ratio=0.5, refinement=PENDING)
    updates = InlineUpdates(sent, CHAT, hold_s=30.0)
    with updates.active():
        follow(record)
        await updates(START)
        held = asyncio.create_task(updates(body(EVENTS[0] + DONE)))
        while sent.bytes != EVENTS[0]:
            await asyncio.sleep(0)
        record.refined_as(FAILED)
        await held
    assert [told(update)[2] for update in sent.updates] == ["none", None]
    assert sent.bytes.endswith(DONE)


async def test_done_does_not_wait_for_ever():
    sent, record = Sent(), a_record(ratio=0.5, refinement=PENDING)
    updates = InlineUpdates(sent, CHAT, hold_s=0.01)
    with updates.active():
        follow(record)
        await updates(START)
        await updates(body(DONE))
        record.refined_as(refined([0]))
        await updates(body(b"", more=False))
        await asyncio.sleep(0.01)
    assert [told(update)[2] for update in sent.updates] == [None], "nothing comes behind [DONE]"


async def test_a_refinement_that_is_settled_from_the_start_is_told_behind_the_first_event():
    sent, record = Sent(), a_record(ratio=0.5, refinement=NOT_ENABLED)
    updates = InlineUpdates(sent, CHAT, hold_s=1.0)
    with updates.active():
        follow(record)
        await asyncio.sleep(0.01)
        assert not sent.messages
        await updates(START)
        await updates(body(EVENTS[0]))
        await asyncio.wait_for(sent.settled.wait(), 10)
    assert sent.updates[0].refinement.reason == "not_enabled"


@pytest.mark.parametrize(
    "start",
    [
        {**START, "status": 400, "headers": [(b"content-type", b"application/json")]},
        {**START, "headers": [(b"content-type", b"application/json")]},
        {**START, "headers": [*START["headers"], (b"content-encoding", b"gzip")]},
    ],
)
async def test_what_is_no_stream_of_events_passes_as_it_is(start):
    sent, record = Sent(), a_record(ratio=0.5, refinement=NOT_ENABLED)
    updates = InlineUpdates(sent, CHAT, hold_s=1.0)
    messages = [start, body(b"{}\n\n"), body(DONE, more=False)]
    with updates.active():
        follow(record)
        for message in messages:
            await updates(message)
    assert sent.messages == messages


async def test_nothing_is_kept_when_the_client_leaves_while_done_is_held():
    sent, record = Sent(), a_record(ratio=0.5, refinement=PENDING)
    updates = InlineUpdates(sent, CHAT, hold_s=30.0)
    before = asyncio.all_tasks()

    async def answer():
        with updates.active():
            follow(record)
            await updates(START)
            await updates(body(DONE))

    leaving = asyncio.create_task(answer())
    while not sent.messages:
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait({leaving})
    await asyncio.sleep(0)
    assert leaving.cancelled()
    assert asyncio.all_tasks() == before
    assert updates._record is None
    assert DONE not in sent.bytes


async def test_a_socket_that_is_gone_is_left_to_vllm():
    record = a_record(ratio=0.5, refinement=PENDING)
    unhandled = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    gone = False

    async def send(message):
        if gone:
            raise OSError

    updates = InlineUpdates(send, CHAT, hold_s=1.0)
    with updates.active():
        follow(record)
        await updates(START)
        await updates(body(EVENTS[0]))
        gone = True
        record.refined_as(FAILED)
        await asyncio.wait({updates._refinement}, timeout=10)
        assert updates._refinement.exception() is None
        with pytest.raises(OSError):  # noqa: PT011 - ours, without a text
            await updates(body(EVENTS[1]))
    assert unhandled == []


async def test_without_the_middleware_the_field_is_refused_by_name():
    with pytest.raises(InvalidOptIn, match="8 MiB") as refused:
        follow(a_record())
    assert refused.value.param == "vllm_xargs.pdd_inline"


EVENT = st.one_of(
    st.text(max_size=30).map(lambda text: b"data: %s\n\n" % json.dumps({"text": text}).encode()),
    st.just(b'data: {"text":"data: [DONE]"}\n\n'),
    st.just(b": keep-alive\n\n"),
    st.just(b'data: {"error":{"code":500}}\n\n'),
)


@given(
    events=st.lists(EVENT, max_size=6),
    done=st.booleans(),
    cuts=st.lists(st.integers(0, 300), max_size=12),
    budget_at=st.integers(0, 5),
    settled_at=st.one_of(st.none(), st.integers(0, 9)),
    last_has_more=st.booleans(),
)
@examples(200)
def test_however_vllm_cuts_its_events(events, done, cuts, budget_at, settled_at, last_has_more):
    """Its bytes are the same without ours, ours lie between events, and each comes once and in order."""
    whole = b"".join(events) + (DONE if done else b"")
    bounds = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    pieces = [whole[start:end] for start, end in pairwise(bounds)] or [b""]
    sent = Sent()

    async def answer():
        asked = settled_at is not None
        record = a_record(ratio=0.5 if asked else None, refinement=PENDING if asked else NOT_REQUESTED)
        updates = InlineUpdates(sent, CHAT, hold_s=10.0)
        loop = asyncio.get_running_loop()
        with updates.active():
            follow(record)
            await updates(START)
            for number, piece in enumerate(pieces):
                if number == budget_at:
                    record.decode_budget = BUDGET
                if number == settled_at:
                    record.refined_as(refined([0, 2]))
                if number == len(pieces) - 1:
                    record.end("stop")
                    if asked:
                        loop.call_soon(record.refined_as, refined([0, 2]))
                await updates(body(piece, more=number < len(pieces) - 1 or last_has_more))
            if last_has_more:
                await updates(body(b"", more=False))

    asyncio.run(answer())
    assert sent.without_ours == whole
    assert sent.messages[-1]["more_body"] is False
    assert all(message["more_body"] for message in sent.messages[1:-1])
    updates = sent.updates
    budgets = [update.decode_budget is not None for update in updates]
    assert budgets == sorted(budgets), "once known, it is told each time"
    if done:
        *others, last = updates
        assert sent.events[-1] == DONE
        assert b'"pdd":{' in sent.events[-2]
        assert last.status is Status.FINISHED
        assert len(others) <= 2
        assert sum(update.refinement is not None for update in updates) == (settled_at is not None)
    else:
        assert len(updates) <= 2


class Vllm:
    """The plugin over an engine that streams three tokens, and vLLM's route in as few lines as can be."""

    def __init__(self, **config):
        report = {"pdd": {"engine": 0, "tokens": 2, "set_by": "client"}}
        self.engine = FakeEngine([output([7], "a", kv=report), output([8], "b"), output([9], "c", "stop")])
        self.service = HandoffService(CloudMetrics(CollectorRegistry()))
        self.service.config = PDDConfig(**config)
        self.service.store = HandoffStore(self.service.config)
        self.recorder = GenerateRecorder(
            self.engine, self.service.store, model="m", tokenizer="digest", metrics=self.service.metrics
        )
        self.heard = []
        self.plugin = OptInCheck(self._app, self.service)

    async def _app(self, scope, receive, send):
        request = json.loads(await self._whole(receive))
        params = sampling_params(request.get("vllm_xargs"))

        async def handle():  # vLLM has a task of its own for it: with_cancellation
            return self.recorder.generate({"prompt_token_ids": [1, 2]}, params, CHAT_ID)

        outputs = await asyncio.create_task(handle())
        await send(START)
        async for item in outputs:
            await send(body(b'data: {"text":"%s"}\n\n' % item.outputs[0].text.encode()))
        await send(body(DONE))
        await send(body(b"", more=False))
        self.heard.append((await receive())["type"])

    async def _whole(self, receive):
        whole = b""
        while True:
            message = await receive()
            whole += message["body"]
            if not message.get("more_body"):
                return whole

    async def post(self, request, path=CHAT):
        data = request if isinstance(request, bytes) else json.dumps(request).encode()
        messages = iter([{"type": "http.request", "body": data}, {"type": "http.disconnect"}])

        async def receive():
            return next(messages)

        sent = Sent()
        await self.plugin({"type": "http", "method": "POST", "path": path, "headers": []}, receive, sent)
        return sent


STREAMED = b"".join(b'data: {"text":"%s"}\n\n' % text for text in (b"a", b"b", b"c")) + DONE


async def test_through_the_plugin_the_updates_are_those_of_the_record():
    vllm = Vllm()
    sent = await vllm.post({"stream": True, "vllm_xargs": {"pdd_handoff": ID, "pdd_inline": True}})
    assert sent.without_ours == STREAMED
    assert [told(update) for update in sent.updates] == [(Status.RUNNING, 2, None), (Status.FINISHED, 2, None)]
    assert vllm.heard == ["http.disconnect"]
    assert vllm.engine.closed == 1


async def test_a_state_deleted_in_mid_stream_is_told_of_to_the_end():
    vllm = Vllm()
    engine, generate = vllm.engine, vllm.engine.generate
    vllm.recorder._generate = lambda *args, **kwargs: deleting(generate(*args, **kwargs))

    async def deleting(inner):
        async for item in inner:
            yield item
            if vllm.service.store.get(ID):
                vllm.service.store.get(ID).end("abort")
                vllm.service.store.delete(ID)

    sent = await vllm.post({"stream": True, "vllm_xargs": {"pdd_handoff": ID, "pdd_inline": 1}})
    assert sent.updates[-1].status is Status.ABORTED
    assert sent.updates[-1].finish_reason == "abort"
    assert engine.closed == 1


@pytest.mark.parametrize("fields", [{}, {"pdd_inline": False}])
async def test_a_stream_without_the_field_is_message_by_message_as_without_us(fields):
    sent = await Vllm().post({"stream": True, "vllm_xargs": {"pdd_handoff": ID, **fields}})
    plain = await Vllm().post({"stream": True})
    assert sent.messages == plain.messages
    assert sent.bytes == STREAMED


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/responses", {"stream": True}),
        ("/v1/messages", {"stream": True}),
        (CHAT, {}),
        (CHAT, {"stream": False}),
        ("/v1/completions", {"stream": None}),
    ],
)
async def test_where_updates_have_no_place_the_field_is_refused_by_name(path, more):
    sent = await Vllm().post({"vllm_xargs": {"pdd_handoff": ID, "pdd_inline": True}, **more}, path)
    assert sent.messages[0]["status"] == 400
    assert json.loads(sent.bytes)["error"]["param"] == "vllm_xargs.pdd_inline"


@pytest.mark.parametrize("way", ["escapes", "utf-16", "size"])
async def test_a_body_that_the_middleware_does_not_read_is_refused_by_name_and_not_ignored(way):
    request = {"stream": True, "vllm_xargs": {"pdd_handoff": ID, "pdd_inline": True}}
    data = {
        "escapes": json.dumps(request).replace("pdd_", "\\u0070dd_").encode(),
        "utf-16": json.dumps(request).encode("utf-16"),
        "size": json.dumps({"user": "x" * (8 * 2**20), **request}).encode(),
    }[way]
    vllm = Vllm()
    with pytest.raises(ValueError, match="pdd_inline cannot be followed here") as refused:
        await vllm.post(data)
    assert refused.value.parameter == "vllm_xargs.pdd_inline"
    assert len(vllm.service.store) == 0
    assert vllm.engine.calls == []

"""The route over files as the workers write them, without an engine."""

import asyncio
import fcntl
import json
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from api_processes import ApiProcess, record
from example_count import examples
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from hypothesis import given
from hypothesis import strategies as st
from kv_cells import BY_HEADS, BY_LAYERS, WHOLE, frames, geometry, shelve
from prometheus_client import CollectorRegistry
from vllm_fakes import FakeEngine, output, sampling_params

from pdd_core.kv.frames import END, HEADER_BYTES, FrameReader
from pdd_core.kv.geometry import NoKV
from pdd_core.state_request import StateRequest, Verb
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.generate_recorder import GenerateRecorder
from pdd_vllm_plugin.handoff_routes import make_router
from pdd_vllm_plugin.handoff_service import HandoffService
from pdd_vllm_plugin.handoff_store import HandoffStore
from pdd_vllm_plugin.kv import cell_answers, cells_response
from pdd_vllm_plugin.kv.cell_answers import CellAnswers
from pdd_vllm_plugin.kv.handshake import NOT_ENABLED
from pdd_vllm_plugin.kv.shelf_file import CELLS, GONE, ShelfFile
from pdd_vllm_plugin.kv.shelves import Shelves
from pdd_vllm_plugin.metrics import CloudMetrics
from pdd_vllm_plugin.middleware import OptInCheck

pytestmark = pytest.mark.anyio
ID = "a" * 32
ROUTE = f"/v1/pdd/handoffs/{ID}/kv"
OPT_IN = {"pdd_handoff": ID, "pdd_kv": 1}
TOKENS = 300
"""Cells: the prompt has one token more."""
PROMPT = list(range(TOKENS + 1))
NO_ROOM = NoKV(reason="no_room", message="the shelf is full")


class Clock:
    """Begins at the real time, which `CellAnswers` compares with it."""

    def __init__(self):
        self.now = time.monotonic()

    def __call__(self):
        return self.now


class Server:
    """The plugin's routes over a fake engine, whose workers' folders are in `base`."""

    def __init__(self, base, parts=WHOLE, engines=(0,), *, shelves=None, **config):
        self.folders = {rank: [Path(base) / f"{rank}-{part}" for part in range(len(parts))] for rank in engines}
        for folders in self.folders.values():
            for folder in folders:
                folder.mkdir()
        self.geometry = geometry(parts)
        shelves = Shelves(self.geometry, self.folders) if shelves is None else shelves
        self.engine = FakeEngine([output([7], "a"), output([8], "b"), output([9], "c", "stop")])
        self.registry = CollectorRegistry()
        self.clock = Clock()
        self.service = HandoffService(CloudMetrics(self.registry))
        self.service.config = PDDConfig(**config)
        self.service.store = HandoffStore(self.service.config, self.clock)
        self.service.engine_client = self.engine
        self.service.cells = CellAnswers(self.service.config, shelves, self.service.metrics)
        self.service.store.drop_cells = self.service.cells.drop
        self.recorder = GenerateRecorder(
            self.engine, self.service.store, model="m", tokenizer="d", metrics=self.service.metrics,
            cells=self.service.cells,
        )  # fmt: skip
        self.streams = []
        self.app = FastAPI()
        self.app.include_router(make_router(self.service))
        self.app.add_middleware(OptInCheck, service=self.service)
        self.client = AsyncClient(transport=ASGITransport(self.app), base_url="http://plugin")

    def shelve(self, handoff_id=ID, tokens=TOKENS, engine=0):
        shelve(self.folders[engine], handoff_id, tokens, self.geometry)

    async def begin(self, opt_in=OPT_IN, prompt=None, **more):
        """Begin a request and have its first token made."""
        prompt = {"prompt_token_ids": PROMPT} if prompt is None else prompt
        stream = self.recorder.generate(prompt, sampling_params(opt_in), "cmpl-" + "x" * 20, **more)
        self.streams.append(stream)
        await anext(stream)
        return stream

    async def get(self, **span):
        return await self.client.get(ROUTE, params=span)

    async def state(self):
        return (await self.client.get(f"/v1/pdd/handoffs/{ID}")).json()

    def count(self, name, **labels):
        return self.registry.get_sample_value(f"pdd_kv_{name}", labels) or 0

    def file(self, engine=0, part=0):
        return ShelfFile(self.folders[engine][part], ID)


@asynccontextmanager
async def serving(*args, **more):
    with TemporaryDirectory() as base:
        server = Server(base, *args, **more)
        async with server.client:
            yield server


@pytest.fixture
async def server(tmp_path):
    made = Server(tmp_path)
    async with made.client:
        yield made


@pytest.mark.parametrize("parts", [WHOLE, BY_HEADS, BY_LAYERS])
async def test_all_cells_are_streamed_from_the_back_to_the_front(parts):
    async with serving(parts) as server:
        await server.begin()
        server.shelve()
        answer = await server.get()
        assert answer.content == b"".join(frames(TOKENS, server.geometry))
        assert answer.headers["content-type"] == "application/vnd.pdd.kv"
        assert (answer.headers["content-encoding"], answer.headers["cache-control"]) == ("identity", "no-store")
        assert (await server.state())["kv"] == {"kind": "cells", "tokens": TOKENS}
        assert server.count("streams_total", outcome="sent") == 1
        assert server.count("sent_bytes_total") == len(answer.content)
        assert server.count("wait_seconds_count") == 1


@examples(25)
@given(st.sampled_from([WHOLE, BY_HEADS, BY_LAYERS]), st.integers(1, 400), st.data())
def test_a_stream_that_was_cut_goes_on_where_it_was(parts, tokens, data):
    span = sorted(data.draw(st.lists(st.integers(0, tokens), min_size=2, max_size=2)))

    async def run():
        async with serving(parts) as server:
            await server.begin(prompt={"prompt_token_ids": list(range(tokens + 1))})
            server.shelve(tokens=tokens)
            whole = await server.get(**{"from": span[0], "to": span[1]})
            assert whole.content == b"".join(frames(tokens, server.geometry, *span))
            reader = FrameReader(server.geometry, *span)
            starts = {one.start for one in reader.feed(whole.content) if not one.last}
            for start in starts:
                rest = await server.get(**{"from": span[0], "to": start})
                assert rest.content == b"".join(frames(tokens, server.geometry, span[0], start))
                assert whole.content.endswith(rest.content)

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_cells_can_be_asked_for_by_post(server, path):
    await server.begin()
    server.shelve()
    asked = await server.client.post(path, json={"vllm_xargs": {"pdd_cells": ID, "pdd_from": 5, "pdd_to": 290}})
    routed = await server.get(**{"from": 5, "to": 290})
    assert (asked.status_code, asked.content) == (200, routed.content)
    assert {**asked.headers} == {**routed.headers}


@pytest.mark.parametrize("span", [{"from": 0, "to": 301}, {"from": 200, "to": 100}, {"from": 301}])
async def test_positions_that_are_not_there_are_refused(server, span):
    await server.begin()
    server.shelve()
    answer = await server.get(**span)
    assert answer.status_code == 400
    assert "there are cells from 0 to 300" in answer.json()["error"]["message"]


@pytest.mark.parametrize("span", [{"from": -1}, {"to": -1}, {"to": "x"}])
async def test_what_is_no_position_is_refused(server, span):
    assert (await server.get(**span)).status_code == 422  # FastAPI's own; vLLM turns it into a 400


async def test_an_empty_span_is_an_empty_stream(server):
    await server.begin()
    server.shelve()
    assert (await server.get(**{"from": 7, "to": 7})).content == END


@pytest.mark.parametrize("name", ["b" * 32, "cmpl-" + "x" * 20, "x", "..", ID[:-1]])
async def test_another_id_is_unknown_as_for_every_state(server, name):
    await server.begin()
    server.shelve()
    cells = await server.client.get(f"/v1/pdd/handoffs/{name}/kv")
    assert cells.status_code == 404
    assert "kv" not in cells.json()
    posted = await server.client.post("/v1/completions", json={"vllm_xargs": {"pdd_cells": name}})
    assert posted.status_code in {400, 404}


async def test_cells_are_waited_for(server):
    stream = await server.begin()
    waiting = asyncio.create_task(server.get())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    async for _ in stream:
        pass  # it ends before its cells are packed
    assert not waiting.done()
    server.shelve()
    assert (await waiting).content == b"".join(frames(TOKENS, server.geometry))


async def test_all_parts_are_waited_for():
    async with serving(BY_HEADS) as server:
        await server.begin()
        server.shelve()
        held = server.file(part=1).path(CELLS)
        held.rename(held.with_suffix(".held"))
        waiting = asyncio.create_task(server.get())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        held.with_suffix(".held").rename(held)
        assert (await waiting).status_code == 200


async def test_a_request_that_still_waits_for_its_turn_is_told_to_ask_again():
    async with serving(cancel_timeout_s=0.02) as server:
        server.streams.append(
            server.recorder.generate({"prompt_token_ids": PROMPT}, sampling_params(OPT_IN), "cmpl-1")
        )
        answer = await server.get()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert server.count("streams_total", outcome="pending") == 1


async def test_what_the_worker_says_is_told_with_its_reason(server):
    stream = await server.begin()
    server.file().write_none(NO_ROOM)
    answer = await server.get()
    assert answer.status_code == 409
    assert answer.json()["kv"] == NO_ROOM.model_dump()
    assert answer.json()["error"]["message"] == "the shelf is full"
    assert (await server.state())["kv"] == NO_ROOM.model_dump()
    await stream.aclose()
    assert server.count("streams_total", outcome="no_room") == 1
    assert server.count("refused_total", reason="no_room") == 1


async def test_one_part_without_cells_is_enough():
    async with serving(BY_HEADS) as server:
        await server.begin()
        server.shelve()
        server.file(part=1).write_none(NO_ROOM)
        assert (await server.get()).json()["kv"]["reason"] == "no_room"


async def test_cells_that_were_there_are_gone_at_once(server):
    await server.begin()
    server.shelve()
    assert (await server.get()).status_code == 200
    async for _ in server.streams[0]:
        pass
    server.file().drop()  # by the worker: their time was up
    answer = await server.get()
    assert (answer.status_code, answer.json()["kv"]["reason"]) == (404, "gone")


async def test_cells_that_never_came_are_gone_some_time_after_the_end():
    async with serving(cancel_timeout_s=0.02) as server:
        async for _ in await server.begin():
            pass
        server.service.store.get(ID).touched -= 1.0
        answer = await server.get()
        assert (answer.status_code, answer.json()["kv"]["reason"]) == (404, "gone")


async def test_a_request_that_ended_before_its_first_token_has_none(server):
    server.engine.outputs = []
    stream = server.recorder.generate({"prompt_token_ids": PROMPT}, sampling_params(OPT_IN), "cmpl-1")
    async for _ in stream:
        pass
    assert (await server.get()).json()["kv"]["reason"] == "gone"


async def test_a_file_of_another_prompt_is_not_sent(server):
    await server.begin()
    server.shelve(tokens=TOKENS - 1)
    answer = await server.get()
    assert (answer.status_code, answer.json()["kv"]["reason"]) == (409, "not_captured")


async def test_a_file_that_cannot_be_read_is_not_sent(server):
    await server.begin()
    server.file().path(CELLS).write_bytes(b"no cells")
    answer = await server.get()
    assert (answer.status_code, answer.json()["kv"]["reason"]) == (409, "not_captured")


async def test_a_file_that_gets_shorter_cuts_the_stream(server):
    await server.begin()
    server.shelve()
    ticket = await server.service.cells.ticket(QUESTION, server.service.store.get(ID))
    response = server.service.cells.stream(QUESTION, bytes(ticket.body))
    with server.file().path(CELLS).open("r+b") as file:
        file.truncate(20_000)
    client = Client()
    await response(client.scope, client.receive, client.send)
    assert not client.body.endswith(END)
    assert client.more
    assert server.count("streams_total", outcome="left") == 1


NOT_GIVEN = [
    ({"pdd_handoff": ID}, {}, "not_requested"),
    (OPT_IN, {"lora_request": type("Lora", (), {"lora_name": "l"})}, "lora"),
    (OPT_IN, {"prompt": {"prompt_token_ids": PROMPT, "mm_kwargs": {}}}, "multimodal"),
    (OPT_IN, {"prompt": {"prompt_token_ids": PROMPT, "prompt_embeds": object()}}, "multimodal"),
    (OPT_IN, {"prompt": {"prompt_token_ids": list(range(401))}}, "too_long"),
    (OPT_IN, {"prompt": {"prompt_token_ids": [1]}}, "not_captured"),
]


@pytest.mark.parametrize(("opt_in", "more", "reason"), NOT_GIVEN)
async def test_a_request_that_gets_none_is_served_and_told_why(opt_in, more, reason):
    async with serving(kv_max_prompt_tokens=400) as server:
        stream = await server.begin(opt_in, **more)
        assert (await server.state())["kv"]["reason"] == reason
        answer = await server.get()
        assert (answer.status_code, answer.json()["kv"]["reason"]) == (409, reason)
        async for _ in stream:
            pass
        assert (await server.state())["output_token_ids"] == [7, 8, 9]
        # no worker is to pack what nobody is given
        assert "pdd_kv" not in server.engine.params[0].extra_args
        assert server.engine.params[0].extra_args["pdd_handoff"] == ID
        assert server.count("refused_total", reason=reason) == (reason != "not_requested")


async def test_the_wish_reaches_the_workers_where_cells_are_given(server):
    await server.begin()
    assert server.engine.params[0].extra_args == OPT_IN


async def test_a_server_that_gives_none_serves_and_says_so():
    async with serving(shelves=NOT_ENABLED) as server:
        await server.begin()
        assert (await server.state())["kv"] == NOT_ENABLED.model_dump()
        assert (await server.get()).json()["kv"] == NOT_ENABLED.model_dump()


async def test_a_prompt_whose_ids_come_with_the_first_token_is_measured_then():
    async with serving(kv_max_prompt_tokens=2) as server:
        await server.begin(prompt="as text")
        assert (await server.state())["kv"]["reason"] == "too_long"
        server.engine.outputs = [output([7], prompt=(1, 2))]
        await server.begin({**OPT_IN, "pdd_handoff": "b" * 32}, prompt="as text")
        state = (await server.client.get(f"/v1/pdd/handoffs/{'b' * 32}")).json()
        assert state["kv"] == {"kind": "cells", "tokens": 1}


async def test_a_delete_drops_the_cells_and_lets_a_stream_that_runs_go_on(server):
    await server.begin()
    server.shelve()
    client = Client(held=True)
    streaming = asyncio.create_task(server.app(client.scope, client.receive, client.send))
    await client.sent.wait()
    assert (await server.client.delete(f"/v1/pdd/handoffs/{ID}")).status_code == 200
    assert (await server.get()).status_code == 404
    assert server.file().path(GONE).exists()
    assert not server.file().path(CELLS).exists()
    client.go.set()
    await streaming
    assert client.body == b"".join(frames(TOKENS, server.geometry))


async def test_a_delete_drops_the_cells_of_other_workers_where_one_has_none():
    async with serving(BY_HEADS) as server:
        await server.begin()
        server.shelve()
        server.file(part=1).write_none(NO_ROOM)
        assert (await server.get()).status_code == 409
        await server.client.delete(f"/v1/pdd/handoffs/{ID}")
        assert not server.file().path(CELLS).exists()


async def test_a_delete_drops_cells_that_are_still_to_come_although_they_were_told_to_be_gone(server):
    async for _ in await server.begin():
        pass
    server.service.store.get(ID).touched -= server.service.config.cancel_timeout_s + 1
    assert (await server.get()).status_code == 404
    await server.client.delete(f"/v1/pdd/handoffs/{ID}")
    assert server.file().path(GONE).exists()


async def test_a_delete_marks_nothing_where_no_worker_was_asked():
    """No worker would remove the mark."""
    async with serving(kv_max_prompt_tokens=2) as server:
        await server.begin()
        assert (await server.client.delete(f"/v1/pdd/handoffs/{ID}")).status_code == 200
        assert list(server.file().folder.iterdir()) == []


async def test_cells_go_with_a_state_whose_time_is_up(server):
    async for _ in await server.begin():
        pass
    server.shelve()
    server.clock.now += server.service.config.ttl_s + 1
    server.service.store.purge()
    assert not server.file().path(CELLS).exists()


async def test_cells_go_with_a_state_that_makes_way():
    async with serving(max_handoffs=1) as server:
        async for _ in await server.begin():
            pass
        server.shelve()
        await server.begin({"pdd_handoff": "b" * 32})
        assert not server.file().path(CELLS).exists()


async def test_a_new_request_of_the_same_id_does_not_get_the_cells_of_the_old_one(server):
    async for _ in await server.begin():
        pass
    server.shelve()
    await server.begin()
    waiting = asyncio.create_task(server.get())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    server.shelve()
    assert (await waiting).status_code == 200


async def test_the_cells_of_a_running_request_stay_when_its_id_is_refused(server):
    await server.begin()
    server.shelve()
    with pytest.raises(ValueError, match="in use by a running request"):
        server.recorder.generate({"prompt_token_ids": PROMPT}, sampling_params(OPT_IN), "cmpl-1")
    assert (await server.get()).status_code == 200


class Client:
    """An ASGI client by hand: takes the first chunk, and with `held` the next ones when it is let go."""

    def __init__(self, path=ROUTE, *, held=False, leaves=False):
        self.scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [], "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        self.body, self.more = b"", True
        self.status = None
        self.sent, self.go, self.left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._held, self._leaves = held, leaves

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        self.body += message["body"]
        self.more = message.get("more_body", False)
        self.sent.set()
        if self._leaves:
            self.left.set()
        if self._held:
            await self.go.wait()


QUESTION = StateRequest(Verb.CELLS, ID)


def is_locked(path):
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


async def test_a_client_that_takes_nothing_is_not_read_ahead_for(server):
    await server.begin()
    server.shelve()
    client = Client(held=True)
    streaming = asyncio.create_task(server.app(client.scope, client.receive, client.send))
    await client.sent.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(client.body) == HEADER_BYTES  # the first chunk
    assert is_locked(server.file().path(CELLS))
    client.left.set()
    await streaming
    assert not is_locked(server.file().path(CELLS))
    assert server.count("streams_total", outcome="left") == 1
    assert server.count("sent_bytes_total") == 0


async def test_others_have_their_turn_after_each_chunk_of_a_fast_client(server):
    await server.begin()
    server.shelve()
    client, turns = Client(), []

    async def other():
        while True:
            turns.append(len(client.body))
            await asyncio.sleep(0)

    watching = asyncio.create_task(other())
    await server.app(client.scope, client.receive, client.send)
    watching.cancel()
    assert max(later - one for one, later in pairwise(turns)) <= cells_response.CHUNK


async def test_a_client_that_leaves_ends_its_stream(server):
    await server.begin()
    server.shelve()
    client = Client(leaves=True)
    await server.app(client.scope, client.receive, client.send)
    assert len(client.body) < len(b"".join(frames(TOKENS, server.geometry)))
    assert not is_locked(server.file().path(CELLS))
    assert server.count("streams_total", outcome="left") == 1


async def test_a_client_that_leaves_while_it_waits_for_the_bound_ends_its_stream():
    async with serving(kv_request_mbit_s=1e-6) as server:
        await server.begin()
        server.shelve()
        client = Client()
        streaming = asyncio.create_task(server.app(client.scope, client.receive, client.send))
        while server.service.cells._streams == 0:
            await asyncio.sleep(0)
        client.left.set()
        await streaming
        assert client.body == b""
        assert not is_locked(server.file().path(CELLS))


async def test_a_client_that_stalls_is_left(server, monkeypatch, caplog):
    monkeypatch.setattr(cells_response, "STALL_S", 0.01)
    await server.begin()
    server.shelve()
    client = Client(held=True)
    await server.app(client.scope, client.receive, client.send)
    assert client.more
    assert "has taken no cells" in caplog.text
    assert not is_locked(server.file().path(CELLS))


async def test_more_streams_than_there_is_room_for_are_told_to_ask_again(server, monkeypatch):
    monkeypatch.setattr(cell_answers, "MAX_STREAMS", 2)
    await server.begin()
    server.shelve()
    clients = [Client(held=True), Client(held=True)]
    streaming = [asyncio.create_task(server.app(one.scope, one.receive, one.send)) for one in clients]
    for one in clients:
        await one.sent.wait()
    refused = await server.get()
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    for one in clients:
        one.go.set()
    await asyncio.gather(*streaming)
    assert (await server.get()).status_code == 200
    assert server.count("streams_total", outcome="busy") == 1


async def test_both_bounds_hold_for_every_byte(server, monkeypatch):
    await server.begin()
    server.shelve()
    taken = {"server": 0, "request": 0}

    class Bucket:
        def __init__(self, name):
            self.name = name

        async def take(self, count):
            assert count <= cells_response.CHUNK
            taken[self.name] += count

    server.service.cells._bucket = Bucket("server")
    monkeypatch.setattr(cell_answers, "bucket", lambda *_: Bucket("request"))
    size = len((await server.get()).content)
    assert taken == {"server": size, "request": size}


@pytest.mark.parametrize("told", [0, 1, None])
async def test_the_folders_of_the_engine_that_has_the_request_are_read(told):
    """An id that was used before may have cells on another engine's shelf."""
    async with serving(BY_HEADS, engines=(0, 1)) as server:
        await server.begin()
        record = server.service.store.get(ID)
        record.budget_report = None if told is None else {"tokens": 4, "set_by": "client", "engine": told}
        server.shelve(engine=1 if told is None else told)
        assert (await server.get()).status_code == 200
        if told is not None:
            server.file(engine=told).drop()
            server.shelve(engine=1 - told)
            assert (await server.get()).status_code == 404


async def test_any_api_process_streams_what_another_one_has_the_state_of(tmp_path, base):
    processes = [ApiProcess(base, rank, 2, cancel_timeout_s=5.0) for rank in range(2)]
    server = Server(tmp_path)  # its folders only
    for one in processes:
        one.service.cells = CellAnswers(one.service.config, server.service.cells.shelves, one.service.metrics, 2)
        one.store.drop_cells = one.service.cells.drop
        one.recorder._cells = one.service.cells
        await one.serve()
    owner, other = processes
    stream = owner.recorder.generate({"prompt_token_ids": PROMPT}, sampling_params(OPT_IN), "cmpl-" + "x" * 20)
    await anext(stream)
    server.shelve()
    app = FastAPI()
    app.include_router(make_router(other.service))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://other") as client:
        got = await client.get(ROUTE, params={"to": 200})
        assert got.content == b"".join(frames(TOKENS, server.geometry, 0, 200))
        refused = await client.get(ROUTE, params={"to": 301})
        assert refused.status_code == 400
        assert (await client.delete(f"/v1/pdd/handoffs/{ID}")).status_code == 200
        assert not server.file().path(CELLS).exists()
        assert (await client.get(ROUTE)).status_code == 404
        owner.store.add(replace(record("c" * 32, tokens=1), kv=NO_ROOM))
        told = await client.get(ROUTE.replace(ID, "c" * 32))
        assert (told.status_code, json.loads(told.content)["kv"]["reason"]) == (409, "no_room")
    await stream.aclose()
    for one in processes:
        with suppress(asyncio.CancelledError):
            await one.stop()


async def test_other_replicas_are_not_asked(server):
    class Elsewhere:
        async def answer(self, request):
            raise AssertionError("cells are on one machine")

    server.service.elsewhere.append(Elsewhere())
    assert (await server.get()).status_code == 404

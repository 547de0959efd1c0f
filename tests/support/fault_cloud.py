"""A cloud made of recordings of the real one, that breaks wherever it is told to."""

from __future__ import annotations

import asyncio
import json
import zlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs, urlsplit

import numpy as np

from pdd_core.kv.frames import END, header
from pdd_core.kv.geometry import PIECE_TOKENS, KVGeometry
from pdd_core.kv.pieces import pieces_between
from pdd_core.patience import Patience

STREAM_FAULTS = (
    *("cut", "truncated", "garbage", "silent", "error event", "early DONE", "aborted", "slow"),
    *("repeated", "dropped", "byte order mark"),
)
"""What can happen instead of an event, or before it."""
ANSWER_FAULTS = ("refused", "401", "404", "429", "500", "503", "no sse", "garbage")
"""What can happen instead of a stream."""
CELLS_FAULTS = ("cut", "truncated", "corrupt", "reordered", "stalled", "slow", "refused")
"""What can happen instead of a frame of cells, or before it."""
CANCEL_FAULTS = ("cut", "500", "silent", "garbage")
PATIENCE = Patience(
    first_token_s=20.0,
    cloud_silence_s=20.0,
    cloud_prefill_s=20.0,
    device_step_s=30.0,
    retry_delay_s=0.01,
    late_s=0.03,
)
"""Long where a slow machine could be mistaken for a fault."""
_SILENT = {"first_token_s": 0.8, "cloud_silence_s": 0.8, "cloud_prefill_s": 1.5}


def patience(fault, ready, *, hung):
    """Short for what a case is about, which has to be waited for; a device that is never ready hangs so long."""
    short = (_SILENT if fault.kind == "silent" else {}) | ({"device_step_s": hung} if ready == "never" else {})
    return replace(PATIENCE, **short)


@dataclass
class PackedCells:
    """A prompt's cells as the real cloud packed them: payloads by (part, first position)."""

    geometry: KVGeometry
    payloads: dict

    def frames(self, start, end):
        """The frames of a stream from `end` back to `start`, as bytes."""
        for piece in pieces_between(start, end):
            whole = piece.start // PIECE_TOKENS * PIECE_TOKENS
            for number, part in enumerate(self.geometry.parts):
                payload = self.payloads[number, whole]
                tokens = len(payload) // self.geometry.part_bytes(number)
                layers = np.frombuffer(payload, dtype=np.uint8).reshape(part.num_layers, -1)
                split = tokens * part.num_heads * self.geometry.key_type.row_bytes(self.geometry.head_size)
                wanted = slice(piece.start - whole, piece.end - whole)
                cut = [
                    rows.reshape(part.num_layers, tokens, -1)[:, wanted].reshape(part.num_layers, -1)
                    for rows in (layers[:, :split], layers[:, split:])
                ]
                data = np.concatenate(cut, axis=1).tobytes()
                yield header(number, piece.start, piece.tokens, zlib.crc32(data)) + data
        yield END


@dataclass
class Recording:
    """One answer of the real cloud: its prompt, and the events it streamed, one token each."""

    prompt: tuple
    events: list
    cells: PackedCells | None = None
    ids: list = field(init=False)

    def __post_init__(self):
        self.ids = [event["choices"][0]["token_ids"][0] for event in self.events]

    def leg(self, start, budget, max_tokens):
        """The events of a request that begins at token `start`, as the plugin would end it."""
        count = min(budget or max_tokens, max_tokens)
        events = [json.loads(json.dumps(event)) for event in self.events[start : start + count]]
        for number, event in enumerate(events, 1):
            event["usage"] = {"prompt_tokens": 1, "completion_tokens": number, "total_tokens": 1 + number}
        last = events[-1]["choices"][0]
        if last["finish_reason"] is None:
            last["finish_reason"] = "length"
            last["stop_reason"] = "pdd_handoff" if count < max_tokens else None
        return events


@dataclass
class Fault:
    """Happens once, when token `at` of the answer would be sent; `later` says what further requests meet.

    Not before request number `leg`, and instead of its stream in that one.
    """

    kind: str | None = None
    at: int = 0
    later: str | None = None
    cancel: str | None = None
    leg: int = 1
    cells: str | None = None
    """Instead of all this: what happens to the stream of cells, when its frame number `at` would be sent."""
    happened: bool = False


class FaultCloud:
    """Serves recordings over real HTTP on 127.0.0.1. A request's `cache_salt` says which fault it gets.

    `inline`: it tells of its handoffs inside the stream. `routes` False: a router is before it that knows OpenAI's
    paths only, so that it is asked by POST.
    """

    def __init__(self, info, recordings, *, inline=True, routes=True):
        kept = [name for name in info["features"] if name not in ("inline", "by_post")]
        info = {**info, "features": [*kept, *(["inline"] if inline else ()), "by_post"]}
        self._info = json.dumps(info).encode()
        self._routes = routes
        self.asked: list = []
        """Questions that came by POST."""
        self._model = info["model"]
        self._recordings = {recording.prompt: recording for recording in recordings}
        self.faults: dict[str, Fault] = {}
        self.posts: dict[str, int] = {}
        self._handoffs: dict[str, Fault] = {}
        self._prompts: dict[str, tuple] = {}
        self.cells_asked: list = []
        """(first position, position behind the last one) of each stream of cells."""
        self.url = ""

    @asynccontextmanager
    async def running(self):
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        try:
            yield self
        finally:
            server.close()

    async def _handle(self, reader, writer):
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, Cut):
            pass
        finally:
            writer.transport.abort()

    async def _one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        method, path, _ = head.split("\r\n", 1)[0].split(" ")
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if "/pdd/" in path and not self._routes:
            return await answer(writer, 404, b'{"detail": "Not Found"}')
        if path.endswith("/pdd/info"):
            return await answer(writer, 200, self._info)
        if path.endswith("/pdd/vocabulary?start=1"):
            return await answer(writer, 200, b'{"start": 1, "tokens": []}')
        if path.endswith("/models"):
            return await answer(writer, 200, json.dumps({"data": [{"id": self._model}]}).encode())
        if "/kv?" in path:
            return await self._cells(writer, path)
        if method == "delete":
            return await self._cancelled(writer, path.rsplit("/", 1)[1].partition("?")[0])
        request = json.loads(body)
        xargs = request["vllm_xargs"]
        if "pdd_handoff" not in xargs:
            self.asked.append(xargs)
            if "pdd_info" in xargs:
                return await answer(writer, 200, self._info)
            return await self._cancelled(writer, xargs["pdd_cancel"])
        key = request["cache_salt"]
        fault = self.faults[key]
        self._handoffs[request["vllm_xargs"]["pdd_handoff"]] = fault
        self._prompts[request["vllm_xargs"]["pdd_handoff"]] = tuple(request["prompt"])
        self.posts[key] = self.posts.get(key, 0) + 1
        return await self._complete(writer, fault, request, number=self.posts[key])

    async def _cancelled(self, writer, handoff_id):
        fault = self._handoffs.get(handoff_id)
        if fault is not None and fault.cancel is not None:
            return await self._cancel_fails(writer, fault.cancel)
        return await answer(writer, 200, json.dumps({"id": handoff_id, "confirmed": True}).encode())

    @staticmethod
    async def _cancel_fails(writer, kind):
        if kind == "cut":
            raise Cut
        if kind == "silent":
            await asyncio.sleep(30)
        if kind == "garbage":
            return await answer(writer, 200, b'{"cut": ')
        return await answer(writer, 500, b'{"error": {"message": "no", "code": 500}}')

    async def _cells(self, writer, path):
        """Stream cells; a fault in them is that of the answer's, `at` the number of a frame."""
        handoff_id, query = path.split("/")[-2], parse_qs(urlsplit(path).query)
        fault, cells = self._handoffs[handoff_id], self._recordings[self._prompts[handoff_id]].cells
        start, end = int(query.get("from", ["0"])[0]), int(query["to"][0])
        self.cells_asked.append((start, end))
        frames = list(cells.frames(start, end))
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.pdd.kv\r\nTransfer-Encoding: chunked\r\n\r\n"
        for number, frame in enumerate(frames):
            data = frame
            if fault.cells is not None and not fault.happened and number == min(fault.at, len(frames) - 1):
                fault.happened = True
                if fault.cells == "refused":
                    return await answer(writer, 503, b'{"error": {"message": "ask again", "code": 503}}')
                data = await self._break_cells(writer, head if not number else b"", fault.cells, frames, number)
            if not number:
                writer.write(head)
            await send(writer, data)
        writer.write(b"0\r\n\r\n")
        return True

    @staticmethod
    async def _break_cells(writer, head, kind, frames, number):
        match kind:
            case "cut":
                raise Cut
            case "truncated":
                writer.write(head)
                await send(writer, frames[number][: len(frames[number]) // 2])
                raise Cut
            case "corrupt":
                return frames[number][:-1] + bytes([frames[number][-1] ^ 4])
            case "reordered":
                return frames[(number + 1) % len(frames)]
            case "stalled":
                writer.write(head)
                await send(writer, frames[number][:10])
                await asyncio.sleep(30)
            case "slow":
                await asyncio.sleep(0.05)
        return frames[number]

    async def _complete(self, writer, fault, request, *, number):
        if fault.kind in ANSWER_FAULTS and number == fault.leg:
            fault.happened = True
            return await self._refuse(writer, fault.kind)
        if number > fault.leg and fault.later == "down":
            raise Cut
        prompt = tuple(request["prompt"])
        recording = next(r for p, r in self._recordings.items() if prompt[: len(p)] == p)
        start = len(prompt) - len(recording.prompt)
        assert list(prompt[len(recording.prompt) :]) == recording.ids[:start], "went on from another answer"
        assert not (start and request["frequency_penalty"]), "the penalty begins anew"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        xargs = request["vllm_xargs"]
        budget = xargs.get("pdd_decode_budget")
        events = recording.leg(start, budget, request["max_tokens"])
        for position, event in enumerate(events, start):
            if position == start + 1:
                await send(writer, update(xargs, "running", tokens=len(events)))
            data = f"data: {json.dumps(event)}\n\n".encode()
            due = position == fault.at and number >= fault.leg and not fault.happened
            if fault.kind in STREAM_FAULTS and due:
                fault.happened = True
                await self._break(writer, fault.kind, data)
                if fault.kind == "dropped":
                    continue
            await send(writer, data)
            await asyncio.sleep(0.001)
        await send(writer, update(xargs, "handed_off", tokens=len(events)))
        await send(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        return True

    @staticmethod
    async def _refuse(writer, kind):
        if kind == "refused":
            raise Cut
        if kind == "no sse":
            return await answer(writer, 200, b"<html>a captive portal</html>")
        if kind == "garbage":
            return await answer(writer, 200, b'{"cut": ')
        return await answer(writer, int(kind), b'{"error": {"message": "no", "code": %s}}' % kind.encode())

    @staticmethod
    async def _break(writer, kind, data):
        match kind:
            case "cut":
                raise Cut
            case "truncated":
                await send(writer, data[: len(data) // 2])
                raise Cut
            case "garbage":
                await send(writer, b'data: {"choices": [{"te\xff\xfe\n\n')
            case "silent":
                await asyncio.sleep(30)
            case "error event":
                await send(writer, b'data: {"error": {"message": "EngineCore", "code": 500}}\n\n')
                raise Cut
            case "early DONE":
                await send(writer, b"data: [DONE]\n\n")
                raise Cut
            case "aborted":
                choice = {"index": 0, "text": "", "token_ids": [], "finish_reason": "abort"}
                event = {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
                await send(writer, f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode())
                raise Cut
            case "slow":
                await asyncio.sleep(0.03)
            case "repeated":
                await send(writer, data)
            case "byte order mark":  # belongs before the first event only
                await send(writer, b"\xef\xbb\xbf")


class Cut(Exception):
    """The connection is to break off here."""


def update(xargs, status, *, tokens):
    """The event that tells of the handoff; nothing if that was not asked for."""
    if not xargs.get("pdd_inline"):
        return b""
    told = {"handoff_id": xargs["pdd_handoff"], "request_id": "c", "status": status}
    told["decode_budget"] = {"tokens": tokens, "set_by": "client"}
    return f"data: {json.dumps({'id': 'c', 'choices': [], 'pdd': told})}\n\n".encode()


async def send(writer, data):
    if not data:
        return  # a chunk of nothing would end the stream
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


async def answer(writer, status, body):
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n".encode())
    writer.write(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    return True

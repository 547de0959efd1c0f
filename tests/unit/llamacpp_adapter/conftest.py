"""Fakes of both engines. Each makes the same answer: every token is the one before it plus one."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import anyio
import numpy as np
import pytest
from step_by_step import StepByStep

from pdd_core.errors import CloudUnreachable, ContextOverflow, DeviceEngineFailed
from pdd_core.plugins import Policies
from pdd_core.policies.pacing import FixedRatePacing
from pdd_core.sampling_defaults import DefaultSamplingParams
from pdd_core.timeline import TokenLogprob, TokenLogprobs
from pdd_llamacpp_adapter.cloud.cloud_stream import CloudChunk, CloudEnd
from pdd_llamacpp_adapter.engine.hardware.placement import Placement
from pdd_llamacpp_adapter.engine.history import held_of

N_VOCAB = 1000
EOS = 999


@pytest.fixture
def anyio_backend():
    return "asyncio"


class FakeVocabulary:
    eos_id = EOS
    stop_ids = frozenset({EOS})
    size = N_VOCAB
    raw_tokens = [f"<{token}>" for token in range(N_VOCAB)]  # noqa: RUF012
    token_bytes = [text.encode() for text in raw_tokens]  # noqa: RUF012

    def piece(self, token):
        return b"" if token == EOS else f"<{token}>".encode()

    def is_special(self, token):
        return token == EOS

    def spelt(self, token):
        return "<|end|>" if token == EOS else f"<{token}>"


@dataclass
class FakeEngine(StepByStep):
    """Takes `seconds` per call and fails at call number `fails_at`."""

    seconds: float = 0.0
    fails_at: int | None = None
    ends_at: int = N_VOCAB
    """The device's answer ends after this token."""
    n_ctx: int = 512
    vocab: FakeVocabulary = field(default_factory=FakeVocabulary)
    held: list = field(default_factory=list)
    calls: list = field(default_factory=list)
    aborted: bool = False
    likelihoods: list = field(default_factory=lambda: [-0.1])
    """What it makes of the cloud's tokens, in turn; the last one again and again."""
    judged: list = field(default_factory=list)
    history: object = None
    sampling_defaults: DefaultSamplingParams = field(default_factory=DefaultSamplingParams)
    placement: Placement = field(default_factory=lambda: Placement("CPU", (), 0, 0))
    threads: tuple = (1, 1)

    begun: list = field(default_factory=list)
    """Per answer: whether it was to go on behind a refined history."""

    async def start(self, prompt, *, refined=True):
        """Keep what `held` has of the prompt, as the engine does; nothing by default."""
        self.begun.append(refined)
        found = held_of(prompt, self.held, self.history if refined else None)
        del self.held[found.length :]
        self.history = found.history
        return found.covered

    async def rewind(self, length):
        await anyio.lowlevel.checkpoint()
        del self.held[length:]
        if self.history is not None and length < len(self.history.ids):
            self.history = None
        return length

    async def judge(self, ids, following, *, want_logits=False):
        logits = await self.extend(ids, want_logits=want_logits)
        assert [seen.token for seen in following.values()] == [
            self.next_of(ids, index) or seen.token for index, seen in following.items()
        ]
        begun = len(self.judged)
        self.judged += [seen.token for seen in following.values()]
        return [
            self.likelihoods[min(i, len(self.likelihoods) - 1)] for i in range(begun, len(self.judged))
        ], logits

    @staticmethod
    def next_of(ids, index):
        return ids[index + 1] if index + 1 < len(ids) else None

    def remember(self, history):
        assert tuple(self.held[: len(history.ids)]) == history.ids
        self.history = history

    async def extend(self, ids, *, want_logits=False):
        try:
            await anyio.sleep(self.seconds)
        except BaseException:
            self.aborted = True
            raise
        if self.fails_at is not None and len(self.calls) >= self.fails_at:
            raise DeviceEngineFailed("llama_decode returned -3")
        if len(self.held) + len(ids) > self.n_ctx:
            raise ContextOverflow(f"{len(self.held)} + {len(ids)} tokens do not fit {self.n_ctx}")
        self.calls.append(list(ids))
        self.held.extend(ids)
        self.alone_s = self.seconds
        if not want_logits:
            return None
        logits = np.zeros(N_VOCAB, dtype=np.float32)
        logits[EOS if ids[-1] >= self.ends_at else ids[-1] + 1] = 9.0
        return logits


@dataclass
class FakeCloud:
    """Plays `script`: a number sleeps, a list of ids is sent, a `CloudEnd` ends
    (a pair of both is one chunk), an exception is raised, "goes on" finishes, a dict is told as an update if the
    leg has opted in, its handoff id filled in; of one with "raw", what is there instead. `later` are the scripts
    of further legs; behind them the cloud cannot be reached."""

    script: list
    later: list = field(default_factory=list)
    connect_error: Exception | None = None
    cancel_error: Exception | None = None
    eos_ids: tuple = (EOS,)
    cancel_timeout: float = 1.0
    opt_in: object = None
    cancelled: list = field(default_factory=list)
    closed: bool = False
    asked: list = field(default_factory=list)
    info: object = None
    """What it has told before this answer."""
    refines: str = "attention"
    refinement: object = None
    """What a look at the state finds, after `late` seconds: its refinement, or an exception."""
    late: float = 0.0
    prompt: tuple = ()
    info: object = None
    opt_ins: list = field(default_factory=list)
    looks: list = field(default_factory=list)
    used: list = field(default_factory=list)
    features: tuple = ("decode_budget", "budget_policies")

    async def connected(self, vocab):
        if self.connect_error is not None:
            raise self.connect_error
        tokenizer = SimpleNamespace(eos_ids=self.eos_ids)
        return SimpleNamespace(tokenizer=tokenizer, refinement=self.refines, features=self.features)

    async def handoff(self, handoff_id, *, wait):
        self.looks.append((handoff_id, wait))
        await anyio.sleep(self.late)
        if isinstance(self.refinement, Exception):
            raise self.refinement
        prompt = list(self.prompt or self.asked[0].prompt_token_ids)
        return SimpleNamespace(refinement=self.refinement, prompt_token_ids=prompt)

    async def stream(self, request, opt_in, *, on_update=None):
        self.opt_in = opt_in
        self.opt_ins.append(opt_in)
        self.asked.append(request)
        told = request.logprobs is not None

        def logprobs(ids):
            return tuple(TokenLogprobs(TokenLogprob(token, -0.1)) for token in ids) if told else ()

        scripts = [self.script, *self.later]
        if len(self.asked) > len(scripts):
            raise CloudUnreachable("no connection")
        try:
            for step in scripts[len(self.asked) - 1]:
                await anyio.lowlevel.checkpoint()
                match step:
                    case int() | float():
                        await anyio.sleep(step)
                    case anyio.Event():
                        await step.wait()
                    case list():
                        text = "".join(f"[{i}]" for i in step)
                        yield CloudChunk(tuple(step), text, None, logprobs(step))
                    case (ids, end):
                        yield CloudChunk(tuple(ids), "", end, logprobs(ids))
                    case Exception():
                        raise step
                    case dict():
                        if on_update is not None:
                            on_update(step.get("raw", {"handoff_id": opt_in.handoff_id, **step}))
                    case "goes on":
                        first, count = request.prompt_token_ids[-1] + 1, request.max_tokens
                        yield CloudChunk(tuple(range(first, first + count)), "", CloudEnd.LENGTH)
                    case end:
                        yield CloudChunk((), "", end)
        finally:
            self.closed = True

    async def cancel(self, handoff_id, *, used=None):
        await anyio.sleep(0.01)
        self.used.append(used)
        self.cancelled.append(handoff_id)
        if self.cancel_error is not None:
            raise self.cancel_error
        return True


@pytest.fixture
def fake_engine():
    return FakeEngine


@pytest.fixture
def fake_cloud():
    return FakeCloud


@pytest.fixture
def policies():
    return Policies({"fixed-rate": FixedRatePacing()}, allow=())


def event(data) -> bytes:
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


@dataclass
class Sse:
    """Makes the events of one stream, as vLLM counts them."""

    BREAK: object
    WAIT: object
    DONE: bytes = event("[DONE]")
    count: int = 0
    """Tokens so far."""

    event = staticmethod(event)

    def chunk(self, ids, *, text="t", finish=None, stop=None, logprobs=None) -> bytes:
        choice = {"index": 0, "text": text, "token_ids": ids, "finish_reason": finish, "stop_reason": stop}
        if logprobs is not None:
            choice["logprobs"] = logprobs
        self.count += len(ids) if isinstance(ids, list) else 0
        usage = {"prompt_tokens": 3, "completion_tokens": self.count, "total_tokens": 3 + self.count}
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
        return event({**head, "choices": [choice], "usage": usage})


@dataclass
class FakeServer:
    """HTTP on 127.0.0.1, one answer per (method, path): (status, body).

    A list body is streamed piece by piece, bytes are sent as they are. A third item is further lines of the head.
    An answer may be a function of the request's body.
    """

    answers: dict
    requests: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    """Of each request, by names in small letters."""
    url: str = ""

    async def handle(self, reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path, _ = head.split("\r\n", 1)[0].split(" ")
            length = next((int(x.split(":")[1]) for x in head.lower().split("\r\n") if "content-length" in x), 0)
            body = await reader.readexactly(length)
            self.requests.append((method, path, json.loads(body) if body else None))
            lines = [line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line]
            self.headers.append({name.lower(): text for name, text in lines})
            found = self.answers.get((method, path), (404, {"error": {"message": "no", "code": 404}}))
            status, answer, *more = found(json.loads(body)) if callable(found) else found
            kind = "text/event-stream" if isinstance(answer, list) else "application/json"
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nConnection: close\r\n".encode())
            writer.write("".join(f"{line}\r\n" for line in more).encode())
            if isinstance(answer, list):
                await self._stream(writer, answer)
            else:
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                writer.write(f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
            await writer.drain()
        finally:
            writer.close()

    @staticmethod
    async def _stream(writer, pieces):
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            if piece is BREAK:
                return
            if piece is WAIT:
                await asyncio.sleep(600)
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")


BREAK = object()
WAIT = object()


@pytest.fixture
async def serve():
    """Start a fake server for `answers`; returns it, with its base URL."""
    servers = []

    async def start(answers):
        fake = FakeServer({(m, f"/v1{p}"): a for (m, p), a in answers.items()})
        server = await asyncio.start_server(fake.handle, "127.0.0.1", 0)
        servers.append(server)
        fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        return fake

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def sse():
    return Sse(BREAK, WAIT)

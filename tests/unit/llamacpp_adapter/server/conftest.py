"""A runtime whose answers are scripts, and clients of the server over it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property

import anyio
import openai
import pytest
from starlette.testclient import TestClient

from pdd_core.errors import InvalidGrammar, PDDError
from pdd_core.planner.types import Alternative, Plan, Verdict, Why
from pdd_core.sampling_defaults import DefaultSamplingParams
from pdd_core.timeline import ShownToken, Source, Timeline, TokenLogprob, TokenLogprobs
from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
from pdd_llamacpp_adapter.server.answers.http_limits import HttpLimits
from pdd_llamacpp_adapter.server.answers.service import Service
from pdd_llamacpp_adapter.server.app import create_app
from pdd_llamacpp_adapter.server.run import serve
from pdd_llamacpp_adapter.session.outcome import AnswerPlan, Mode, Outcome

EOS = 256
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}<assistant>"
)


PLAN = Plan(
    Verdict.HANDOFF,
    decode_budget=24,
    why=Why(
        "the cheapest plan that keeps the goals",
        {"prompt_tokens": 900, "rate": float("inf")},
        (
            Alternative(verdict=Verdict.CLOUD_ONLY, cost=1234.56, ttft_s=0.15),
            Alternative(
                verdict=Verdict.HANDOFF, decode_budget=24, cost=300.0, stall_probability=0.0098, ttft_s=0.15
            ),
            Alternative(verdict=Verdict.DEVICE_ONLY, ttft_s=2.0, rejected="begins only after 2 s"),
        ),
    ),
)


LEARNT = {
    "device": [
        {"prompt_tokens": 128, "prefill_tps": {"mean": 80.0, "sd": 8.0}, "decode_tps": {"mean": 20.0, "sd": 2.0}}
    ],
    "cloud": {
        "ttft_s": [{"prompt_tokens": 128, "mean": 0.4, "sd": 0.1}],
        "tpot_s": {"mean": 0.03, "sd": 0.01},
        "rtt_s": {"mean": 0.05, "sd": 0.01},
        "link_bps": None,
    },
    "answer_tokens": 220.0,
}


class ByteVocabulary:
    """Every byte is a token; 256 is a control token."""

    size = 257
    infill_ids = None

    @cached_property
    def chat_template(self):
        return ChatTemplate(TEMPLATE, bos="", eos="<|end|>")

    @property
    def raw_tokens(self):
        return [chr(token) for token in range(256)] + ["<|end|>"]

    def tokenize(self, text, *, special=False, add_bos=False, most=None):
        return list(text.encode())

    def render_chat(self, messages, *, tools=None, most=None, **variables):
        return self.tokenize(self.chat_template.render(messages, tools=tools, **variables))

    def piece(self, token_id):
        return bytes([token_id]) if token_id < 256 else b""


@dataclass
class FakeSession:
    """Plays `script`: a string is a token, a pair a token and the text it shows, a number a pause, a function is
    awaited, an exception raised.

    Ends with `finish_reason`.
    """

    request: object
    script: list
    finish_reason: str = "stop"
    stop_reason: str | None = None
    withheld: str = ""
    refuses: PDDError | None = None
    from_cloud: int = 2
    cloud_error: str | None = None
    ahead: int = 0
    """So many tokens are received before the first is shown."""
    tokens: list = field(default_factory=list)
    left: bool = False
    ended: bool = False

    async def __aenter__(self):
        await anyio.lowlevel.checkpoint()
        if self.refuses is not None:
            raise self.refuses
        return self

    async def __aexit__(self, *_):
        self.left = True

    async def __aiter__(self):
        for step in self.script[: self.request.max_tokens]:
            match step:
                case str():
                    yield self._token(step)
                case (token, text):
                    yield self._token(text, token.encode()[0] if isinstance(token, str) else token)
                case int() | float():
                    await anyio.sleep(step)
                case Exception():
                    raise step
                case _:
                    await step()
        self.ended = True

    def _token(self, text, token_id=None):
        index = len(self.tokens)
        logprobs = None
        if token_id is None:
            token_id = text.encode()[0] if text else EOS
        if self.request.logprobs is not None:
            top = tuple(TokenLogprob(token_id + k, -0.5 - k) for k in range(self.request.logprobs))
            logprobs = TokenLogprobs(TokenLogprob(token_id, -0.5), top)
        source = Source.CLOUD if index < self.from_cloud else Source.DEVICE
        token = ShownToken(index, token_id, text, source, 0.1 * index, 0.1 * index, logprobs)
        self.tokens.append(token)
        return token

    @property
    def received_at(self):
        ahead = [0.1 * index for index in range(len(self.tokens), self.ahead)]
        return [token.received_at for token in self.tokens] + ahead

    @property
    def tail(self):
        return self.withheld if self.ended else ""

    @property
    def outcome(self):
        return Outcome(
            mode=Mode.HANDOFF,
            finish_reason=self.finish_reason if self.ended else "cancelled",
            timeline=Timeline(list(self.tokens)),
            prompt_tokens=len(self.request.prompt_token_ids),
            decode_budget=self.request.decode_budget,
            handoff_id="0123456789abcdef",
            caught_up_at=0.1,
            took_over_at=0.2 if len(self.tokens) > self.from_cloud else None,
            cloud_tokens_in_vain=1,
            cloud_error=self.cloud_error,
            cancel_confirmed=True,
            reused_tokens=3,
            stop_reason=self.stop_reason,
            plan=AnswerPlan(PLAN, "planner"),
        )


class FakeRuntime:
    """Answers every request with `script`."""

    model_name = "tiny"
    created = 1_700_000_000
    n_ctx = 4096
    refines = True
    refuses_grammars = False
    session_header = "X-Session-ID"
    defaults = DefaultSamplingParams()

    def __init__(self, script=("Hel", "lo", " you"), **session):
        self.vocab = ByteVocabulary()
        self.script = script
        self.options = session
        self.sessions = []
        self.paced = []
        self.groups = []

    def context_limit(self):
        return self.n_ctx

    def default_max_tokens(self, prompt_tokens):
        return self.n_ctx - prompt_tokens

    def sampling_defaults(self):
        return self.defaults

    def cloud_status(self):
        return {"url": None, "state": "none", "way": None, "error": None}

    def learnt(self):
        return LEARNT

    def check_grammar(self, request):
        if request.grammar is not None and self.refuses_grammars:
            raise InvalidGrammar("no such thing", param=request.grammar.param)
        return request

    def session(self, request, *, paced=True, group=""):
        self.sessions.append(FakeSession(request, list(self.script), **self.options))
        self.paced.append(paced)
        self.groups.append(group)
        return self.sessions[-1]


@pytest.fixture(scope="session")
def fake_runtime():
    return FakeRuntime


@pytest.fixture
def service():
    """Make a service over a scripted runtime."""

    def make(script=("Hel", "lo", " you"), *, runtime=None, loaded=True, session=None, **settings):
        runtime = runtime or FakeRuntime(script, **(session or {}))
        return Service(HttpLimits(**settings), runtime if loaded else None)

    return make


@pytest.fixture
def client():
    """Make an HTTP client of a service, without a socket."""
    clients = []

    def make(service, **options):
        clients.append(TestClient(create_app(service), **options))
        return clients[-1]

    yield make
    for made in clients:
        made.close()


@pytest.fixture
def served():
    """Run a service on a real socket; yields a stock openai client of it."""

    @asynccontextmanager
    async def run(service, *, api_key="none", grace=0.0, max_retries=0):
        started = anyio.Event()
        urls = []

        def on_started(url):
            urls.append(url)
            started.set()

        async def main():
            await serve(service, port=0, grace=grace, on_started=on_started)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(main)
            await started.wait()
            async with openai.AsyncOpenAI(
                base_url=urls[0] + "/v1", api_key=api_key, max_retries=max_retries
            ) as client:
                yield client
            tasks.cancel_scope.cancel()

    return run


@pytest.fixture
def until():
    """Wait for a condition, with patience for slow machines only."""

    async def wait(condition):
        with anyio.fail_after(60):
            while not condition():
                await anyio.sleep(0.005)

    return wait

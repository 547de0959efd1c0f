"""A cloud that says what no cloud should costs an answer the cloud's part, not the answer, nor the server."""

from __future__ import annotations

import json
import math

import anyio
import pytest

from pdd_core.fingerprint import fingerprint
from pdd_core.handoff import SCHEMA_VERSION
from pdd_core.patience import Patience
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
from pdd_llamacpp_adapter.cloud.cloud_monitor import CloudMonitor, Connection
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.session.answer_session import AnswerSession

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

PROMPT = (1, 2, 3)
IDS = list(range(4, 24))
"""What either engine makes: each token is the one before it plus one."""
DEEP = b"[" * 100_000 + b"]" * 100_000
NO_ID = 2**63


@pytest.fixture
def anyio_backend():
    """Sockets take real time."""
    return "asyncio"


def info(**changes):
    table = [f"<{token}>".encode() for token in range(1000)]
    return {
        "schema_version": SCHEMA_VERSION,
        "plugin_version": "0.1.0",
        "engine": "vllm",
        "model": "m",
        "max_model_len": 2048,
        "tokenizer": json.loads(fingerprint(table, special_ids=(999,), eos_ids=(999,)).model_dump_json()),
        "features": ["decode_budget", "budget_policies"],
        "refinement": "off",
        "limits": {"max_decode_budget": 256, "max_handoffs": 64, "ttl_s": 60.0, "cancel_timeout_s": 3.0},
        **changes,
    }


LIMITS = info()["limits"]
INFOS = {
    "nested": b'{"schema_version": "2.0", "x": ' + DEEP + b"}",
    "no end of a number": json.dumps(info(limits={**LIMITS, "cancel_timeout_s": math.nan})).encode(),
    "an endless cancel": json.dumps(info(limits={**LIMITS, "cancel_timeout_s": math.inf})).encode(),
    "a surrogate in the name": json.dumps(info(model="\ud800")).encode(),
    "ends with no id": json.dumps(info(tokenizer={**info()["tokenizer"], "eos_ids": [999, NO_ID]})).encode(),
    "controls with no id": json.dumps(
        info(tokenizer={**info()["tokenizer"], "special_ids": [999, NO_ID]})
    ).encode(),
    "a context without end": json.dumps(info(max_model_len=10**400)).encode(),
}


def likelihoods(value):
    return {"tokens": ["token_id:5"], "token_logprobs": [value], "top_logprobs": [{"token_id:5": value}]}


STREAMS = {
    "an id beyond a C long": lambda sse: sse.chunk([NO_ID]),
    "an id beyond a C int": lambda sse: sse.chunk([2**31]),
    "an id beyond the vocabulary": lambda sse: sse.chunk([1000]),
    "a likelihood that is no number": lambda sse: sse.chunk([5], logprobs=likelihoods(math.nan)),
    "an infinite likelihood": lambda sse: sse.chunk([5], logprobs=likelihoods(-math.inf)),
    "a likelihood beyond numbers": lambda sse: b'data: {"choices": [{"token_ids": [5], "logprobs": 1e999}]}\n\n',
    "nested": lambda sse: b"data: " + DEEP + b"\n\n",
    "a surrogate": lambda sse: sse.chunk([5], text="\ud800"),
    "too large a count": lambda sse: sse.event({"choices": [], "usage": {"completion_tokens": 10**400}}),
}


async def answered(client, engine, **fields):
    """The answer's ids, and what became of it. The device begins once the cloud is lost."""
    lost = anyio.Event()
    start = engine.start

    async def start_later(prompt, *, refined=True):
        await lost.wait()
        return await start(prompt, refined=refined)

    engine.start = start_later
    request = AnswerRequest(prompt_token_ids=PROMPT, max_tokens=len(IDS), decode_budget=8, **fields)
    with anyio.fail_after(60):
        async with AnswerSession(
            request,
            engine=engine,
            cloud=client,
            rate=math.inf,
            patience=Patience(cloud_retries=0),
            on_cloud_error=lambda _: lost.set(),
        ) as answer:
            shown = [token async for token in answer]
    json.dumps([token.logprobs and token.logprobs.chosen.logprob for token in shown], allow_nan=False)
    return [token.token_id for token in shown], answer.outcome


@pytest.mark.parametrize("name", INFOS)
async def test_what_a_cloud_says_of_itself_costs_nothing_but_the_cloud(serve, sse, fake_engine, name):
    routes = {
        ("GET", "/pdd/info"): (200, INFOS[name]),
        ("POST", "/completions"): (200, [sse.chunk([4], finish="stop"), sse.DONE]),
    }
    engine = fake_engine()
    async with CloudClient((await serve(routes)).url) as client:
        ids, outcome = await answered(client, engine)
        assert ids == IDS
        assert outcome.cloud_error.startswith(("CloudRefused: ", "TokenizerMismatch: "))
        outcome.cloud_error.encode()
        monitor = CloudMonitor(client, engine.vocab)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(monitor.run)
            with anyio.fail_after(60):
                while monitor.connection is Connection.CONNECTING:
                    await anyio.sleep(0.01)
            assert monitor.connection is Connection.DOWN
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("name", STREAMS)
async def test_what_a_cloud_streams_costs_nothing_but_the_cloud(serve, sse, fake_engine, name, place):
    begun = [sse.chunk([token], logprobs=likelihoods(-0.5)) for token in IDS[:place]]
    routes = {
        ("GET", "/pdd/info"): (200, info()),
        ("POST", "/completions"): (200, [*begun, STREAMS[name](sse), sse.DONE]),
    }
    async with CloudClient((await serve(routes)).url) as client:
        ids, outcome = await answered(client, fake_engine(), logprobs=1)
    assert ids == IDS
    assert outcome.timeline.count(Source.CLOUD) == place
    assert outcome.cloud_error.startswith("CloudLost: ")

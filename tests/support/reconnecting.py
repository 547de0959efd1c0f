"""Clients that ask for streams, leave them, come back, read each other's and stop them, all at once.

For property tests: `scripts` draws what each client does, `play` does it over a server and checks the answers.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import combinations

import anyio
import httpx2
from hypothesis import strategies as st

PATIENCE_S = 120.0
"""For slow machines only: what is not there then never comes."""
CHAT = "/v1/chat/completions"
NAMES = ("talk-a", "talk-b", "a/b::model")
"""Few, so that clients meet."""
END = b"data: [DONE]\n\n"
REFUSALS = {400, 404, 409, 429}
_ID = re.compile(rb'"id":"(chatcmpl-\w+)"')
_ODD = (
    st.none()
    | st.booleans()
    | st.integers(-5, 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.just([])
    | st.just({})
)

PDD = st.fixed_dictionaries(
    {},
    optional={
        "tokens": st.booleans(),
        "rate": st.sampled_from(["auto", "unlimited", 200, 1e6]),
        "plan": st.sampled_from(["auto", "off", "handoff", "cloud", "device"]),
        "refine": st.sampled_from(["off", "auto", 0.25, 1, "512 tokens", "2 s", "context"]),
    },
)
ODD_PDD = st.dictionaries(st.sampled_from(["tokens", "rate", "plan", "refine", "other"]), _ODD, max_size=3) | _ODD
BODY = st.fixed_dictionaries(
    {
        "messages": st.text("ab é\n{", min_size=1, max_size=30).map(
            lambda text: [{"role": "user", "content": text}]
        ),
        "max_tokens": st.integers(1, 12),
        "stream": st.sampled_from([True, True, True, False]),
    },
    optional={
        "pdd": PDD | PDD | ODD_PDD,
        "temperature": st.sampled_from([0, 0.7, 2]),
        "seed": st.integers(0, 9),
        "ignore_eos": st.booleans(),
        "stop": st.sampled_from(["e", " the", ["\n", "a"]]),
        "logprobs": st.booleans(),
        "frequency_penalty": st.sampled_from([0, 1.5]),
        "response_format": st.sampled_from([{"type": "json_object"}, {"type": "text"}]),
        "stream_options": st.just({"include_usage": True}),
    },
)
LEAVES = st.none() | st.integers(0, 6)
"""After so many pieces; None: stays to the end."""
STEP = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from([*NAMES, ""]), BODY, LEAVES),
    st.tuples(st.just("read"), st.sampled_from(NAMES), st.integers(0, 3000), LEAVES),
    st.tuples(st.just("come back"), st.none(), st.none(), LEAVES),
    st.tuples(st.just("delete"), st.sampled_from(NAMES), st.sampled_from([None, 0, 1]), st.none()),
    st.tuples(st.just("list"), st.sampled_from(NAMES), st.none(), st.none()),
)


def scripts(clients):
    """What so many clients do, each in its own order."""
    return st.lists(st.lists(STEP, min_size=1, max_size=5), min_size=clients, max_size=clients)


@dataclass
class Heard:
    """What came of which answer's stream, and from which byte on."""

    of: dict = field(default_factory=lambda: defaultdict(list))

    def add(self, place, data):
        ids = set(_ID.findall(data))
        assert len(ids) <= 1, "two answers in one stream"
        for one in ids:
            self.of[one].append((place, data))

    def check(self):
        """No two readers have heard different things in the same place."""
        for parts in self.of.values():
            for (place, data), (other, said) in combinations(parts, 2):
                begin, end = max(place, other), min(place + len(data), other + len(said))
                if begin < end:
                    assert data[begin - place : end - place] == said[begin - other : end - other]


class Client:
    """One client; `last` is where it was when it left a stream."""

    def __init__(self, http, heard):
        self.http, self.heard = http, heard
        self.last = (NAMES[0], 0)

    async def play(self, script):
        for what, name, detail, leaves in script:
            with anyio.fail_after(PATIENCE_S):
                match what:
                    case "ask":
                        await self._ask(name, detail, leaves)
                    case "read":
                        await self._read(name, detail, leaves)
                    case "come back":
                        await self._read(*self.last, leaves)
                    case "delete":
                        params = {} if detail is None else {"unless_read_s": detail}
                        assert (await self.http.delete(f"/v1/stream/{name}", params=params)).status_code == 204
                    case _:
                        told = await self.http.get("/v1/streams", params={"conversation_id": name})
                        assert told.status_code == 200
                        assert {one["conversation_id"] for one in told.json()} <= {name}

    async def _ask(self, name, body, leaves):
        # as Python writes it: not every float is JSON
        asked = self.http.stream(
            "POST", CHAT, content=json.dumps(body).encode(), headers={"X-Conversation-Id": name}
        )
        place = await self._hear(asked, 0, leaves)
        if name and place is not None:
            self.last = (name, place)

    async def _read(self, name, place, leaves):
        place = await self._hear(
            self.http.stream("GET", f"/v1/stream/{name}", params={"from": place}), place, leaves
        )
        if place is not None:
            self.last = (name, place)

    async def _hear(self, request, place, leaves):
        """Read a stream, and check it; returns the place of the next byte, or None where there is none."""
        data, left, pieces = b"", False, 0
        async with request as answer:
            if answer.status_code != 200:
                assert answer.status_code in REFUSALS, (answer.status_code, await answer.aread())
                assert json.loads(await answer.aread())["error"]["message"]
                return None
            if not answer.headers["content-type"].startswith("text/event-stream"):
                assert json.loads(await answer.aread())["choices"]
                return None
            async for piece in answer.aiter_raw():
                data += piece
                pieces += 1
                if left := pieces == leaves:
                    break
        if not left and data:
            assert END.endswith(data[-len(END) :])
        self.heard.add(place, data)
        return place + len(data)


async def play(url, script, headers=()):
    """Have the clients do what `script` says, all at once; then delete what is left, and wait for the end."""
    heard = Heard()
    async with httpx2.AsyncClient(base_url=url, headers=dict(headers), timeout=PATIENCE_S) as http:
        async with anyio.create_task_group() as tasks:
            for one in script:
                tasks.start_soon(Client(http, heard).play, one)
        heard.check()
        for name in NAMES:
            await http.delete(f"/v1/stream/{name}")
        with anyio.fail_after(PATIENCE_S):
            while not _idle((await http.get("/metrics")).text):
                await anyio.sleep(0.01)


def _idle(metrics):
    return "pdd_device_running 0.0" in metrics and "pdd_device_waiting 0.0" in metrics

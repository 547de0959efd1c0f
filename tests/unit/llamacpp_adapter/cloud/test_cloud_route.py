"""A device behind each kind of router asks in the way that gets through."""

from __future__ import annotations

import logging
from contextlib import ExitStack

import anyio
import pytest
from contract_cloud import FEATURES, ContractCloud
from narrow_router import KNOWN, NarrowRouter

from pdd_core.errors import CloudRefused, CloudUnreachable, TokenizerMismatch
from pdd_core.optin import OptIn
from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
from pdd_llamacpp_adapter.cloud.cloud_monitor import CloudMonitor, Connection
from pdd_llamacpp_adapter.cloud.cloud_route import Way
from pdd_llamacpp_adapter.request import AnswerRequest

pytestmark = pytest.mark.anyio

HANDOFF = "0123456789abcdef0123"
REQUEST = AnswerRequest(prompt_token_ids=[5, 6, 7], max_tokens=8, session="chat-1")
PLAIN = tuple(name for name in FEATURES if name not in ("inline", "by_post"))


@pytest.fixture
def clouds():
    """Start clouds, and a router before them."""
    with ExitStack() as stack:

        def start(count=1, router=None, **options):
            made = [stack.enter_context(ContractCloud(key="k", **options)) for _ in range(count)]
            if router is None:
                return made, f"{made[0].url}/v1"
            routed = stack.enter_context(NarrowRouter([one.url for one in made], **router))
            return made, f"{routed.url}/v1"

        yield start


class Vocabulary:
    eos_id = 999

    def __init__(self, **changed):
        self.token_bytes = [changed.get(f"t{token}", f"<{token}>".encode()) for token in range(1000)]

    def is_special(self, token_id):
        return token_id == 999


ROUTERS = {
    "none": (None, Way.ROUTES),
    "passes all": ({}, Way.ROUTES),
    "drops headers": ({"drops": "headers"}, Way.POST),
    "knows some routes": ({"routes": KNOWN}, Way.POST),
}


@pytest.mark.parametrize("name", ROUTERS)
async def test_a_handoff_is_read_and_cancelled_behind_each_router(clouds, name):
    router, way = ROUTERS[name]
    made, url = clouds(1 if router is None else 3, router)
    async with CloudClient(url, api_key="k") as client:
        info = await client.connect(Vocabulary())
        assert (info.model, client.route.way) == ("m", way)
        async for _ in client.stream(REQUEST, OptIn(HANDOFF, 4)):
            pass
        if name == "passes all":  # with three replicas behind it
            assert sum(HANDOFF in one.states for one in made) == 1
        assert (await client.handoff(HANDOFF, wait=0.5)).output_token_ids == [8, 9, 10, 11]
        assert await client.cancel(HANDOFF, used=2) is True
    assert all(one.states == {} for one in made)


async def test_a_router_that_needs_no_key_shows_by_its_lost_query(clouds):
    made, url = clouds(1, {"drops": "headers"})
    made[0].key = None
    async with CloudClient(url, api_key="k") as client:
        await client.connect()
        assert client.route.way is Way.POST


async def test_an_older_cloud_is_asked_by_its_routes_and_nothing_is_tried_on_it(clouds):
    [cloud], url = clouds(features=PLAIN)
    async with CloudClient(url, api_key="k") as client:
        await client.connect()
        assert client.route.way is Way.ROUTES
    assert [(one["method"], one["path"]) for one in cloud.seen] == [("GET", "/v1/pdd/info")]


async def test_what_was_found_is_remembered(clouds):
    [cloud], url = clouds(1, {"routes": KNOWN})
    async with CloudClient(url, api_key="k") as client:
        await client.connect()
        cloud.seen.clear()
        await client.connect()
    assert [(one["method"], one["path"]) for one in cloud.seen] == [("POST", "/v1/completions")]


async def test_a_router_that_is_gone_is_noticed(clouds):
    [cloud], url = clouds(1)
    async with CloudClient(url, api_key="k") as client:
        client.route.way = Way.POST
        cloud.features = PLAIN
        await client.connect()
        assert client.route.way is Way.ROUTES


async def test_another_vocabulary_is_told_by_post_too(clouds):
    _, url = clouds(1, {"routes": KNOWN})
    async with CloudClient(url, api_key="k") as client:
        with pytest.raises(TokenizerMismatch, match="token 700"):
            await client.connect(Vocabulary(t700=b"other"))


@pytest.mark.parametrize("router", [None, {"drops": "headers"}, {"routes": KNOWN}])
async def test_a_wrong_key_is_told_as_one(clouds, router):
    _, url = clouds(1, router)
    async with CloudClient(url, api_key="wrong") as client:
        with pytest.raises(CloudRefused) as caught:
            await client.connect(retries=0)
    # which routes there are, a router tells without a key
    assert caught.value.status == (404 if router == {"routes": KNOWN} else 401)
    assert "401" in str(caught.value)


@pytest.mark.parametrize(
    ("router", "says"),
    [
        (
            {"drops": "headers"},
            r"a router at .* refuses GET /v1/pdd/info .*401.*: update pdd-device there, or have",
        ),
        ({"routes": KNOWN}, "without the pdd plugin: .* If a router is between, it lets nothing through"),
    ],
)
async def test_where_neither_way_gets_through_both_are_told(clouds, router, says):
    _, url = clouds(1, router, features=PLAIN)
    async with CloudClient(url, api_key="k") as client:
        with pytest.raises(CloudRefused, match=says):
            await client.connect(retries=0)
        assert client.route.way is None


async def test_an_error_of_the_servers_is_no_router(serve):
    server = await serve({("GET", "/pdd/info"): (503, {"error": {"message": "starting"}})})
    async with CloudClient(server.url) as client:
        with pytest.raises(CloudRefused, match="starting"):
            await client.connect(retries=0)
    assert len(server.requests) == 1


async def test_a_router_whose_replicas_are_down_is_still_asked_by_post(serve):
    server = await serve({("POST", "/completions"): (503, {"error": {"message": "no worker"}})})
    async with CloudClient(server.url, model="m") as client:
        client.route.way = Way.POST
        with pytest.raises(CloudRefused, match="no worker"):
            await client.connect(retries=0)
        assert client.route.way is Way.POST
    assert [(method, path) for method, path, _ in server.requests] == [("POST", "/v1/completions")]


async def test_nobody_there_is_no_router():
    async with CloudClient("http://127.0.0.1:9/v1") as client:
        with pytest.raises(CloudUnreachable):
            await client.connect(retries=0)


async def test_a_replica_that_does_not_know_the_id_confirms_nothing(clouds):
    _, url = clouds(1, {"routes": KNOWN})
    async with CloudClient(url, api_key="k") as client:
        await client.connect()
        assert await client.cancel(HANDOFF) is False


async def test_the_monitor_says_how_the_cloud_is_asked(clouds, caplog):
    caplog.set_level(logging.INFO)
    _, url = clouds(1, {"routes": KNOWN})
    async with CloudClient(url, api_key="k") as client, anyio.create_task_group() as tasks:
        monitor = CloudMonitor(client, Vocabulary())
        assert monitor.way is None
        tasks.start_soon(monitor.run)
        with anyio.fail_after(60):
            while monitor.connection is Connection.CONNECTING:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert monitor.way is Way.POST
    assert "a router is between, so it is asked by POST" in caplog.text

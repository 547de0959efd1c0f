"""A real Valkey or Redis, and replicas that share it."""

import pytest
from fleet_replicas import Replica
from redis.asyncio import Redis
from store_server import StoreServer


@pytest.fixture(scope="session")
def shared_server():
    server = StoreServer()
    yield server
    server.remove()


@pytest.fixture
async def client(shared_server):
    """A client of the store that looks at what is in it; it is empty at first."""
    async with Redis.from_url(shared_server.url) as made:
        await made.flushall()
        yield made


@pytest.fixture
async def replica(shared_server, client):
    """Start a replica, by default at the session's store."""
    made = []

    async def start(url=shared_server.url, *, wait=True, **config):
        made.append(Replica(url, **config))
        if wait:
            await made[-1].up()
        return made[-1]

    yield start
    for one in made:
        await one.client.aclose()
        one.shared.stop()


@pytest.fixture
async def pair(replica):
    return await replica(), await replica()

"""Clients that come and go over a real server: no 5xx, no hang, and each byte once."""

import anyio
import pytest
from device_server import DeviceServer
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st
from reconnecting import play, scripts

SERVERS = [
    pytest.param(((), 3), id="as it is"),
    pytest.param((("--no-ui", "--max-streams", "1", "--api-key", "key"), 3), id="one stream, a key, no pages"),
]
"""Flags of the server, and how many clients there are at once."""


@pytest.fixture(scope="module", params=SERVERS)
def crowded(request, tmp_path_factory):
    """A server, and the number of its clients."""
    flags, clients = request.param
    key = flags[flags.index("--api-key") + 1] if "--api-key" in flags else None
    with DeviceServer(tmp_path_factory.mktemp("fuzz"), "--gguf", "demo", "--n-ctx", "512", *flags) as server:
        server.api_key = key
        yield server.ready(), clients
        assert "Traceback" not in server.log()


@examples(12)
@given(data=st.data())
def test_clients_that_come_and_go_hear_each_byte_once(crowded, data):
    server, clients = crowded
    anyio.run(play, server.root, data.draw(scripts(clients)), server.headers)
    assert server.process.poll() is None

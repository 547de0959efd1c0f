"""Clients that come and go over a real server: no 5xx, no hang, and each byte once."""

import anyio
import pytest
from device_server import DeviceServer
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from reconnecting import play, scripts

SERVERS = {
    "as it is": ((), {}, 3),
    "one stream, a key, no pages": (("--no-ui",), {"api_key": "key", "PDD_MAX_STREAMS": "1"}, 3),
    "four answers at once, with lookup": (("--parallel", "4", "--spec", "lookup", "--max-queue", "2"), {}, 8),
}
"""Flags and settings of the server, and how many clients there are at once."""


@pytest.fixture(scope="module", params=SERVERS.values(), ids=list(SERVERS))
def crowded(request, tmp_path_factory):
    """A server, and the number of its clients."""
    flags, chosen, clients = request.param
    flags = ("--gguf", "demo", "--n-ctx", "512", *flags)
    with DeviceServer(tmp_path_factory.mktemp("fuzz"), *flags, **chosen) as server:
        yield server.ready(), clients
        assert "Traceback" not in server.log()


# Each example takes a second. What fails is not made smaller: that takes hours, and clients do not meet each time.
@settings(max_examples=15, phases=[Phase.generate])
@given(data=st.data())
def test_clients_that_come_and_go_hear_each_byte_once(crowded, data):
    server, clients = crowded
    anyio.run(play, server.root, data.draw(scripts(clients)), server.headers)
    assert server.process.poll() is None

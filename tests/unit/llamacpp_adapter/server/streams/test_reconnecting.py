"""Whatever clients do at once that come and go: no 5xx, no hang, and everybody hears each byte once."""

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from example_count import examples
from hypothesis import given
from reconnecting import play, scripts

from pdd_llamacpp_adapter.server.answers.http_limits import HttpLimits
from pdd_llamacpp_adapter.server.answers.service import Service
from pdd_llamacpp_adapter.server.run import serve
from pdd_llamacpp_adapter.server.streams.kept_streams import StreamLimits

CLIENTS = 4


@pytest.fixture(scope="module", params=[1, 3])
def url(fake_runtime, request):
    """A server that makes so many answers at a time, and keeps two streams."""
    runtime = fake_runtime(["A", "", 0, "é", "<tool_call>", 0.001, "B", "{", "}"])
    limits = HttpLimits(max_running=request.param, keep_alive=0.002, streams=StreamLimits(count=2))
    made = Service(limits, runtime)

    async def main(*, task_status):
        await serve(made, port=0, grace=0, signals=False, on_started=task_status.started)

    with start_blocking_portal() as portal:
        running, url = portal.start_task(main)
        yield url
        assert not made._answers
        running.cancel()


@examples(40)
@given(script=scripts(CLIENTS))
def test_clients_that_come_and_go_hear_each_byte_once(url, script):
    anyio.run(play, url, script)

"""The server over scripted answers, and a browser before it."""

from __future__ import annotations

import anyio
import browser as browsers
import pytest
from anyio.from_thread import start_blocking_portal
from device_server import Forwarder, closed_port

from pdd_llamacpp_adapter.server.run import serve


@pytest.fixture(scope="module")
def chromium():
    # no longer than a module: Playwright's loop is the thread's, and other tests run loops of their own
    with browsers.browser() as made:
        yield made


@pytest.fixture
def portal():
    """The server's loop, in a thread of its own."""
    with start_blocking_portal() as made:
        yield made


@pytest.fixture
def visit(chromium, portal):
    """Serve a service, and open a browser before it; with `network`, what can be cut is between both."""
    served, visits, networks = [], [], []

    async def main(service, *, task_status):
        await serve(service, port=0, grace=0, signals=False, on_started=task_status.started)

    def make(service, *, network=False, **options):
        running, url = portal.start_task(main, service)
        served.append(running)
        if network:
            networks.append(Forwarder(closed_port(), int(url.rsplit(":", 1)[1])))
            networks[-1].open()
        seen = browsers.Visit(chromium, f"http://127.0.0.1:{networks[-1].port}" if network else url, **options)
        visits.append(seen)
        if network:
            seen.network = networks[-1]
        return seen

    yield make
    for one in visits:
        one.context.close()
    for each in networks:
        each.close()
    for running in served:
        running.cancel()


class Held:
    """A script's step that ends when the test says so."""

    def __init__(self, portal):
        self._portal = portal
        self._event = portal.call(anyio.Event)

    async def __call__(self):
        await self._event.wait()

    def let_go(self):
        self._portal.call(self._event.set)


@pytest.fixture
def hold(portal):
    """Makes steps of a script that last until the test lets them go."""
    return lambda: Held(portal)

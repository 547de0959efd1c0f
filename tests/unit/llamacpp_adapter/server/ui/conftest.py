"""The server over scripted answers, and a browser before it."""

from __future__ import annotations

import browser as browsers
import pytest
from anyio.from_thread import start_blocking_portal

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
    """Serve a service, and open a browser before it."""
    served, visits = [], []

    async def main(service, *, task_status):
        await serve(service, port=0, grace=0, signals=False, on_started=task_status.started)

    def make(service, **options):
        running, url = portal.start_task(main, service)
        served.append(running)
        visits.append(browsers.Visit(chromium, url, **options))
        return visits[-1]

    yield make
    for one in visits:
        one.context.close()
    for running in served:
        running.cancel()

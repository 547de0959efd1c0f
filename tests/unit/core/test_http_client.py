"""This machine is asked directly; any other host as the environment says."""

from __future__ import annotations

import re
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import anyio
import openai
import pytest

from pdd_core import http_client
from pdd_core.errors import CloudRefused
from pdd_core.http_client import is_loopback, new_async_client, new_client, proxy_of

SRC = Path(__file__).parents[3] / "src"
MODELS = b'{"object": "list", "data": []}'


@contextmanager
def answering(body: bytes, status: int, cookie: str = ""):
    """A server, or a proxy that does not forward; gives its address and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers["cookie"] if cookie else self.path)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            if cookie:
                self.send_header("set-cookie", cookie)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def proxy(monkeypatch):
    """A proxy in the environment, which cannot reach this machine's own servers; what it was asked."""
    for name in ("no_proxy", "NO_PROXY", "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with answering(b'{"error": {"message": "bad gateway"}}', 502) as (address, asked):
        monkeypatch.setenv("http_proxy", f"http://user:secret@{address}")
        yield address, asked


def listed(base_url: str) -> None:
    with new_client(base_url, api_key="k", max_retries=0) as client:
        client.models.list()


async def alisted(base_url: str) -> None:
    async with new_async_client(base_url, api_key="k", max_retries=0) as client:
        await client.models.list()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_this_machine_is_asked_directly(proxy, name: str) -> None:
    with answering(MODELS, 200) as (address, asked):
        base_url = f"http://{address.replace('127.0.0.1', name)}/v1"
        listed(base_url)
        anyio.run(alisted, base_url)
    assert asked == ["/v1/models"] * 2
    assert proxy[1] == []


def test_other_hosts_are_asked_as_the_environment_says(proxy) -> None:
    for ask in (listed, lambda base_url: anyio.run(alisted, base_url)):
        with pytest.raises(openai.APIStatusError):
            ask("http://cloud.example:8000/v1")
    assert proxy[1] == ["http://cloud.example:8000/v1/models"] * 2


def test_the_proxy_is_named_without_its_password(proxy, monkeypatch) -> None:
    assert proxy_of("http://cloud.example:8000/v1") == proxy[0]
    assert proxy_of("https://cloud.example/v1") is None
    monkeypatch.setenv("no_proxy", "cloud.example")
    assert proxy_of("http://cloud.example:8000/v1") is None
    assert proxy_of("http://other.example/v1") == proxy[0]


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://127.0.1.1/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://localhost/v1", True),
        ("http://LOCALHOST:1", True),
        ("http://localhost.example/v1", False),
        ("http://10.0.0.1/v1", False),
        ("http://0.0.0.0/v1", False),
        ("nothing", False),
    ],
)
def test_loopback_is_told_from_other_addresses(url: str, loopback: bool) -> None:
    assert is_loopback(url) is loopback


@pytest.mark.parametrize(
    ("place", "stays"),
    [
        ("/elsewhere", True),
        ("http://here.example/v1/models/", True),
        ("https://here.example/v1/models", True),
        ("http://there.example/v1/models", False),
        ("http://here.example:81/v1/models", False),
        ("https://here.example:8443/v1/models", False),
        ("//there.example/v1/models", False),
        ("http://here.example@there.example/", False),
    ],
)
def test_a_redirection_leads_to_the_same_address_or_nowhere(place: str, stays: bool) -> None:
    asked = []

    def moved(request):
        asked.append(str(request.url))
        if len(asked) > 1:
            return http.Response(200, json={"object": "list", "data": []})
        return http.Response(307, headers={"location": place})

    http = sys.modules[openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]]
    for run in (listed, lambda base_url: anyio.run(alisted, base_url)):
        asked.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(http_client, "_direct", lambda _: {"all://": http.MockTransport(moved)})
            if stays:
                run("http://here.example/v1")
            else:
                with pytest.raises((CloudRefused, openai.APIConnectionError)) as caught:
                    run("http://here.example/v1")
                # openai 2 takes it for the transport's
                assert isinstance(caught.value, CloudRefused) or isinstance(caught.value.__cause__, CloudRefused)
        assert len(asked) == 1 + stays


def test_every_client_of_the_project_is_made_here() -> None:
    makes = re.compile(r"(= |return |with |in )((openai\.(Async)?OpenAI|httpx2?\.\w*Client)\(|\S*urlopen\()")
    found = {path.name for path in SRC.rglob("*.py") if makes.search(path.read_text())}
    assert found == {"http_client.py"}


def test_no_client_keeps_cookies() -> None:
    with answering(MODELS, 200, cookie="a=1; Path=/") as (address, asked):
        url = f"http://{address}/v1"
        with new_client(url, api_key="x") as client:
            client.models.list()
            client.models.list()

        async def twice() -> None:
            async with new_async_client(url, api_key="x") as client:
                await client.models.list()
                await client.models.list()

        anyio.run(twice)
    assert asked == [None] * 4

"""The stand-in for routers loses what it says it loses, and nothing else."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from narrow_router import KNOWN, NarrowRouter


class Echo(BaseHTTPRequestHandler):
    """Answers with what came, in two parts, the second after `go_on`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        head = {name.lower(): text for name, text in self.headers.items()}
        said = {"to": self.server.server_port, "path": self.path, "headers": head, "body": body.decode()}
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in (json.dumps(said).encode() + b"\n", b"end\n"):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            assert self.server.go_on.wait(30)
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_DELETE = do_POST  # noqa: N815

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def upstreams():
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Echo) for _ in range(2)]
    for server in servers:
        server.go_on = threading.Event()
        server.go_on.set()
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


def urls(servers):
    return [f"http://127.0.0.1:{server.server_port}" for server in servers]


def said(answer):
    return json.loads(answer.text.splitlines()[0])


@pytest.mark.parametrize("path", ["/v1/pdd/handoffs/x", KNOWN[1]])
@pytest.mark.parametrize("drops", ["headers", ""])
def test_what_is_dropped(upstreams, path, drops):
    with NarrowRouter(urls(upstreams), drops=drops) as router:
        answer = httpx2.post(
            f"{router.url}{path}?wait=1", headers={"authorization": "Bearer k", "x-mine": "1"}, json={"a": 1}
        )
    kept = path in KNOWN or not drops
    got = said(answer)
    assert got["path"] == path + ("?wait=1" if kept else "")
    assert ("authorization" in got["headers"], "x-mine" in got["headers"]) == (kept, kept)
    assert json.loads(got["body"]) == {"a": 1}
    assert router.seen[0].headers["x-mine"] == "1"


def test_a_route_that_is_not_known(upstreams):
    with NarrowRouter(urls(upstreams), routes=KNOWN) as router:
        answers = [httpx2.get(router.url + path).status_code for path in ("/v1/models", "/v1/pdd/info")]
    assert answers == [200, 404]
    assert [seen.status for seen in router.seen] == answers


def reached(router, session):
    return {said(httpx2.get(router.url, headers={"x-session-id": session}))["to"] for _ in range(4)}


def test_a_session_keeps_its_upstream_and_others_take_turns(upstreams):
    with NarrowRouter(urls(upstreams)) as router:
        header = [
            {said(httpx2.get(router.url, headers={"x-session-id": name}))["to"] for _ in range(4)}
            for name in "abcd"
        ]
        without = {said(httpx2.get(router.url))["to"] for _ in range(2)}
    assert {len(ports) for ports in header} == {1}
    assert set.union(*header) == without == {server.server_port for server in upstreams}


def test_a_cookie_keeps_its_upstream(upstreams):
    with NarrowRouter(urls(upstreams), cookie="llm-d-session") as router, httpx2.Client() as client:
        assert len({said(client.get(router.url))["to"] for _ in range(4)}) == 1


def test_a_stream_is_passed_on_as_it_comes(upstreams):
    for server in upstreams:
        server.go_on.clear()
    with NarrowRouter(urls(upstreams)) as router, httpx2.stream("GET", router.url) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines))["path"] == "/"
        for server in upstreams:
            server.go_on.set()
        assert list(lines) == ["end"]


def test_an_upstream_that_is_gone(upstreams):
    gone, _ = upstreams
    gone.shutdown()
    gone.server_close()
    with NarrowRouter(urls([gone])) as router:
        assert httpx2.get(router.url).status_code == 502

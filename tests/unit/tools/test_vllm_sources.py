"""The Python files of a wheel on a server of this machine, and a command that is run with them."""

import io
import re
import sys
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from threading import Thread

import pytest


@pytest.fixture
def tool(monkeypatch, tmp_path):
    monkeypatch.setenv("PDD_CACHE_DIR", str(tmp_path / "cache"))
    module = import_module("vllm_sources")
    monkeypatch.setattr(module, "CHUNK", 500)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return module


def wheel():
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("vllm/__init__.py", "import sys\n")
        file.writestr("vllm/_C.abi3.so", bytes(10_000))
        file.writestr("vllm/v1/engine.py", "# the engine\n" * 100)
        file.writestr(
            "vllm-9.8.7.dist-info/METADATA", "Metadata-Version: 2.1\nName: vllm\nVersion: 9.8.7\n\ntext\n"
        )
    return made.getvalue()


class Server(ThreadingHTTPServer):
    def __init__(self, *, ranges=True, failures=0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.failures, self.sent = wheel(), ranges, failures, 0
        self.url = f"http://127.0.0.1:{self.server_port}/vllm.whl"


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        self.send_header("content-length", str(len(self.server.content)))
        if self.server.ranges:
            self.send_header("accept-ranges", "bytes")
        self.end_headers()

    def do_GET(self):
        if self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
            return
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        ranged = span is not None and self.server.ranges
        part = self.server.content[int(span[1]) : int(span[2]) + 1] if ranged else self.server.content
        self.send_response(206 if ranged else 200)
        self.send_header("content-length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        self.server.sent += len(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(tool, monkeypatch):
    started = []

    def serve(**options):
        server = Server(**options)
        started.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(tool, "wheel_url", lambda version: server.url)
        return server

    yield serve
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("options", [{}, {"ranges": False}, {"failures": 2}])
def test_the_python_files_of_a_wheel_are_kept(tool, serve, options):
    server = serve(**options)
    folder = tool.provide("9.8.7")
    kept = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert kept == ["vllm-9.8.7.dist-info/METADATA", "vllm/__init__.py", "vllm/v1/engine.py"]
    assert "\nVersion: 9.8.7+cpu\n" in (folder / "vllm-9.8.7.dist-info" / "METADATA").read_text()
    assert (server.sent < len(server.content) / 2) == options.get("ranges", True)
    sent = server.sent
    assert tool.provide("9.8.7") == folder
    assert server.sent == sent  # the cache has it


def test_a_server_that_fails_again_and_again_leaves_nothing_behind(tool, serve):
    serve(failures=100)
    with pytest.raises(zipfile.BadZipFile):  # for zipfile, a file that cannot be read is none
        tool.provide("9.8.7")
    assert list((tool.Env().cache_dir / "vllm-sources").iterdir()) == []


def test_the_command_finds_that_release_and_a_failure_is_told(tool, serve, monkeypatch, capsys):
    serve()
    check = "import vllm, sys; from importlib.metadata import version; sys.exit(version('vllm') != '9.8.7+cpu')"
    assert tool.run("9.8.7", [sys.executable, "-c", check]) == 0
    monkeypatch.setattr(
        sys,
        "argv",
        ["vllm_sources", "9.8.7", "--run", sys.executable, "-c", "print('what it said'); raise SystemExit(3)"],
    )
    with pytest.raises(SystemExit, match=r"failed with vLLM 9\.8\.7"):
        tool.main()
    assert "vLLM 9.8.7 ended with 3:\nwhat it said\n" in capsys.readouterr().out

"""``pdd-device cloud`` as a process, with a fake vLLM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

SERVER = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/crash":
            os._exit(9)
        self.send_response(200)
        self.end_headers()
        print("answered", os.getpid(), flush=True)
    def log_message(self, *_):
        pass

HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


@pytest.fixture
def started(tmp_path):
    """The command, up to its line that says it is ready; and its address."""
    server = tmp_path / "server.py"
    server.write_text(SERVER)
    body = textwrap.dedent(f"""
        import socket, sys
        from pdd_cli import launcher
        from pdd_cli.cloud_command import CloudCommand
        launcher.cloud_command = lambda model, *, bind, api_key, **_: CloudCommand(
            (sys.executable, {str(server)!r}, str(bind[1])), {{}}, api_key
        )
        launcher._POLL = 0.02
        port = launcher._free_port("127.0.0.1")
        sys.argv = ["pdd-device", "cloud", "--model", "org/model", "--port", str(port), "--api-key", "geheim"]
        from pdd_cli.main import main
        main()
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ready: "):
            break
    try:
        yield process, lines, lines[-1].removeprefix("Ready: ").strip().removesuffix("/v1")
    finally:
        process.terminate()  # killed, it would leave the server to the watchdog, which takes seconds
        process.communicate(timeout=60)


def answers(url: str) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=20):  # noqa: S310 - our own http address
            return True
    except OSError:
        return False


def stops_answering(url: str) -> bool:
    deadline = time.monotonic() + 60
    while answers(url):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_it_says_what_it_runs_and_when_it_is_ready_without_the_key(started) -> None:
    _, lines, url = started
    text = "".join(lines)
    assert "server.py" in text
    assert 'VLLM_API_KEY="$VLLM_API_KEY"' in text
    assert "geheim" not in text
    assert answers(f"{url}/health")


def test_once_ready_it_shows_the_servers_own_log(started) -> None:
    process, _, url = started
    answers(url)
    assert process.stdout.readline().startswith("answered ")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_the_server(started, number, code: int) -> None:
    process, _, url = started
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert stops_answering(url)


def test_a_server_that_crashes_ends_it_with_an_error(started) -> None:
    process, _, url = started
    answers(f"{url}/crash")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "vLLM ended with code 9" in errors

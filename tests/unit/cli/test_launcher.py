"""Real processes, fake servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from pdd_cli import launcher, watchdog
from pdd_cli.cloud_command import CloudCommand
from pdd_cli.launcher import CloudServer, ServerProcess
from pdd_core.errors import CloudUnreachable, ConfigurationError

PRELUDE = """
import os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

def child(ignore_sigterm=False):
    handler = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if ignore_sigterm else "pass"
    code = f"import signal, time; {handler}; print('child up', flush=True); time.sleep(600)"
    started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    started.stdout.readline()
    Path(PIDS).write_text(f"{os.getpid()} {started.pid}")

class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass

def serve(port):
    print("serving", flush=True)
    HTTPServer(("127.0.0.1", int(port)), Health).serve_forever()
"""


def test_a_proxy_in_the_environment_does_not_hide_a_server_that_is_there(monkeypatch) -> None:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.handle_request).start()
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # the port that discards: nobody listens
        monkeypatch.setenv("no_proxy", "")
        assert launcher._healthy(f"http://127.0.0.1:{server.server_port}/health")


def running(pid: int) -> bool:
    """Whether `pid` is alive: a zombie has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone_within(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(running(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Look often, and give children whose parent is gone no time."""
    monkeypatch.setattr(launcher, "_POLL", 0.02)
    monkeypatch.setattr(watchdog, "_ORPHANS", 0.1)


@pytest.fixture
def pids(tmp_path):
    """Where a fake server leaves its own pid and its child's."""

    def read(name: str = "server") -> list[int]:
        path = tmp_path / f"{name}.pids"
        deadline = time.monotonic() + 120
        while not (path.exists() and len(path.read_text().split()) == 2):
            assert time.monotonic() < deadline, "the fake server did not start"
            time.sleep(0.02)
        return [int(pid) for pid in path.read_text().split()]

    yield read
    for path in tmp_path.glob("*.pids"):
        for pid in read(path.stem):
            if running(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def script(tmp_path):
    def write(body: str, name: str = "server") -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(f"PIDS = {str(tmp_path / name)!r} + '.pids'\n{PRELUDE}\n{textwrap.dedent(body)}")
        return path

    return write


@pytest.fixture
def fake_vllm(script, monkeypatch):
    """Let CloudServer run a script, called with the port, in place of vLLM."""

    def use(body: str, **settings: str) -> None:
        path = script(body)

        def command(_model, *, bind, api_key, **_):
            return CloudCommand((sys.executable, str(path), str(bind[1])), settings, api_key)

        monkeypatch.setattr(launcher, "cloud_command", command)

    return use


@pytest.mark.parametrize("ignore_sigterm", [False, True])
def test_stopping_ends_the_server_and_its_children(script, pids, ignore_sigterm) -> None:
    path = script(f"child({ignore_sigterm}); time.sleep(600)")
    server = ServerProcess(CloudCommand((sys.executable, str(path)), {}))
    server.start()
    started = pids()
    server.stop(grace=0.5)
    assert gone_within(started, 60)


def test_children_that_outlive_a_crashed_server_are_ended(script, pids) -> None:
    path = script("child(); os._exit(3)")
    with ServerProcess(CloudCommand((sys.executable, str(path)), {})) as server:
        started = pids()
        assert server.wait() == 3
        assert running(started[1])
    assert gone_within(started, 60)


def test_stopping_twice_and_stopping_what_never_started_do_no_harm(script) -> None:
    server = ServerProcess(CloudCommand((sys.executable, str(script("time.sleep(600)"))), {}))
    server.stop()
    with server:
        pass
    server.stop()


def test_the_server_does_not_outlive_a_killed_launcher(script, pids, tmp_path) -> None:
    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
    launchers = []
    for number in signals:  # side by side, since each takes seconds
        host = tmp_path / f"host_{number.name}.py"
        host.write_text(
            textwrap.dedent(f"""
            import sys, time
            from pdd_cli.cloud_command import CloudCommand
            from pdd_cli.launcher import ServerProcess
            server = {str(script("child(); time.sleep(600)", number.name))!r}
            with ServerProcess(CloudCommand((sys.executable, server), {{}})):
                time.sleep(600)
            """)
        )
        launchers.append(subprocess.Popen([sys.executable, host]))
    started = {number: pids(number.name) for number in signals}
    for number, process in zip(signals, launchers, strict=True):
        process.send_signal(number)
        process.wait(timeout=60)
    for number in signals:
        assert gone_within(started[number], 60), number


def test_a_server_is_ready_when_it_answers_health(fake_vllm, tmp_path) -> None:
    fake_vllm("""
        print('loading', flush=True)
        while not Path(PIDS).with_name('go').exists():
            time.sleep(0.01)
        serve(sys.argv[1])
    """)
    waited: list[str] = []

    def on_wait(line: str) -> None:
        waited.append(line)
        (tmp_path / "go").touch()

    server = CloudServer("m")
    server.on_wait = on_wait
    with server:
        assert server.base_url == f"{server.root_url}/v1"
        assert server.exit_code() is None
        os.kill(server.pid, 0)
    assert waited
    assert "serving" in server.log_tail()


def test_the_key_and_the_settings_reach_the_server(fake_vllm) -> None:
    fake_vllm("print(os.environ['VLLM_API_KEY'], os.environ['A'], flush=True); serve(sys.argv[1])", A="b")
    with CloudServer("m", api_key="geheim") as server:
        assert "geheim b" in server.log_tail()


def test_output_goes_to_the_log_file_and_to_the_echo(fake_vllm, tmp_path) -> None:
    fake_vllm("serve(sys.argv[1])")
    lines: list[str] = []
    with CloudServer("m", log_path=tmp_path / "log", echo=lines.append):
        pass
    assert (tmp_path / "log").read_text() == "serving\n"
    assert lines == ["serving"]


def test_a_server_that_dies_while_starting_is_reported_with_its_last_words(fake_vllm) -> None:
    fake_vllm("print('no such model: moon'); sys.exit(7)")
    with pytest.raises(ConfigurationError, match=r"ended with code 7(.|\n)*no such model: moon"), CloudServer("m"):
        pass


def test_a_server_that_takes_too_long_is_ended(fake_vllm, pids, tmp_path, monkeypatch) -> None:
    fake_vllm("child(); time.sleep(600)")

    def clock() -> float:
        """Five seconds are over once the server has a child."""
        return 6.0 if (tmp_path / "server.pids").exists() else 0.0

    monkeypatch.setattr(launcher, "time", SimpleNamespace(monotonic=clock, sleep=time.sleep))
    with pytest.raises(CloudUnreachable, match="does not serve after 5 s"), CloudServer("m", start_timeout=5):
        pass
    assert gone_within(pids(), 60)


def test_a_port_in_use_is_refused_before_anything_starts(fake_vllm, tmp_path) -> None:
    fake_vllm("serve(sys.argv[1])")
    with CloudServer("m") as first:
        port = int(first.root_url.rpartition(":")[2])
        second = CloudServer("m", port=port)
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}"), second:
            pass


@pytest.mark.parametrize(
    ("host", "root_url"),
    [("0.0.0.0", "http://127.0.0.1:81"), ("::", "http://[::1]:81"), ("10.0.0.1", "http://10.0.0.1:81")],  # noqa: S104
)
def test_a_wildcard_address_is_reached_on_loopback(fake_vllm, host, root_url) -> None:
    fake_vllm("")
    assert CloudServer("m", host=host, port=81).root_url == root_url

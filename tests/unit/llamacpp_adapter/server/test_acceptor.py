"""Where a process has no descriptor left: in a process of its own, whose limit is low."""

import os
import re
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

SERVER = """
import logging, os, resource, sys
import anyio
from pdd_llamacpp_adapter.server.answers.http_limits import HttpLimits
from pdd_llamacpp_adapter.server.answers.service import Service
from pdd_llamacpp_adapter.server.run import serve
from pdd_llamacpp_adapter.server import acceptor, connections
connections.HEAD_S = 3.0
acceptor.RESERVE = int(sys.argv[2])
logging.basicConfig(level="INFO", format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(int(sys.argv[1]))]
anyio.run(lambda: serve(Service(HttpLimits(), None), port=0, on_started=lambda url: print(url, flush=True)))
"""


PROC = Path("/proc")
pytestmark = pytest.mark.skipif(not PROC.exists(), reason="Linux counts what a process has and takes in /proc")
LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}


class Served:
    def __init__(self, folder, taken=0, reserve=24):
        self._log = folder / "log.txt"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(taken), str(reserve)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.url = self.process.stdout.readline().strip()

    def log(self):
        return self._log.read_text()

    def cpu_s(self):
        *_, user, system = (PROC / str(self.process.pid) / "stat").read_text().rpartition(")")[2].split()[:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        assert self.process.wait(60) == 0
        self.process.stdout.close()


@pytest.mark.parametrize(
    ("taken", "reserve", "said"),
    [
        (32, 0, r"no further connection can be accepted for now: .*"),
        (0, 24, r"few file descriptors are left: .*"),
    ],
    ids=["none is left", "some are left to others"],
)
def test_a_crowd_of_connections_takes_neither_the_processor_nor_the_log_nor_the_others(
    tmp_path, taken, reserve, said
):
    with Served(tmp_path, taken, reserve) as served, httpx2.Client(base_url=served.url, timeout=60) as known:
        assert known.get("/health").json() == LOADING
        port = int(served.url.rsplit(":", 1)[1])
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        before, answered = served.cpu_s(), 0
        # until the server has enough of the first, which says nothing
        while not select.select([crowd[0]], [], [], 0.2)[0]:
            assert known.get("/health").json() == LOADING
            answered += 1
        assert answered
        assert served.cpu_s() - before <= 1
        lines = [line for line in served.log().splitlines() if not line.startswith(("Started", "HTTP"))]
        assert len(lines) == len([line for line in lines if re.fullmatch(said, line)]) == 1
        for one in crowd:
            one.close()
        deadline = time.monotonic() + 60
        while httpx2.get(served.url + "/version", timeout=60).status_code != 200:
            assert time.monotonic() < deadline
    assert "Traceback" not in served.log()


def test_nothing_is_left_open_of_connections_that_ended(tmp_path):
    with Served(tmp_path) as served:
        port = int(served.url.rsplit(":", 1)[1])

        def descriptors():
            return len(list((PROC / str(served.process.pid) / "fd").iterdir()))

        before = descriptors()
        for _ in range(3):
            crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
            for one in crowd:
                one.close()
        deadline = time.monotonic() + 60
        while descriptors() > before:
            assert time.monotonic() < deadline
            time.sleep(0.05)

"""``pdd-device serve`` as users run it: a process of its own."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

import httpx2
import openai
from cloud_support import wait_until
from prometheus_client.parser import text_string_to_metric_families

SERVE = (sys.executable, "-m", "pdd_cli.main", "serve", "--port", "0")
START_S = 120.0
STOP_S = 60.0
PATIENT = {"PDD_PATIENCE__LATE_S": "inf", "PDD_PATIENCE__FIRST_TOKEN_S": "120"}
"""Settings with which, however slow the machine, an answer begins in the cloud and ends on the device."""


class DeviceServer:
    """A running `pdd-device serve` on a free port. `flags` are the command's, `settings` go to the environment."""

    def __init__(self, folder, *flags, api_key=None, **settings):
        self.api_key = api_key
        self._out, self._err = folder / "out.txt", folder / "err.txt"
        flags = [*flags, *(("--api-key", api_key) if api_key else ())]
        inherited = {name: text for name, text in os.environ.items() if not name.startswith("PDD_")}
        cache = {name: text for name, text in os.environ.items() if name == "PDD_CACHE_DIR"}
        environ = {**inherited, **cache, **settings, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*SERVE, *flags],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environ,
                start_new_session=True,
            )
        self.root = self.url = ""

    def started(self):
        """Wait until the port answers."""
        found = wait_until(self._found_url, seconds=START_S)
        self.root = found.removesuffix("/v1")
        self.url = found
        return self

    def ready(self):
        """Wait until answers can be made."""
        self.started()
        wait_until(lambda: self.get("/health").status_code == 200 or self._ended(), seconds=START_S)
        return self

    def connected(self, seconds=60.0):
        """Wait until answers can be made, and the cloud knows of it: `ready` does not wait for a cloud."""
        self.ready()
        wait_until(lambda: self.cloud_state()["state"] == "connected", seconds=seconds)
        return self

    def _found_url(self):
        self._ended()
        found = re.search(r"http://\S+/v1", self._out.read_text())
        return found and found[0]

    def _ended(self):
        assert self.process.poll() is None, self.printed() + self.log()

    def printed(self):
        return self._out.read_text()

    def log(self):
        return self._err.read_text()

    def stop(self, number=signal.SIGTERM):
        """End it with a signal, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with suppress(subprocess.TimeoutExpired):
            self.stop()
        self.process.kill()
        self.process.wait()

    def client(self, **options):
        return openai.OpenAI(**self._options(options))

    def async_client(self, **options):
        return openai.AsyncOpenAI(**self._options(options))

    def _options(self, options):
        return {
            "base_url": self.url,
            "api_key": self.api_key or "none is needed",
            "max_retries": 0,
            "timeout": 120,
            **options,
        }

    @property
    def headers(self):
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def http(self, **options):
        """A client that shows bytes."""
        return httpx2.Client(base_url=self.root, headers=self.headers, timeout=120, **options)

    def get(self, path):
        return httpx2.get(self.root + path, headers=self.headers, timeout=120)

    def metric(self, name, **labels):
        """The sum of a metric's samples that have these labels."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())

    def at_work(self):
        """Answers that are made or wait."""
        return self.metric("pdd_device_running") + self.metric("pdd_device_waiting")

    def wait_idle(self, seconds=30.0):
        wait_until(lambda: not self.at_work(), seconds=seconds)

    def cloud_state(self):
        return self.get("/v1/models").json()["data"][0]["pdd"]["cloud"]


def closed_port():
    """A port of this machine on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def settled(create, **asked):
    """Ask twice, and return the second answer, which all later ones equal to the letter if it is greedy.

    Of a prompt that it has read, the device computes the last token alone; of a new one, all in batches, whose
    kernels round differently, so that where two tokens are nearly tied the first answer may be another.
    """
    create(**asked)
    return create(**asked)


class Forwarder:
    """Carries TCP connections from `port` of this machine to `target`, from `open` to `close`."""

    def __init__(self, port, target):
        self.port, self._target = port, target
        self._sockets = []
        self._threads = []
        self.connections = 0

    def open(self):
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._sockets.append(self._listening)
        self._run(self._accept)

    def _run(self, work, *args):
        self._threads.append(threading.Thread(target=work, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self):
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self.connections += 1
                self._sockets += [near, far]
                self._run(self._pump, near, far)
                self._run(self._pump, far, near)

    @staticmethod
    def _pump(source, sink):
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        """Cut every connection, and take no further one."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for each in self._sockets:
            each.close()
        self._sockets, self._threads = [], []


@contextmanager
def forwarded(port, target):
    forwarder = Forwarder(port, target)
    try:
        yield forwarder
    finally:
        forwarder.close()

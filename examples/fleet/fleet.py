"""Two vLLMs behind vllm-router and a device in front of them, with the demo model, on the CPU of this machine.

    python examples/fleet/fleet.py --ask "Why is the sky blue?"
    python examples/fleet/fleet.py

The first answers the question and ends. The second serves until Ctrl-C. Either ends all that it started.
"""

import argparse
import os
import secrets
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import openai
from rich.console import Console

from pdd_cli.cloud import ended_by_sigterm
from pdd_cli.cloud_command import CloudCommand
from pdd_cli.demo_model import PreparedModel, prepare
from pdd_cli.launcher import CloudServer, ServerProcess
from pdd_cli.progress import ConsoleProgress
from pdd_core.errors import PDDError

HOST = "127.0.0.1"
REPLICA_FLAGS = (
    *("--max-model-len", "2048", "--max-num-seqs", "4"),
    *("--num-gpu-blocks-override", "32"),  # 4,096 tokens in 190 MB, where 1 GB is the least otherwise
)
ROUTER_START_S, DEVICE_START_S = 60.0, 180.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never a proxy: all is on this machine


def replica(model: PreparedModel, key: str, log: Path) -> CloudServer:
    """Return a vLLM with the plugin, not started."""
    return CloudServer(
        model.vllm_dir, served_name=model.name, api_key=key, demo=True, extra_args=REPLICA_FLAGS, log_path=log
    )


def router(workers: Sequence[str], port: int, log: Path) -> ServerProcess:
    """Return a vllm-router that keeps each session on one of the `workers`, not started.

    It gets no key of its own: with one, it would sign the requests of strangers.
    """
    words = [str(Path(sys.executable).parent / "vllm-router"), "--host", HOST, "--port", str(port)]
    words += ["--worker-urls", *workers, "--policy", "consistent_hash"]
    words += ["--health-check-interval-secs", "5"]  # three in vain, and a vLLM counts as gone; 60 is the default
    words += ["--prometheus-port", str(free_port()), "--log-level", "warning"]
    return ServerProcess(CloudCommand(tuple(words), settings={}), log_path=log)


def device(model: PreparedModel, cloud: str, key: str, port: int, log: Path) -> ServerProcess:
    """Return a device whose answers begin in the cloud at this URL, not started."""
    words = [sys.executable, "-m", "pdd_cli.main", "serve", "--cloud", f"{cloud}/v1", "--gguf", str(model.gguf)]
    words += ["--host", HOST, "--port", str(port)]
    settings = {"PDD_CLOUD_API_KEY": key, "PDD_API_KEY": key, "PDD_MODEL_NAME": model.name, "PDD_N_CTX": "2048"}
    settings["PDD_PLAN"] = "handoff"  # a device as fast as its cloud would rather make short answers alone
    return ServerProcess(CloudCommand(tuple(words), settings), log_path=log)


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


def wait_for(url: str, server: ServerProcess, seconds: float) -> None:
    """Return once `url` answers 200.

    Raises:
        PDDError: the server has ended, or takes too long; the message has the end of its log.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            with DIRECT.open(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (OSError, urllib.error.URLError):
            pass
        if server.exit_code() is not None or time.monotonic() > deadline:
            raise PDDError(f"{url} does not answer:\n{server.log_tail()}")
        time.sleep(0.2)


@contextmanager
def replicas(
    count: int, model: PreparedModel, key: str, folder: Path, console: Console
) -> Iterator[list[CloudServer]]:
    """Start vLLMs side by side, and yield them once all serve."""
    servers = [replica(model, key, folder / f"vllm-{number}.log") for number in range(1, count + 1)]
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
            server.start()
        for number, server in enumerate(servers, 1):
            with ConsoleProgress(console)(f"Waiting for vLLM {number} of {count}") as step:
                server.on_wait = step.say
                server.wait_ready()
        yield servers


@contextmanager
def front(
    workers: Sequence[str], model: PreparedModel, key: str, folder: Path, console: Console
) -> Iterator[tuple[str, str]]:
    """Start router and device. Yields the URL of each."""
    router_port, device_port = free_port(), free_port()
    router_url, device_url = f"http://{HOST}:{router_port}", f"http://{HOST}:{device_port}"
    routing = router(workers, router_port, folder / "router.log")
    serving = device(model, router_url, key, device_port, folder / "device.log")
    with routing:
        with ConsoleProgress(console)("Starting vllm-router"):
            wait_for(f"{router_url}/health", routing, ROUTER_START_S)
        with serving:
            with ConsoleProgress(console)("Starting the device"):
                wait_for(f"{device_url}/health", serving, DEVICE_START_S)
            yield router_url, device_url


def ask(url: str, key: str, question: str) -> str:
    """Print the device's answer as it comes, and who made its tokens. Returns the answer."""
    said = ""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key) as client:
        stream = client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": question}], max_tokens=80, stream=True
        )
        for chunk in stream:
            text = chunk.choices[0].delta.content or ""
            said += text
            print(text, end="", flush=True)
    tokens = chunk.pdd["tokens"]
    print(f"\n[tokens of the cloud: {tokens['cloud']}, of the device: {tokens['device']}]")
    return said


def watch(servers: Sequence[CloudServer], console: Console) -> None:
    """Say which vLLM ends; return when none is left."""
    left = dict(enumerate(servers, 1))
    while left:
        for number, server in list(left.items()):
            if server.exit_code() is not None:
                del left[number]
                console.print(f"vLLM {number} has ended. {len(left)} left: the device answers on", highlight=False)
        time.sleep(0.5)


def main() -> None:
    """Start everything, answer or serve, end everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ask", metavar="QUESTION", help="answer this and end")
    parser.add_argument("--replicas", type=int, default=2, help="vLLMs behind the router, 3 GB each")
    parser.add_argument("--logs", type=Path, help="a folder for the servers' logs; without it, they are not kept")
    options = parser.parse_args()
    console = Console()
    key = os.environ.get("VLLM_API_KEY") or secrets.token_urlsafe(16)
    with ended_by_sigterm(), ExitStack() as stack:
        folder = options.logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pdd-fleet-")))
        folder.mkdir(parents=True, exist_ok=True)
        model = prepare(progress=ConsoleProgress(console))
        servers = stack.enter_context(replicas(options.replicas, model, key, folder, console))
        workers = [server.root_url for server in servers]
        router_url, device_url = stack.enter_context(front(workers, model, key, folder, console))
        for title, url in [*((f"vLLM {n}", url) for n, url in enumerate(workers, 1)), ("router", router_url)]:
            console.print(f"{title:8}{url}/v1", highlight=False)
        if options.ask:
            ask(device_url, key, options.ask)
            return
        console.print(f"device  {device_url}/v1, key {key}. Ctrl-C ends all.", style="bold green", highlight=False)
        watch(servers, console)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except PDDError as error:
        sys.exit(f"error: {error}")

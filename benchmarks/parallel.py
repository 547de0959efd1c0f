"""Handoffs on deployments of several GPUs, engines and API servers: one row for each, one column for each check.

Weights may be random (``--load-format dummy``): what is checked is counts and equality of ids, not text. Ends with
an error if a check fails, or a deployment does not start.

    python benchmarks/parallel.py --model FOLDER [--on cpu] [--gpus 2] [--only dp2 dp2-api2] [-- FLAGS OF VLLM ...]

Deployments whose name begins with "shared" have two engines of one server on one GPU. vLLM starts them as if each
were on a machine of its own. vLLM has one server per engine ("external") for models with experts only, so a small
one with random weights and the tokenizer of `--model` is served there.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import openai
from parallel_checks import CHECKS, KEY, ON_CPU, Amounts, Client
from rich.console import Console
from rich.table import Table

from pdd_cli.cloud_command import cloud_command
from pdd_cli.launcher import CloudServer, ServerProcess
from pdd_core.errors import PDDError


@dataclass(frozen=True, slots=True)
class Deployment:
    """What to start, and what it needs."""

    gpus: int
    flags: tuple[str, ...] = ()
    engines: int = 1
    servers: int = 1
    """Addresses, each with a suite of its own."""
    on_cpu: bool = False
    shared: bool = False
    """Both engines have the one GPU."""


def _dp(*more, api_servers=1):
    return ("--data-parallel-size", "2", "--api-server-count", str(api_servers), *more)


_HALF = ("--data-parallel-size-local", "1")
DEPLOYMENTS = {
    "one": Deployment(1, on_cpu=True),
    "tp2": Deployment(2, ("--tensor-parallel-size", "2")),
    "pp2": Deployment(2, ("--pipeline-parallel-size", "2")),
    "dp2": Deployment(2, _dp(), engines=2, on_cpu=True),
    "dp2-api2": Deployment(2, _dp(api_servers=2), engines=2, on_cpu=True),
    "dp2-api4": Deployment(2, _dp(api_servers=4), engines=2, on_cpu=True),
    "external": Deployment(
        2, _dp("--data-parallel-size-local", "2", "--data-parallel-multi-port-external-lb"), engines=2, servers=2
    ),
    "shared": Deployment(1, _dp(*_HALF), engines=2, shared=True),
    "shared-api2": Deployment(1, _dp(*_HALF, api_servers=2), engines=2, shared=True),
    "shared-api4": Deployment(1, _dp(*_HALF, api_servers=4), engines=2, shared=True),
    "tp2-dp2": Deployment(4, _dp("--tensor-parallel-size", "2"), engines=2),
}


def chosen(*, gpus, on_cpu, only):
    """Names of the deployments that this machine can run, or of those asked for."""
    able = [n for n, one in DEPLOYMENTS.items() if (one.on_cpu if on_cpu else one.gpus <= gpus)]
    return [name for name in able if not only or name in only]


def model_with_experts(folder, model):
    """Write the configuration of a small model with experts, and the tokenizer of `model`."""
    folder.mkdir()
    for file in model.iterdir():
        if "token" in file.name or file.name in {"vocab.json", "merges.txt", "chat_template.jinja"}:
            shutil.copy(file, folder)
    base = json.loads((model / "config.json").read_text())
    config = {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu",
        "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 8, "num_experts_per_tok": 2,
        "max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "torch_dtype": "bfloat16",
        **{name: base[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


async def suite(clients, deployment):
    """Return per address the results by check."""
    rows = []
    for number, client in enumerate(clients):
        other = None
        if deployment.engines > 1:
            other = (client, 1) if deployment.servers == 1 else (clients[1 - number], None)
        row = {}
        for name, check in CHECKS.items():
            try:
                row[name] = await check(client, other)
            except openai.OpenAIError as error:
                row[name] = False, f"{type(error).__name__}: {error}"[:60]
        rows.append(row)
    return rows


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


@contextlib.contextmanager
def running(deployment, model, flags, log):
    """Yield the addresses of the servers."""
    ours = [*deployment.flags, *flags]
    other = contextlib.nullcontext()
    if deployment.shared:
        ours += ["--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", _free_port()]
        # without a bound, each engine takes the other's memory for its own
        ours += ["--kv-cache-memory-bytes", str(8 * 2**30), "--gpu-memory-utilization", "0.4"]
        at = ours.index("--api-server-count")
        theirs = [*ours[:at], *ours[at + 2 :], "--headless", "--data-parallel-start-rank", "1"]
        command = cloud_command(
            str(model), bind=("127.0.0.1", 1), environ=os.environ, served_name="m", api_key=KEY, extra_args=theirs
        )
        other = ServerProcess(command, log_path=log.with_suffix(".other.log"))
    if deployment.servers > 1:
        ours += ["--data-parallel-supervisor-port", _free_port()]
    server = CloudServer(model, served_name="m", api_key=KEY, extra_args=ours, log_path=log)
    port = int(server.root_url.rsplit(":", 1)[1])
    with other, server:
        yield [f"http://127.0.0.1:{port + number}/v1" for number in range(deployment.servers)]


async def ready(clients):
    """One address answers before the other."""
    for client in clients:
        while True:
            try:
                await client.ask("get", "/pdd/info")
                break
            except openai.APIConnectionError:
                await asyncio.sleep(1)


async def checked(urls, amounts, deployment):
    clients = [Client(url, amounts) for url in urls]
    try:
        async with asyncio.timeout(300):
            await ready(clients)
        return await suite(clients, deployment)
    finally:
        for client in clients:
            await client.pooled.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--on", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--gpus", type=int, default=1, help="how many this machine has")
    parser.add_argument("--only", nargs="+", choices=DEPLOYMENTS, metavar="NAME", help=", ".join(DEPLOYMENTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path, help="folder for vLLM's output")
    parser.add_argument("flags", nargs="*", help="flags for vLLM, after --")
    options = parser.parse_args()
    on_cpu = options.on == "cpu"
    names = chosen(gpus=options.gpus, on_cpu=on_cpu, only=options.only)
    if not names:
        parser.error("none of these deployments fits this machine")
    # else vLLM closes pooled connections after five seconds, at times just when one is used again
    os.environ.setdefault("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "600")
    if on_cpu:
        # a core for each engine; vLLM takes one list of cores per engine
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    table, facts = Table("deployment", "ready s", *CHECKS), {}
    with tempfile.TemporaryDirectory() as folder:
        logs = options.logs or Path(folder)
        logs.mkdir(exist_ok=True, parents=True)
        for name in names:
            one, flags, model = DEPLOYMENTS[name], list(options.flags), options.model
            if one.servers > 1:
                model = model_with_experts(Path(folder) / name, options.model)
                flags += ["--load-format", "dummy"]
            begun = time.monotonic()
            try:
                with running(one, model, flags, logs / f"{name}.log") as urls:
                    waited = time.monotonic() - begun
                    rows = asyncio.run(checked(urls, ON_CPU if on_cpu else Amounts(), one))
            except (PDDError, TimeoutError) as error:
                last = (str(error).strip() or type(error).__name__).splitlines()[-1]
                waited, rows = (
                    time.monotonic() - begun,
                    [dict.fromkeys(CHECKS, (False, "")) | {"budgets": (False, last)}],
                )
            facts[name] = rows
            for row in rows:
                cells = [f"{'' if ok else 'FAILED '}{text}" for ok, text in row.values()]
                table.add_row(name, f"{waited:.0f}", *cells)
                print(name, dict(row), flush=True)
    Console(width=200).print(table)
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1))
    sys.exit(not all(ok for rows in facts.values() for row in rows for ok, _ in row.values()))


if __name__ == "__main__":
    main()

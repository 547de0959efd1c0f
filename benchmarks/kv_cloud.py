"""What handing over KV caches costs the cloud, whether its shelf stays bounded, and whether the parts join right.

No device is needed. Weights may be random (``-- --load-format dummy``), since numbers and not text are looked at.

* cost: prompts prefilled per second where every request has ``pdd_kv``, over where every one has opted in without
  it, over plain requests; and plain requests of a server with ``kv: off``. The kinds take turns.
* shelf: 64 requests at once, whose cells exceed the shelf; how much of /dev/shm is taken, and what can be fetched.
* joins: the cells of the same prompts from one worker, and from two that share the heads (``--joined-flags``).

    python benchmarks/kv_cloud.py --model FOLDER --json kv_cloud.json [-- --load-format dummy]
    python benchmarks/kv_cloud.py --prompt 200 --at-once 4 --seconds 8 --shelf-bytes 20000000 -- --dtype float32

The second form is for the demo model on a CPU. `joins` needs weights that are the same for one and two workers,
and dummy ones are not: `--random-weights` first writes real random ones for the folder's config.json. Two servers
at once (`--beside`, `joins`) need room on one GPU: ``-- --gpu-memory-utilization 0.4``.
"""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from kv_cloud_checks import KEY, Server, cost, joins, shelf

from pdd_cli.launcher import CloudServer


def write_random_weights(folder: Path) -> None:
    """Write weights of a Llama as `config.json` describes it, as small as those of a trained model."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


ON = {"kv": "on"}
OFF = {"kv": "off"}
EXACT = {**ON, "kv_key_type": "f16", "kv_value_type": "f16"}
"""For `joins`: what packing rounds away would hide small differences, and make others."""


def wanted(options: argparse.Namespace) -> dict[str, tuple[dict, list[str]]]:
    """Return the servers to start, by name: the plugin's settings and further flags."""
    shelf = {"kv_shelf_bytes": options.shelf_bytes}
    servers: dict[str, tuple[dict, list[str]]] = {}
    if {"cost", "shelf"} & set(options.checks):
        servers["on"] = {**ON, **shelf}, []
    if "cost" in options.checks and options.beside:
        servers["off"] = OFF, []
    if "joins" in options.checks:
        servers |= {"one": (EXACT, []), "joined": (EXACT, options.joined_flags.split())}
    return servers


def started(stack: ExitStack, options: argparse.Namespace) -> dict[str, Server]:
    """Start all servers that are wanted, at once; `stack` ends them."""
    made = {}
    for name, (settings, flags) in wanted(options).items():
        ours = [
            "--additional-config",
            json.dumps({"pdd": settings}),
            "--max-num-seqs",
            str(max(16, options.at_once)),
        ]
        log = options.json.with_suffix(f".{name}.log")
        made[name] = CloudServer(
            options.model, served_name="m", api_key=KEY, extra_args=[*ours, *flags, *options.flags], log_path=log
        )
        stack.callback(made[name].stop)
    begun = time.monotonic()
    with ThreadPoolExecutor(len(made)) as pool:
        list(pool.map(CloudServer.__enter__, made.values()))
    print(f"{', '.join(made)}: ready after {time.monotonic() - begun:.0f} s", flush=True)
    return {name: Server(server.root_url) for name, server in made.items()}


def main() -> None:
    """Run the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a model; default the demo model")
    parser.add_argument("--random-weights", action="store_true", help="write them into the model's folder first")
    parser.add_argument("--checks", nargs="+", choices=("cost", "shelf", "joins"), default=("cost", "shelf"))
    parser.add_argument("--prompt", type=int, default=1155, help="tokens")
    parser.add_argument("--vocab", type=int, default=30_000, help="ids of prompts are below this")
    parser.add_argument("--at-once", type=int, default=64, help="requests in flight while the cost is measured")
    parser.add_argument("--requests", type=int, default=64, help="at once, for the shelf")
    parser.add_argument("--shelf-bytes", type=int, default=1_000_000_000)
    parser.add_argument("--seconds", type=float, default=12.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", action="store_true", help="compare with a second server, with kv: off")
    parser.add_argument(
        "--joined-flags", default="--tensor-parallel-size 2", help="of the second server of the check `joins`"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="flags for vLLM, after --")
    options = parser.parse_args()
    found: dict = {"argv": sys.argv[1:]}
    with ExitStack() as stack:
        if options.json is None:
            options.json = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "kv_cloud.json"
        if options.model is None:
            from pdd_cli.demo_model import prepare

            options.model = prepare().vllm_dir
        if options.random_weights:
            write_random_weights(options.model)
        servers = started(stack, options)
        checks = {
            "cost": lambda: cost(servers, options),
            "shelf": lambda: shelf(servers["on"], options),
            "joins": lambda: joins(servers["one"], servers["joined"], options),
        }
        for name in options.checks:
            found[name] = checks[name]()
            options.json.write_text(json.dumps(found, indent=1))
        found["metrics"] = {name: server.metrics() for name, server in servers.items()}
        options.json.write_text(json.dumps(found, indent=1))
        print(json.dumps(found, indent=1))
    passed = {"shelf": "bounded", "joins": "alike"}
    failed = [name for name, key in passed.items() if name in found and not found[name][key]]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()

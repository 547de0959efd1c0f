"""vLLM's engine in a process of its own, with or without the plugin. Two of them can take turns on one GPU."""

import multiprocessing
import os
import signal
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_shape import SHAPES, write_model
from load import Cell, Limits, Load, counter_class

SCHEDULER = "pdd_vllm_plugin.scheduler.PDDAsyncScheduler"
WORKER = "pdd_vllm_plugin.worker.PDDWorker"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How to start the engine."""

    folder: Path
    """Where its model folder is written."""
    shape: str = "llama-8b"
    plugin: bool = False
    """Name the plugin, its scheduler and its worker class."""
    max_num_seqs: int = 1024
    max_num_batched_tokens: int = 4096
    max_model_len: int = 4096
    gpu_memory_utilization: float = 0.85
    sleeps: bool = False
    """Keep weights and KV cache where they can be taken off the GPU."""
    num_blocks: int | None = None
    """Of the KV cache; None: what fits."""
    on_cpu: bool = False

    def arguments(self) -> dict[str, Any]:
        """Return vLLM's engine arguments. Prefix caching is on, as by default; random prompts never hit it."""
        classes = {"scheduler_cls": SCHEDULER, "worker_cls": WORKER} if self.plugin else {}
        graphs = {"compilation_config": {"cudagraph_capture_sizes": graph_sizes(self.max_num_seqs)}}
        where = {"dtype": "float32", "enforce_eager": True} if self.on_cpu else {"dtype": "bfloat16", **graphs}
        return {
            "model": str(write_model(self.shape, self.folder)), "load_format": "dummy", "seed": 0,
            "skip_tokenizer_init": True, "max_model_len": self.max_model_len, "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens, "enable_sleep_mode": self.sleeps,
            "gpu_memory_utilization": self.gpu_memory_utilization, "num_gpu_blocks_override": self.num_blocks,
            **where, **classes,
        }  # fmt: skip


def graph_sizes(largest: int) -> list[int]:
    """Return the batch sizes to capture CUDA graphs for: fewer than vLLM's own, since each takes time."""
    steps = [1, 2, 4, 8, 16, 32, 48, *range(64, 1025, 64)]
    return [size for size in steps if size <= largest]


def set_environment(*, plugin: bool) -> None:
    """Set what vLLM reads from the environment; call it before vLLM is imported."""
    # one allow-list for every kind of plugin: empty, it lets none in
    os.environ |= {"VLLM_PLUGINS": "pdd" if plugin else "", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from pdd_vllm_plugin.compat import provide_vllm_metadata

    provide_vllm_metadata()


_PATIENCE_S = {"load": 400, "measure": 150, "sleep": 60, "wake": 60}
"""Far more than any of these takes."""


class EngineFailed(Exception):
    """The engine answered with an error."""


class EngineEnded(EngineFailed):
    """The engine's process ended, or gives no answer."""


class EngineProcess:
    """Starts the engine's process, and asks it for things one at a time."""

    def __init__(self, name: str, settings: EngineSettings) -> None:
        self.name = name
        self.settings = settings
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # not a daemon: vLLM starts a process of its own
        self._process = context.Process(target=_serve, args=(theirs,), kwargs={"plugin": settings.plugin})
        self._process.start()
        theirs.close()

    def load(self) -> dict[str, Any]:
        """Load the model; return ``load_s``, ``num_blocks``, ``kv_tokens`` and what else is worth noting."""
        return self._ask("load", self.settings)

    def measure(self, cell: Cell, seconds: float) -> dict[str, float]:
        return self._ask("measure", cell, seconds)

    def sleep(self) -> float:
        """Take weights and KV cache off the GPU; return the seconds it took."""
        return self._ask("sleep")

    def wake(self) -> float:
        """Bring them back."""
        return self._ask("wake")

    def stop(self) -> None:
        """End the engine; by force if it does not."""
        with suppress(OSError):
            self._pipe.close()  # the process reads to the end of its pipe
        self._process.join(timeout=20)
        with suppress(ProcessLookupError):  # the engine's own process too, or it would keep the GPU's memory
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()

    def _ask(self, *command: Any) -> Any:
        try:
            self._pipe.send(command)
            if not self._pipe.poll(_PATIENCE_S[command[0]]):
                raise EngineEnded(f"{self.name}: {command[0]}: no answer")
            ok, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise EngineEnded(f"{self.name}: the engine's process ended") from error
        if not ok:
            raise EngineFailed(f"{self.name}: {command[0]}: {answer}")
        return answer


def _serve(pipe: Any, *, plugin: bool) -> None:
    os.setpgrp()  # to be ended together with what vLLM starts
    set_environment(plugin=plugin)
    import vllm.v1.engine.llm_engine  # noqa: F401 - imported while the other engine loads

    engine = _Engine()
    with suppress(EOFError):
        while True:
            name, *args = pipe.recv()
            try:
                pipe.send((True, getattr(engine, name)(*args)))
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to who asked
                traceback.print_exc()
                pipe.send((False, f"{type(error).__name__}: {error}"))
    engine.close()


class _Engine:
    """The commands."""

    def __init__(self) -> None:
        self._engine: Any = None

    def load(self, settings: EngineSettings) -> dict[str, Any]:
        import torch
        from vllm import EngineArgs, __version__
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        begun = time.perf_counter()
        counter = counter_class()
        arguments = EngineArgs(**settings.arguments())
        engine = self._engine = LLMEngine.from_engine_args(arguments, stat_loggers=[counter])
        config = engine.vllm_config
        blocks, size = config.cache_config.num_gpu_blocks, config.cache_config.block_size
        limits = Limits(settings.max_num_seqs, settings.max_num_batched_tokens, blocks * size)
        vocab_size = SHAPES[settings.shape]["vocab_size"]
        self._load = Load(engine, counter.latest, limits, vocab_size=vocab_size)
        loaded = time.perf_counter() - begun
        warm = Cell(prompt=min(1024, settings.max_model_len // 2), output=8, end="full")
        self._load.measure(warm, seconds=0.5)
        return {
            "load_s": round(loaded, 1), "warm_up_s": round(time.perf_counter() - begun - loaded, 1),
            "num_blocks": blocks, "kv_tokens": blocks * size,
            "vllm": __version__, "torch": torch.__version__, "device": current_platform.get_device_name(),
            "scheduler": config.scheduler_config.get_scheduler_cls().__name__,
            "worker": str(config.parallel_config.worker_cls),
            "async_scheduling": bool(config.scheduler_config.async_scheduling),
            "cuda_graphs": str(config.compilation_config.cudagraph_mode),
        }  # fmt: skip

    def measure(self, cell: Cell, seconds: float) -> dict[str, float]:
        return self._load.measure(cell, seconds=seconds)

    def sleep(self) -> float:
        begun = time.perf_counter()
        self._engine.sleep(1)
        return round(time.perf_counter() - begun, 2)

    def wake(self) -> float:
        begun = time.perf_counter()
        self._engine.wake_up()
        return round(time.perf_counter() - begun, 2)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.engine_core.shutdown()

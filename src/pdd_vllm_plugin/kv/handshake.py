"""What the workers tell of their cells, once, at start: made one geometry of, which devices are told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pdd_core.errors import EngineNotAddressable
from pdd_core.kv.geometry import KVGeometry, NoKV
from pdd_vllm_plugin.compat import ask_engine
from pdd_vllm_plugin.deployment import WORKER_FLAG, engine_ranks, gives_cells, refuse
from pdd_vllm_plugin.kv.shelf_file import NONCE
from pdd_vllm_plugin.kv.shelves import Shelves

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_vllm_plugin.config import PDDConfig

RPC = "pdd_kv_shelf"
"""`pdd_vllm_plugin.worker.PDDWorker.pdd_kv_shelf`, on every worker."""
OFF = NoKV(reason="not_enabled", message="this server hands no KV cache over: additional_config.pdd.kv is off")
NOT_ENABLED = NoKV(
    reason="not_enabled", message=f"this server hands no KV cache over: start it with {WORKER_FLAG}"
)
ELSEWHERE = (
    "the workers of {engine} are on another machine than this API server, or in another container: run an API "
    "server on each machine (--data-parallel-hybrid-lb), in one container with its workers"
)


async def find_shelves(engine_client: Any, config: PDDConfig) -> Shelves | NoKV:
    """Ask all workers; return where their cells are, or why there are none.

    Raises:
        UnsupportedDeployment: there are none, and `kv` is ``on``.
    """
    found = await _find(engine_client, config)
    if isinstance(found, NoKV) and config.kv == "on":
        refuse(f"additional_config.pdd.kv is on, but {found.message}")
    return found


async def _find(engine_client: Any, config: PDDConfig) -> Shelves | NoKV:
    vllm_config = engine_client.vllm_config
    if config.kv == "off":
        return OFF
    if not gives_cells(config, vllm_config):
        return NOT_ENABLED
    ranks = engine_ranks(vllm_config)
    try:
        if len(ranks) == 1:
            answers = [await engine_client.collective_rpc(RPC)]
        else:
            answers = [(await ask_engine(engine_client, rank, "collective_rpc", RPC))[0] for rank in ranks]
    except EngineNotAddressable as error:
        return _unsupported(str(error))
    except Exception as error:  # noqa: BLE001 - of the engine: whatever its workers raise
        return _unsupported(f"the workers do not tell of their cells ({type(error).__name__}: {error})")
    engines: dict[int, tuple[KVGeometry, list[Path]]] = {}
    for rank, workers in zip(ranks, answers, strict=True):
        merged = merge(workers, f"engine {rank}")
        if isinstance(merged, NoKV):
            return merged
        engines[rank] = merged
    geometries = [geometry for geometry, _ in engines.values()]
    if any(geometry != geometries[0] for geometry in geometries):
        return _unsupported("the engines pack different cells")
    return Shelves(geometries[0], {rank: folders for rank, (_, folders) in engines.items()})


def merge(workers: Sequence[dict[str, Any]], engine: str) -> tuple[KVGeometry, list[Path]] | NoKV:
    """Make one of what the workers of an engine tell.

    Args:
        workers: in the order of their ranks: ``{"none": ...}``, or ``folder``, ``nonce``, ``part``, ``geometry``.
        engine: its name, for people.

    Returns:
        The geometry and each part's folder, or why there are no cells.
    """
    for worker in workers:
        if "none" in worker:
            return NoKV.model_validate(worker["none"])
    if any(worker["geometry"] != workers[0]["geometry"] for worker in workers):
        return _unsupported(f"the workers of {engine} pack different cells")
    if not all(_is_here(worker) for worker in workers):
        return _unsupported(ELSEWHERE.format(engine=engine))
    # where there are more tensor-parallel workers than KV heads, several have the same ones
    folders = {_key(worker["part"]): Path(worker["folder"]) for worker in reversed(workers)}
    parts = {_key(worker["part"]): worker["part"] for worker in workers}
    try:
        geometry = KVGeometry.model_validate({**workers[0]["geometry"], "parts": list(parts.values())})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        return _unsupported(f"the workers of {engine} do not have all cells: {problem['msg']}")
    return geometry, [folders[key] for key in parts]


def _key(part: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(part["layers"]), tuple(part["heads"])


def _is_here(worker: dict[str, Any]) -> bool:
    try:
        return bool((Path(worker["folder"]) / NONCE).read_text() == worker["nonce"])
    except (OSError, ValueError):
        return False


def _unsupported(message: str) -> NoKV:
    return NoKV(reason="unsupported", message=message)

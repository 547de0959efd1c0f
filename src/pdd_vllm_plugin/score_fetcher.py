"""Fetches captured attention from the workers: one call to an engine for all its requests that wait for theirs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pdd_core.errors import EngineNotAddressable, NotCaptured
from pdd_core.refinement.scores import PromptScores
from pdd_vllm_plugin.compat import ask_engine
from pdd_vllm_plugin.deployment import engine_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

RPC = "pdd_take_scores"
"""`pdd_vllm_plugin.worker.PDDWorker.pdd_take_scores`, on every worker."""


class ScoreFetcher:
    """Asks the engine that has a request. While a call to it is under way, the next ones for it gather.

    The engine answers between two steps.
    """

    def __init__(self, engine_client: Any, heads: Literal["max", "mean"]) -> None:
        self._engine = engine_client
        self._heads = heads
        self._waiting: dict[int | None, dict[str, asyncio.Future[list[Any]]]] = {}
        """By the engine's rank, then by handoff id. None is for requests whose engine is not known."""
        self._calling: dict[int | None, asyncio.Task[None]] = {}

    async def fetch(self, handoff_id: str, rank: int | None) -> PromptScores:
        """Return the scores of a request whose first token is there. They can be had once.

        Args:
            handoff_id: the request's.
            rank: of the engine that has it. None if that is not known: then all engines are asked.

        Raises:
            NotCaptured: some worker has none; says why.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(rank, {})[handoff_id] = future
        if rank not in self._calling or self._calling[rank].done():
            self._calling[rank] = asyncio.create_task(self._call(rank))
        return combine(await future, self._heads)

    async def _call(self, rank: int | None) -> None:
        while batch := self._waiting.pop(rank, None):
            try:
                by_engine = await self._ask(rank, list(batch))
            except Exception as error:  # noqa: BLE001 - of the engine; each waiting request reports it
                why = str(error) if isinstance(error, EngineNotAddressable) else type(error).__name__
                for future in batch.values():
                    if not future.done():
                        future.set_exception(NotCaptured(f"the workers gave no answer: {why}"))
                continue
            for index, future in enumerate(batch.values()):
                if not future.done():
                    future.set_result(_of_its_engine([[one[index] for one in workers] for workers in by_engine]))

    async def _ask(self, rank: int | None, handoff_ids: list[str]) -> list[Any]:
        if len(engine_ranks(self._engine.vllm_config)) == 1:
            return [await self._engine.collective_rpc(RPC, args=(handoff_ids,))]
        return await ask_engine(self._engine, rank, "collective_rpc", RPC, None, (handoff_ids,))


def _of_its_engine(by_engine: Sequence[list[Any]]) -> list[Any]:
    """Return the messages of the engine that has a request's scores, out of all that were asked.

    If two of them have some, one of them has those of an earlier request, and nobody knows which.
    """
    if len(by_engine) == 1:
        return by_engine[0]
    having = [workers for workers in by_engine if any(one and one.get("layers", True) for one in workers)]
    return having[0] if len(having) == 1 else [None]


def combine(messages: Sequence[dict[str, Any] | None], heads: Literal["max", "mean"]) -> PromptScores:
    """Make one of the ranks' scores: tensor-parallel ranks hold parts of the heads, pipeline ranks of the layers.

    Args:
        messages: per rank, what `PDDWorker.pdd_take_scores` returned for one request.
        heads: how the ranks reduced their heads, and how the ranks' results are reduced in turn.

    Raises:
        NotCaptured: a rank has no scores.
    """
    by_layer: dict[int, list[np.ndarray]] = {}
    window = 0
    for message in messages:
        if message is None:
            raise NotCaptured("a worker has no scores: it was restarted, or dropped them for newer ones")
        if "missed" in message:
            raise NotCaptured(message["missed"])
        layers = message["layers"]
        if layers:
            window = message["window"]
            values = np.frombuffer(message["values"], dtype=np.float32).reshape(len(layers), -1)
            for layer, row in zip(layers, values, strict=True):
                by_layer.setdefault(layer, []).append(row)
    if not by_layer:
        raise NotCaptured("no worker holds a captured layer")
    reduce = np.max if heads == "max" else np.mean
    chosen = tuple(sorted(by_layer))
    values = np.stack([reduce(by_layer[layer], axis=0) for layer in chosen])
    if not np.isfinite(values).all():
        raise NotCaptured("the request was not found in the batch's block table")
    return PromptScores(values=values, layers=chosen, window=window, heads=heads)

"""Fetches captured attention from the workers: one call for all requests that wait for theirs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pdd_core.errors import NotCaptured
from pdd_core.refinement.scores import PromptScores

if TYPE_CHECKING:
    from collections.abc import Sequence

RPC = "pdd_take_scores"
"""`pdd_vllm_plugin.worker.PDDWorker.pdd_take_scores`, on every rank."""


class ScoreFetcher:
    """Asks one engine. While a call is under way, the next ones gather: the engine answers between two steps."""

    def __init__(self, engine_client: Any, heads: Literal["max", "mean"]) -> None:
        self._engine = engine_client
        self._heads = heads
        self._waiting: dict[str, asyncio.Future[list[Any]]] = {}
        self._calling: asyncio.Task[None] | None = None

    async def fetch(self, handoff_id: str) -> PromptScores:
        """Return the scores of a request whose first token is there. They can be had once.

        Raises:
            NotCaptured: some worker has none; says why.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting[handoff_id] = future
        if self._calling is None or self._calling.done():
            self._calling = asyncio.create_task(self._call())
        return combine(await future, self._heads)

    async def _call(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, {}
            try:
                by_rank = await self._engine.collective_rpc(RPC, args=(list(batch),))
            except Exception as error:  # noqa: BLE001 - of the engine; each waiting request reports it
                for future in batch.values():
                    if not future.done():
                        future.set_exception(NotCaptured(f"the workers gave no answer: {type(error).__name__}"))
                continue
            for index, future in enumerate(batch.values()):
                if not future.done():
                    future.set_result([rank[index] for rank in by_rank])


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

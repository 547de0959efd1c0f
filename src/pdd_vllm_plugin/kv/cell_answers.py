"""Answers what is asked about cells: ``GET /v1/pdd/handoffs/{id}/kv``.

The API process that has the state says whether the cells are there, and waits for them. The one that was asked
then streams them: the workers' files are on this machine, and no cells go through another process.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio
from pydantic import BaseModel, NonNegativeInt
from starlette.responses import Response

from pdd_core.handoff import KVCells, Status
from pdd_core.kv.geometry import NoKV
from pdd_vllm_plugin import openai_json
from pdd_vllm_plugin.kv.cells_response import CellsResponse
from pdd_vllm_plugin.kv.offer import offer, offer_of
from pdd_vllm_plugin.kv.shelves import GONE, Shelves
from pdd_vllm_plugin.kv.token_bucket import bucket

if TYPE_CHECKING:
    from typing import Any

    from pdd_core.optin import OptIn
    from pdd_core.state_request import StateRequest
    from pdd_vllm_plugin.config import PDDConfig
    from pdd_vllm_plugin.handoff_record import HandoffRecord
    from pdd_vllm_plugin.metrics import CloudMetrics

POLL_S = 0.01
MAX_STREAMS = 64
"""Streams that one API process serves at once: each holds one part of a piece in memory."""
_THREADS = 4
PENDING = "the cells are not there yet: ask again"
BUSY = f"this server streams the cells of {MAX_STREAMS} requests already: ask again"


class _Ticket(BaseModel):
    """The cells are there."""

    tokens: NonNegativeInt
    engine: NonNegativeInt
    """Rank of the engine that has them."""


class CellAnswers:
    """Of one API process; `processes` share the bound on what a server sends."""

    def __init__(
        self, config: PDDConfig, shelves: Shelves | NoKV, metrics: CloudMetrics, processes: int = 1
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._bucket = bucket(config.kv_mbit_s, processes)
        self._limiter = anyio.CapacityLimiter(_THREADS)
        self._streams = 0
        self.shelves = shelves
        """Where the cells are, or why there are none."""

    def offer(self, opt_in: OptIn, prompt: Any, lora: Any) -> KVCells | NoKV:
        """Return what a request is told when it begins. Cells of an earlier one of the same id go."""
        offered = offer(opt_in, prompt, lora, shelves=self.shelves, config=self._config)
        if isinstance(offered, KVCells):
            self.drop(opt_in.handoff_id, old=True)
        return offered

    def measured(self, record: HandoffRecord) -> None:
        """Look at the prompt's length, which is known by now."""
        if isinstance(record.kv, KVCells):
            record.kv = offer_of(len(record.prompt_token_ids), self._config)

    def drop(self, handoff_id: str, *, old: bool = False) -> None:
        """Drop the cells of a handoff, those that are still to come as well if not `old`. A stream goes on."""
        if isinstance(self.shelves, Shelves):
            self.shelves.drop(handoff_id, old=old)

    async def ticket(self, request: StateRequest, record: HandoffRecord) -> Response:
        """Answer for a record that is here, as soon as its cells are there: what `stream` takes, or an error."""
        begun = time.monotonic()
        with anyio.move_on_after(self._config.cancel_timeout_s):
            while (found := self._find(record)) is None:  # noqa: ASYNC110 - another process writes it
                await anyio.sleep(POLL_S)
        if found is None:
            self._metrics.kv_answered("pending")
            return openai_json.error(503, PENDING, headers={"retry-after": "1"})
        if isinstance(found, NoKV):
            record.kv = found
            return self._refused(found)
        self._metrics.kv_waited(time.monotonic() - begun)
        assert isinstance(record.kv, KVCells)  # noqa: S101 - or `_find` had told of none
        tokens = record.kv.tokens
        end = tokens if request.end is None else request.end
        if not request.begin <= end <= tokens:
            return openai_json.error(
                400, f"there are cells from 0 to {tokens}, not from {request.begin} to {end}", param="to"
            )
        return Response(_Ticket(tokens=tokens, engine=found).model_dump_json(), media_type="application/json")

    def _find(self, record: HandoffRecord) -> int | NoKV | None:
        """Return the rank of the engine that has the cells, or that there are none; None while nobody knows."""
        if isinstance(record.kv, NoKV):
            return record.kv
        running = record.status is Status.RUNNING
        if isinstance(self.shelves, NoKV) or (running and not record.output_token_ids):
            return None  # they cannot be there before the prompt is processed
        found = self.shelves.find(record.opt_in.handoff_id, record.engine)
        if found is None and not running:
            ended_for = time.monotonic() - record.touched
            if not record.output_token_ids or ended_for > self._config.cancel_timeout_s:
                return GONE
        if found is None and record.kv_found:
            return GONE
        record.kv_found = record.kv_found or isinstance(found, int)
        return found

    def stream(self, request: StateRequest, ticket: bytes) -> Response:
        """Stream what `ticket` says is there."""
        there = _Ticket.model_validate_json(ticket)
        if self._streams >= MAX_STREAMS:
            self._metrics.kv_answered("busy")
            return openai_json.error(429, BUSY, headers={"retry-after": "1"})
        if isinstance(self.shelves, NoKV):
            return self._refused(self.shelves)
        parts = self.shelves.open(request.id, there.engine, tokens=there.tokens)
        if isinstance(parts, NoKV):
            return self._refused(parts)
        self._streams += 1
        buckets = [one for one in (bucket(self._config.kv_request_mbit_s), self._bucket) if one is not None]
        end = there.tokens if request.end is None else request.end
        return CellsResponse(parts, (request.begin, end), buckets=buckets, limiter=self._limiter, then=self._ended)

    def _ended(self, whole: bool, sent: int) -> None:
        self._streams -= 1
        self._metrics.kv_answered("sent" if whole else "left", sent)

    def _refused(self, none: NoKV) -> Response:
        self._metrics.kv_answered(none.reason)
        return openai_json.error(404 if none.reason == "gone" else 409, none.message, kv=none)

"""Answers what is asked about handoff states, by whichever way it came: a route, a POST, another process.

What is not here is looked for elsewhere before it is said to be nowhere.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import anyio
from starlette.responses import JSONResponse, Response

from pdd_core.errors import InvalidOptIn
from pdd_core.fingerprint import PIECE
from pdd_core.handoff import HandoffDeleted, HandoffState, Status, VocabularyPiece
from pdd_core.optin import check_handoff_id
from pdd_core.state_request import BY_COMPLETION, BY_HANDOFF, StateRequest, Verb
from pdd_vllm_plugin import openai_json
from pdd_vllm_plugin.cancel import cancel, confirm

if TYPE_CHECKING:
    from pdd_vllm_plugin.handoff_record import HandoffRecord
    from pdd_vllm_plugin.handoff_service import HandoffService

UNKNOWN = "no handoff has this id: it is unknown, expired or deleted"
FLOODED = (
    f"{UNKNOWN}. So many such ids were deleted within a minute that this one cannot be refused to a request that "
    "is yet to come: ask again"
)
UNKNOWN_COMPLETION = "no opted-in completion has this id: it is unknown, expired or deleted"
_OBJECTS = {Verb.CANCEL: "pdd.handoff.deleted", Verb.DELETE: "chat.completion.deleted"}


class Elsewhere(Protocol):
    """Where states are that this process does not have."""

    async def answer(self, request: StateRequest) -> Response | None:
        """Return its answer, or None if it has no such state either."""


class StateAnswers:
    """Over one `HandoffService`."""

    def __init__(self, service: HandoffService) -> None:
        self._service = service

    async def answer(self, request: StateRequest) -> Response:
        """Answer from the process that has it, else from elsewhere, else with a 404."""
        found = await self._answer(request)
        if request.verb is Verb.CELLS and found.status_code == 200:
            return self._service.cells.stream(request, bytes(found.body))
        return found

    async def _answer(self, request: StateRequest) -> Response:
        processes = self._service.processes
        told = None if processes is None else await processes.answer(request)
        if told is None:
            found = await self.answer_here(request)
        else:
            found = None if told.status_code == 404 else told
        for elsewhere in self._service.elsewhere:
            if found is None and request.verb is not Verb.CELLS:  # these are on one machine only
                found = await elsewhere.answer(request)
        if found is not None:
            return found
        if told is None and processes is not None and request.verb is Verb.CANCEL and not self._refuse(request):
            told = await processes.answer(request)  # its POST has come to another process meanwhile
        return self._not_found(request) if told is None else told

    async def answer_for_other(self, request: StateRequest) -> Response | None:
        """Answer another process of this server, which asks because the name is this one's."""
        found = await self.answer_here(request)
        if found is None and self._service.store.is_refused(request.id):
            found = self._not_found(request)
        return found

    async def answer_here(self, request: StateRequest) -> Response | None:
        """Answer from what this process has; None if the state is not here."""
        if request.verb is Verb.INFO:
            return Response(self._service.info_json, media_type="application/json")
        if request.verb is Verb.VOCABULARY:
            piece = self._service.vocabulary[request.start : request.start + PIECE]
            return _json(VocabularyPiece(start=request.start, tokens=piece))
        records = self._named(request)
        if len(records) > 1:
            return openai_json.error(409, openai_json.AMBIGUOUS)
        if request.verb in _OBJECTS:
            return await self._delete(request, records[0] if records else None)
        if not records:
            return None
        if request.verb is Verb.CELLS:
            return await self._service.cells.ticket(request, records[0])
        if request.verb is Verb.RETRIEVE:
            text = "".join(records[0].text)
            return JSONResponse(openai_json.chat_completion(self._state(records[0]), text))
        return await self._read(request, records[0])

    def _named(self, request: StateRequest) -> list[HandoffRecord]:
        if request.verb in BY_HANDOFF:
            record = self._service.store.get(request.id)
            return [] if record is None else [record]
        return self._service.store.find(request.id)

    async def _read(self, request: StateRequest, record: HandoffRecord) -> Response:
        """Send the state now, or after up to `wait` seconds when it changes.

        A change is the refined prompt's being there, then the request's end. Without `wait`, only a refined prompt
        that is being made is waited for: it is part of the state from the first token on.
        """
        wait = request.wait
        if record.refinement_pending and (wait or record.refining):
            with anyio.move_on_after(self._service.config.cancel_timeout_s if wait is None else wait):
                await record.refined.wait()
        elif wait and record.status is Status.RUNNING:
            with anyio.move_on_after(wait):
                await record.changed.wait()
        return _json(self._state(record, request.after))

    def _state(self, record: HandoffRecord, after: int = 0) -> HandoffState:
        return record.state(expires=time.time() + self._service.store.expires_in(record), after=after)

    async def _delete(self, request: StateRequest, record: HandoffRecord | None) -> Response | None:
        """Stop the cloud's decoding, drop the state, and answer when the engine has confirmed."""
        service = self._service
        # Without a record it was deleted before: only the engine's word may still be missing.
        if record is None and not service.store.was_deleted(request.id):
            return None
        engine, timeout = service.engine_client, service.config.cancel_timeout_s
        running = record is not None and record.status is Status.RUNNING
        if record is None:
            confirmed = await confirm(engine, timeout)
        else:
            service.store.delete(record.opt_in.handoff_id)
            confirmed = await cancel(engine, record, timeout)
            if request.used is not None:
                service.metrics.used(record, request.used)
        if running:
            service.metrics.cancelled(confirmed=confirmed)
        return deleted(request, confirmed=confirmed)

    def _not_found(self, request: StateRequest) -> Response:
        if request.verb in BY_COMPLETION:
            return openai_json.error(404, UNKNOWN_COMPLETION)
        if request.verb is Verb.CANCEL and self._refuse(request):
            late = "a request that comes with this id within a minute is refused"
            return openai_json.error(404, f"{UNKNOWN}; {late}")
        if request.verb is Verb.CANCEL and _is_handoff_id(request.id) and not self._can_refuse(request):
            return openai_json.error(429, FLOODED, headers={"retry-after": "1"})
        return openai_json.error(404, UNKNOWN)

    def _refuse(self, request: StateRequest) -> bool:
        """Refuse an id for a minute: its DELETE may have overtaken its POST. False if that cannot be."""
        return _is_handoff_id(request.id) and self._service.store.refuse(request.id)

    def _can_refuse(self, request: StateRequest) -> bool:
        return self._service.store.can_refuse(request.id)


def _is_handoff_id(name: str) -> bool:
    try:
        return bool(check_handoff_id(name))
    except InvalidOptIn:
        return False


def deleted(request: StateRequest, *, confirmed: bool) -> Response:
    """Answer a DELETE: 200 with the engine's word, 202 without."""
    body = HandoffDeleted(id=request.id, object=_OBJECTS[request.verb], confirmed=confirmed)
    return JSONResponse(body.model_dump(), status_code=200 if confirmed else 202)


def _json(model: HandoffState | VocabularyPiece) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")

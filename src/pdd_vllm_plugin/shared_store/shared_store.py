"""The shared store as one process sees it: told of every state here, and asked for those that are elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as Lost
from redis.exceptions import RedisError

from pdd_core.env import Env
from pdd_core.errors import PDDError
from pdd_core.state_request import BY_COMPLETION, Verb
from pdd_vllm_plugin import openai_json
from pdd_vllm_plugin.cancel import ENDED_BY_ENGINE
from pdd_vllm_plugin.handoff_names import names_a_state
from pdd_vllm_plugin.shared_store import names
from pdd_vllm_plugin.shared_store.connection import COMMAND_S, connect
from pdd_vllm_plugin.shared_store.questions import Questions
from pdd_vllm_plugin.shared_store.state_writer import Removal, StateWriter, confirmed
from pdd_vllm_plugin.shared_store.store_metrics import StoreMetrics
from pdd_vllm_plugin.shared_store.store_thread import StoreThread
from pdd_vllm_plugin.shared_store.stored_state import StoredState, decode
from pdd_vllm_plugin.state_answers import UNKNOWN, UNKNOWN_COMPLETION, deleted
from pdd_vllm_plugin.tombstones import MAX_TOMBSTONES

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response

    from pdd_core.handoff import HandoffState
    from pdd_core.state_request import StateRequest
    from pdd_vllm_plugin.handoff_record import HandoffRecord
    from pdd_vllm_plugin.handoff_service import HandoffService

logger = logging.getLogger("vllm.pdd")
RETRY_S = (0.1, 5.0)
"""First and longest wait before the next try to connect."""
TELL_S = 0.01
"""How long what is to be written is gathered."""
LOOK_S = 2.0
"""How often it is looked whether the store still answers when nobody asks it anything."""
FAULTS = (RedisError, OSError, ValueError, PDDError)
"""No connection, a command that is refused, or a value that is not ours."""
DELETED = (200, 202)
UNREACHABLE = "; the shared store does not answer, so other servers' states cannot be seen"


class SharedStore:
    """Begins when it is made, in the event loop that serves; `service` then asks it, and its store tells it.

    All of its own work is done in a `StoreThread`.
    """

    def __init__(self, service: HandoffService) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._password = Env().store_password
        self._metrics = StoreMetrics(service.metrics.registry)
        self._names: dict[str, str] = {}
        """Ids of the states here, and of their completions, by their hashes."""
        self._gone: OrderedDict[str, str] = OrderedDict()
        """The same of deleted ones: their DELETE may come again."""
        self._writer = StateWriter(service.config, service.store, self._metrics)
        self._questions = Questions(self._name_of, self._answer_here)
        self._client: Any = None
        """None while the store does not answer."""
        self._asking: set[asyncio.Task[Any]] = set()
        """The thread's tasks that ask it."""
        self._said = self._stopping = False
        self._told: list[tuple[Callable[[Any], None], HandoffRecord | Removal]] = []
        """What the thread has not been told yet."""
        service.store.watch = self
        service.elsewhere.append(self)
        self._thread = StoreThread(self._main)

    def stop(self) -> None:
        """End the thread and its connections. States that wait are lost."""
        self._stopping = True
        self._thread.stop()

    def added(self, record: HandoffRecord) -> None:
        """Take in that a request has begun."""
        for name in (record.opt_in.handoff_id, record.completion_id):
            self._names[names.digest(name)] = name

    def ended(self, record: HandoffRecord) -> None:
        """Take in that a request has ended, or that its refined prompt is settled."""
        if record.stored is not record.refinement:
            record.stored = record.refinement
            self._tell(self._writer.put, record)

    def dropped(self, record: HandoffRecord, *, shared: bool) -> None:
        """Take in that a state is not here any more. `shared`: another has the same completion's id."""
        self._names.pop(names.digest(record.opt_in.handoff_id), None)
        if not shared:
            self._names.pop(names.digest(record.completion_id), None)

    def removed(self, record: HandoffRecord, *, deleted: bool) -> None:
        """Take in that a state must not be found any more: it was deleted, or a new request has its id."""
        ids = record.opt_in.handoff_id, record.completion_id
        if deleted:
            self._gone.update((names.digest(name), name) for name in ids)
            while len(self._gone) > MAX_TOMBSTONES:
                self._gone.popitem(last=False)
        self._tell(self._writer.remove, Removal(*ids, gone=confirmed(record.status) if deleted else ""))
        if record.stored is not None:
            self._pass_on()  # now: somebody may ask another server next

    async def answer(self, request: StateRequest) -> Response | None:
        """Answer from the store, or as another replica does; None if neither has the state."""
        try:
            return await self._thread.result(self._answer(request))
        except RuntimeError:  # stopped
            return None

    def _tell(self, writer: Callable[[Any], None], what: HandoffRecord | Removal) -> None:
        self._told.append((writer, what))
        if len(self._told) == 1:  # waking the thread takes longer than all of this
            self._loop.call_later(TELL_S, self._pass_on)

    def _pass_on(self) -> None:
        told, self._told = self._told, []
        self._thread.call(lambda: [writer(what) for writer, what in told])

    def _name_of(self, digest: str) -> str | None:
        return self._names.get(digest) or self._gone.get(digest)

    async def _answer_here(self, request: StateRequest) -> Response | None:
        answer = self._service.answers.answer_here(request)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answer, self._loop))

    # From here on, everything runs in the thread.

    async def _main(self) -> None:
        wait = RETRY_S[0]
        while True:
            try:
                await self._while_connected()
            except Exception as error:  # noqa: BLE001 - nothing that happens here may end what serves requests
                if self._stopping:
                    return  # a connection that is cancelled may raise something of its own
                if self._writer.open:
                    wait = RETRY_S[0]
                self._went_down(error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, RETRY_S[1])

    async def _while_connected(self) -> None:
        client = connect(str(self._service.config.store), self._password)
        async with client, client.pubsub() as pubsub:
            await self._questions.subscribe(pubsub)
            async with asyncio.timeout(COMMAND_S):
                while not await self._questions.hears(client):  # noqa: ASYNC110 - the server's event
                    await asyncio.sleep(0.01)
            self._client, self._writer.open, self._said = client, True, False
            self._metrics.up.set(1)
            logger.info("pdd: the shared store answers")
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._writer.run(client))
                    tasks.create_task(self._questions.listen(pubsub, client))
                    tasks.create_task(self._look(client))
            finally:
                await self._stop_asking()  # or the closed client would connect again, for ever

    async def _look(self, client: Any) -> None:
        while await self._questions.hears(client):
            if self._stopping:
                break  # up to Python 3.11, asyncio.wait_for within may swallow the cancellation
            await asyncio.sleep(LOOK_S)
        raise Lost("the subscription is gone")

    async def _stop_asking(self) -> None:
        self._client = None
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    def _went_down(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        self._writer.open = False
        self._writer.drop_all()
        self._metrics.up.set(0)
        self._metrics.error()
        if not self._said:
            self._said = True
            expected = isinstance(error, RedisError | OSError)
            logger.warning(
                "pdd: the shared store does not answer (%s: %s); requests go on, and other servers see no state "
                "of this one until it does", type(error).__name__, error, exc_info=None if expected else error,
            )  # fmt: skip

    async def _answer(self, request: StateRequest) -> Response | None:
        deletes = request.verb in {Verb.CANCEL, Verb.DELETE}
        if (client := self._client) is not None:
            asking = asyncio.create_task((self._delete if deletes else self._read)(client, request))
            self._asking.add(asking)
            try:
                return await asking
            except FAULTS as error:
                self._metrics.error()
                logger.debug("pdd: the shared store could not answer: %r", error)
            except asyncio.CancelledError:
                if self._client is client:  # else it was `_stop_asking`
                    raise
            finally:
                self._asking.discard(asking)
        if deletes:
            return None  # the 404 has a tombstone as its consequence: `StateAnswers`
        known_as = UNKNOWN_COMPLETION if request.verb is Verb.RETRIEVE else UNKNOWN
        return openai_json.error(404, known_as + UNREACHABLE)

    async def _read(self, client: Any, request: StateRequest) -> Response | None:
        found = await self._find(client, request)
        if len(found) > 1:
            return openai_json.error(409, openai_json.AMBIGUOUS)
        if not found or found[0].pending:
            # It runs, or its refined prompt is made: the owner waits for the change.
            told = await self._ask(client, request)
            if told is not None or not found:
                return told
        return found[0].answer(request)

    async def _delete(self, client: Any, request: StateRequest) -> Response | None:
        told = await self._ask(client, request)
        if told is not None:
            if told.status_code in DELETED:
                with suppress(*FAULTS):  # its owner does this, too, but perhaps a moment later
                    for stored in await self._find(client, request):
                        await self._remove(client, stored.state)
            return told
        # Its owner has dropped it, or is gone. What the engine had ended needs no other word of it.
        found = await self._find(client, request)
        if len(found) > 1:
            return openai_json.error(409, openai_json.AMBIGUOUS)
        if not found:
            gone = await client.get(names.gone_key(request.id))
            return None if gone is None else deleted(request, confirmed=gone == b"1")
        state = found[0].state
        await self._remove(client, state)
        return deleted(request, confirmed=state.status in ENDED_BY_ENGINE)

    async def _remove(self, client: Any, state: HandoffState) -> None:
        gone = Removal(state.handoff_id, state.request_id, gone=confirmed(state.status))
        await self._writer.remove_now(client, gone)

    async def _ask(self, client: Any, request: StateRequest) -> Response | None:
        within = max(self._service.config.cancel_timeout_s, request.wait or 0.0) + 1.0
        return await self._questions.ask(client, request, within=within)

    async def _find(self, client: Any, request: StateRequest) -> list[StoredState]:
        """Return the stored states that the id names: a handoff id's, or a completion's where that may be."""
        handoff_ids = [request.id]
        if request.verb in BY_COMPLETION and names_a_state(request.id):
            sealed = await client.smembers(names.completion_key(request.id))
            handoff_ids += [names.unseal(request.id, member).decode() for member in sealed]
        values = await client.mget([names.state_key(handoff_id) for handoff_id in handoff_ids])
        return [decode(*pair) for pair in zip(handoff_ids, values, strict=True) if pair[1] is not None]

"""Questions to the other replicas, through the store's channels: what still runs is known to its owner alone.

A question has the hash of the id. Each replica answers every question, also when it does not have the state. So
the one that asks knows at once when nobody has it, and otherwise waits for the engine alone.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError
from redis.exceptions import RedisError
from starlette.responses import Response

from pdd_core.state_request import MAX_WAIT_S, StateRequest, Verb
from pdd_vllm_plugin.shared_store.names import ASK, answer_channel, digest, seal, unseal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

logger = logging.getLogger("vllm.pdd")
_POLL_S = 60.0
_NUMBER = 16
"""Characters of a question's number; an answer begins with it, three digits of the status follow."""
_NOT_HERE = "000"


class _Question(BaseModel):
    number: str
    replica: str
    """Who asks."""
    verb: Verb
    name: str
    """Hash of the id."""
    after: NonNegativeInt = 0
    wait: float | None = Field(default=None, ge=0, le=MAX_WAIT_S)
    used: NonNegativeInt | None = None


class Questions:
    """Of one replica. Used from the store's thread only.

    `name_of` returns the id that a hash stands for, or None if this replica has none. `answer_here` answers from
    what this replica has.
    """

    def __init__(
        self,
        name_of: Callable[[str], str | None],
        answer_here: Callable[[StateRequest], Awaitable[Response | None]],
    ) -> None:
        self._name_of = name_of
        self._answer_here = answer_here
        self._replica = secrets.token_hex(8)
        self._waiting: dict[str, asyncio.Queue[bytes]] = {}

    async def subscribe(self, pubsub: Any) -> None:
        """Begin to hear questions and answers."""
        await pubsub.subscribe(ASK, answer_channel(self._replica))

    async def listen(self, pubsub: Any, client: Any) -> None:
        """Take in what comes, for as long as the connection holds. No answer of this replica outlives it."""
        async with asyncio.TaskGroup() as replies:
            while True:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=_POLL_S)
                if message is None:
                    continue
                if message["channel"] == ASK.encode():
                    self._asked(replies, client, message["data"])
                else:
                    waiting = self._waiting.get(message["data"][:_NUMBER].decode(errors="replace"))
                    if waiting is not None:  # else it came too late
                        waiting.put_nowait(message["data"][_NUMBER:])

    async def hears(self, client: Any) -> bool:
        """Whether what is published reaches this replica's subscription."""
        return bool(await client.publish(answer_channel(self._replica), b""))

    async def ask(self, client: Any, request: StateRequest, *, within: float) -> Response | None:
        """Return the answer of the replica that has the state; None without one within `within` seconds.

        Raises:
            redis.exceptions.RedisError: the store does not answer.
        """
        number = secrets.token_hex(_NUMBER // 2)
        question = _Question(
            number=number, replica=self._replica, verb=request.verb, name=digest(request.id),
            after=request.after, wait=request.wait, used=request.used,
        )  # fmt: skip
        answers = self._waiting[number] = asyncio.Queue()
        try:
            async with asyncio.timeout(within):
                hearers = await client.publish(ASK, question.model_dump_json())
                for _ in range(hearers - 1):  # without this replica
                    answer = await answers.get()
                    if (status := answer[:3].decode()) != _NOT_HERE:
                        body = unseal(request.id, answer[3:])
                        return Response(body, int(status), media_type="application/json")
        except TimeoutError:
            pass  # one of them hangs
        finally:
            del self._waiting[number]
        return None

    def _asked(self, replies: asyncio.TaskGroup, client: Any, data: bytes) -> None:
        try:
            question = _Question.model_validate_json(data)
        except ValidationError:
            return  # not ours
        if question.replica != self._replica:
            replies.create_task(self._reply(client, question))

    async def _reply(self, client: Any, question: _Question) -> None:
        name, answer = self._name_of(question.name), _NOT_HERE.encode()
        try:
            if name is not None:
                request = StateRequest(
                    question.verb, name, after=question.after, wait=question.wait, used=question.used
                )
                response = await self._answer_here(request)
                if response is not None:
                    answer = str(response.status_code).encode() + seal(name, bytes(response.body))
        except Exception:  # the other replica gets its answer, whatever happens here
            logger.exception("pdd: a question of another replica could not be answered")
        try:
            await client.publish(answer_channel(question.replica), question.number.encode() + answer)
        except RedisError as error:  # the connection is gone: `SharedStore` says so
            logger.debug("pdd: an answer to another replica was lost: %r", error)

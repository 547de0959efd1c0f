"""Asks the API process that has a handoff, and answers the others for those that are here.

Each process listens on a Unix socket in the shared folder. A connection carries one question, which ends with the
asker's end of file, and one answer: a line with the HTTP status, and the body. An empty question asks for room.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import anyio
from pydantic import TypeAdapter
from starlette.responses import Response

from pdd_core.state_request import BY_COMPLETION, BY_HANDOFF, StateRequest
from pdd_vllm_plugin import openai_json
from pdd_vllm_plugin.processes.folder import SharedFolder
from pdd_vllm_plugin.processes.shared_counts import SharedCounts
from pdd_vllm_plugin.processes.shared_names import SharedNames

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from pdd_vllm_plugin.handoff_service import HandoffService

logger = logging.getLogger("vllm.pdd")

ENDED = "the API server process that had this handoff has ended, and its state with it"
SILENT = "the API server process that has this handoff gives no answer; ask again"
MARGIN_S = 5.0
"""Seconds beyond what was asked for until a process counts as silent."""
PURGE_EVERY_S = 10.0
"""An id that has become free here is to be free for the others as well, if this process has nothing to do, too."""
_BACKLOG = 1024
_WIRE = TypeAdapter(StateRequest)


class OtherProcesses:
    """The place of this process among `count` API processes of one server."""

    def __init__(self, folder: SharedFolder, rank: int, count: int) -> None:
        self._folder = folder
        self._rank = rank
        self._counts = SharedCounts(folder.fd, rank, count)
        self.names = SharedNames(folder.fd, self._counts)
        self._tasks: set[asyncio.Task[None]] = set()
        self._asks_for_room = False

    @classmethod
    def join(cls, base: Path, server: str, rank: int, count: int) -> Self:
        """Join the processes of the server that is named `server`.

        Raises:
            UnsupportedDeployment: see `SharedFolder`.
        """
        return cls(SharedFolder(base, server), rank, count)

    async def serve(self, service: HandoffService) -> asyncio.Task[None]:
        """Answer the others from now on, until the task that is returned is cancelled: at the event loop's end."""
        self._service = service
        self.names.room_wanted = self._ask_for_room
        path = self._path(self._rank)
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._answer_one, path, backlog=_BACKLOG)
        return self._start(self._live(server))

    async def _live(self, server: asyncio.Server) -> None:
        try:
            while True:
                await asyncio.sleep(PURGE_EVERY_S)
                self._service.store.purge()
        finally:
            server.close()
            self.leave()

    def leave(self) -> None:
        """Leave the others. They say of what was here that it is gone."""
        self._path(self._rank).unlink(missing_ok=True)
        self._counts.leave()
        self.names.close()
        self._folder.leave()

    async def answer(self, request: StateRequest) -> Response | None:
        """Return the answer of the process that has the state; None if this one has it, or nobody."""
        if request.verb not in BY_HANDOFF | BY_COMPLETION:
            return None
        ranks = self.names.owners(request.id, completions=request.verb in BY_COMPLETION)
        if len(ranks) > 1:
            return openai_json.error(409, openai_json.AMBIGUOUS)
        return None if not ranks or ranks[0] == self._rank else await self._ask(ranks[0], request)

    async def _ask(self, rank: int, request: StateRequest) -> Response | None:
        try:
            with anyio.fail_after(max(request.wait or 0.0, self._service.config.cancel_timeout_s) + MARGIN_S):
                answer = await self._exchange(rank, _WIRE.dump_json(request))
        except (ConnectionError, FileNotFoundError):
            return openai_json.error(404, ENDED)
        except OSError:  # out of time is one, too
            return openai_json.error(503, SILENT)
        status, line, body = answer.partition(b"\n")
        if not line:  # it ended before it could answer
            return openai_json.error(404, ENDED)
        return Response(body, int(status), media_type="application/json") if status else None

    async def _exchange(self, rank: int, question: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._path(rank))
        try:
            writer.write(question)
            writer.write_eof()
            return await reader.read()
        finally:
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = await reader.read()
            if question:
                found = await self._service.answers.answer_for_other(_WIRE.validate_json(question))
                writer.write(b"\n" if found is None else b"%d\n" % found.status_code + bytes(found.body))
                await writer.drain()
            else:
                self._service.store.make_room()
        except ConnectionError:
            pass  # who asked has left
        except Exception:
            logger.exception("pdd: another API server process could not be answered")
            writer.write(b"503\n" + bytes(openai_json.error(503, SILENT).body))
        finally:
            writer.close()

    def _ask_for_room(self, rank: int) -> None:
        if not self._asks_for_room:
            self._asks_for_room = True
            self._start(self._make_room(rank))

    async def _make_room(self, rank: int) -> None:
        made = False
        with suppress(OSError), anyio.move_on_after(MARGIN_S):
            await self._exchange(rank, b"")
            made = True
        self._asks_for_room = False
        if made:
            self._service.store.make_room()  # more requests may have come meanwhile

    def _start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _path(self, rank: int) -> Path:
        return self._folder.path / f"{rank}.sock"

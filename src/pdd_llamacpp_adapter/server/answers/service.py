"""What all routes share: the runtime, once it is there, and the books of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import anyio

from pdd_llamacpp_adapter.server.answers.admission_queue import AdmissionQueue
from pdd_llamacpp_adapter.server.answers.incoming import IncomingRequests
from pdd_llamacpp_adapter.server.answers.recent import RecentAnswers
from pdd_llamacpp_adapter.server.answers.server_metrics import ServerMetrics
from pdd_llamacpp_adapter.server.answers.stored import StoredAnswers
from pdd_llamacpp_adapter.server.streams.kept_streams import KeptStreams
from pdd_llamacpp_adapter.server.wire.failures import SHUTTING_DOWN

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from pdd_core.sampling_defaults import DefaultSamplingParams
    from pdd_core.tracing import Tracing
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.server.answers.http_limits import HttpLimits
    from pdd_llamacpp_adapter.server.answers.stored import KeptAnswer
    from pdd_llamacpp_adapter.session.answer_session import AnswerSession

_PREPARING = 4
"""Requests whose prompts are made at a time. Of all worker threads, long prompts would leave none to others."""
_STOPPING = 5.0
"""Seconds that answers which were told to stop have for it."""


class AnswerSource(Protocol):
    """A `Runtime`, as far as the server needs it: the runtime's own module imports the server."""

    @property
    def model_name(self) -> str:
        """The name that clients see."""

    @property
    def created(self) -> int:
        """When it was loaded, Unix seconds."""

    @property
    def refines(self) -> bool:
        """Whether prompts may be refined, so that it matters what of them has to stay."""

    @property
    def session_header(self) -> str:
        """The header by which a client can name its conversation; empty for none."""

    @property
    def vocab(self) -> Any:
        """A `Vocabulary`."""

    def context_limit(self) -> int:
        """Tokens of the longest prompt and answer that can be served now."""

    def default_max_tokens(self, prompt_tokens: int) -> int:
        """Tokens of the longest answer to a prompt of this length; below 1 where none fits."""

    def sampling_defaults(self) -> DefaultSamplingParams:
        """How tokens are chosen where a client does not say."""

    def check_grammar(self, request: AnswerRequest) -> AnswerRequest:
        """Refuse the request's grammar, if it has one that cannot be obeyed. Called on a worker thread."""

    def session(
        self, request: AnswerRequest, *, paced: bool = True, group: str = ""
    ) -> AbstractAsyncContextManager[AnswerSession]:
        """Return a session that will answer `request`; entering it may refuse the request.

        `paced` False is for a client that waits for all of it; `group` says whose answers are alike.
        """

    def cloud_status(self) -> dict[str, object]:
        """Return ``{"url", "state", "way", "error"}``."""

    def learnt(self) -> dict[str, object]:
        """Return what was learnt of device and cloud, JSON-ready."""


class Service:
    """The server behind its routes. Made before the model is loaded; `runtime` is set when it is.

    Not tied to HTTP: the program that runs the application sets `runtime` and calls `shut_down`.
    """

    def __init__(
        self, limits: HttpLimits, runtime: AnswerSource | None = None, *, tracing: Tracing | None = None
    ) -> None:
        self.limits = limits
        self.tracing = tracing
        """Joins answers to their clients' traces; None: not traced."""
        self.runtime = runtime
        self.stopping = False
        """True once `shut_down` was called: every new request is answered with 503."""
        self.queue = AdmissionQueue(limits.max_running, limits.max_queue)
        self.preparing = anyio.CapacityLimiter(_PREPARING)
        """Held while a prompt is made of a request."""
        self.stored = StoredAnswers(limits.stored_answers, limits.stored_ttl, limits.stored_bytes)
        self.streams = KeptStreams(limits.streams)
        self.metrics = ServerMetrics(self.queue)
        self.recent = RecentAnswers()
        self.incoming = IncomingRequests(self._ring)
        self._answers: set[KeptAnswer] = set()
        self._bell = anyio.Event()

    def loaded(self) -> AnswerSource:
        """Return the runtime; requests come to their routes only once there is one."""
        if self.runtime is None:
            raise RuntimeError("the model is not loaded yet")
        return self.runtime

    def begun(self, answer: KeptAnswer) -> None:
        """Count `answer` among those at work. Once the server stops, it is stopped at once."""
        self._answers.add(answer)
        if self.stopping:
            answer.stop(SHUTTING_DOWN)
        self.stored.begun(answer)

    def ended(self, answer: KeptAnswer) -> None:
        """Count `answer` no longer among those at work, however it ended."""
        self._answers.discard(answer)
        self.stored.ended(answer)
        self._ring()

    async def shut_down(self, grace: float) -> None:
        """Refuse requests whose answers have not begun, and give the others `grace` seconds; then end them too.

        Whatever is ended is told so by an error. Can be called again with less patience while it waits.
        """
        self.stopping = True
        self.incoming.refuse()
        with anyio.move_on_after(grace):
            await self._idle()
        self.incoming.end()
        for answer in list(self._answers):
            answer.stop(SHUTTING_DOWN)
        with anyio.move_on_after(_STOPPING):
            await self._idle()

    def _ring(self) -> None:
        bell, self._bell = self._bell, anyio.Event()
        bell.set()

    async def _idle(self) -> None:
        while self._answers or self.incoming:
            await self._bell.wait()

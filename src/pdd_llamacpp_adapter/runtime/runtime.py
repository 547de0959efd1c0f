"""One device, its cloud, and the sessions that make answers with them. The server and the Python API use it."""

from __future__ import annotations

import logging
import math
import time
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING
from weakref import WeakSet

import anyio

from pdd_core.errors import InvalidGrammar, first_of_ours, named
from pdd_core.handoff import KV_HANDOVER
from pdd_core.kv.geometry import KVGeometry
from pdd_core.refinement.guard import Guard
from pdd_core.tracing import Tracing
from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
from pdd_llamacpp_adapter.cloud.cloud_monitor import CloudMonitor
from pdd_llamacpp_adapter.engine.device_engine import DeviceEngine
from pdd_llamacpp_adapter.engine.grammar import GrammarEngine
from pdd_llamacpp_adapter.engine.speed import DeviceSpeed, probe
from pdd_llamacpp_adapter.engine.upgrade import upgrade_when_idle
from pdd_llamacpp_adapter.request import Grammar, GrammarKind
from pdd_llamacpp_adapter.runtime.agreement import Agreements
from pdd_llamacpp_adapter.runtime.hardware import hardware_lines, hardware_warnings
from pdd_llamacpp_adapter.runtime.learnt import learnt
from pdd_llamacpp_adapter.runtime.planning import Facts, Planning
from pdd_llamacpp_adapter.session.answer_session import AnswerSession
from pdd_llamacpp_adapter.session.cells_check import CellsChecks
from pdd_llamacpp_adapter.session.session_start import check_grammar, with_explicit_grammar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pdd_core.env import ServeSettings
    from pdd_core.sampling_defaults import DefaultSamplingParams
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary
    from pdd_llamacpp_adapter.request import AnswerRequest

logger = logging.getLogger(__name__)


class Runtime:
    """One model on the device, at most one cloud, and the settings. Belongs to one event loop.

    Use `running`, which opens and closes it.
    """

    def __init__(
        self,
        engine: DeviceEngine,
        cloud: CloudClient | None,
        settings: ServeSettings,
        *,
        model_name: str,
        planning: Planning | None = None,
    ) -> None:
        self.model_name = model_name
        self.created = int(time.time())
        self._engine = engine
        self._settings = settings
        self._speed = DeviceSpeed()
        self._cells_checks = CellsChecks()
        self._tracing = Tracing() if settings.tracing else None
        self._grammars = GrammarEngine(engine.vocab, engine.vocab.stop_ids)
        self._planning = planning or Planning(settings, n_ctx=engine.n_ctx)
        self._agreements = Agreements(settings, self._planning, self._speed, n_ctx=engine.n_ctx)
        self._sessions: WeakSet[AnswerSession] = WeakSet()
        self.cloud = CloudMonitor(cloud, engine.vocab, on_round_trip=self._round_trip)

    @classmethod
    @asynccontextmanager
    async def running(cls, gguf: Path, settings: ServeSettings, *, model_name: str) -> AsyncIterator[Runtime]:
        """Load the model, measure the device, connect to the cloud, and undo all of it at the end.

        A cloud that is not there is no error: it is tried again for as long as this runs.

        Raises:
            ConfigurationError: a setting that cannot work, or that this build of llama.cpp cannot obey.
            DeviceEngineFailed: there is not the memory, or llama.cpp cannot make a context of this size.
            ModelError: the file is missing, unreadable or not a GGUF model.
        """

        def load() -> DeviceEngine:
            return DeviceEngine.open(
                gguf, settings.llama, kv=settings.kv != "off" and settings.cloud_url is not None
            )

        planning = Planning(settings, n_ctx=settings.n_ctx)  # what cannot work is refused before a model is loaded
        engine = await anyio.to_thread.run_sync(load)
        try:
            for line in hardware_lines(engine):
                logger.info("%s", line)
            for warning in hardware_warnings(engine, settings):
                logger.warning("%s", warning)
            cloud = _client(settings)
            async with cloud or nullcontext(), anyio.create_task_group() as tasks:
                runtime = cls(engine, cloud, settings, model_name=model_name, planning=planning)
                await anyio.to_thread.run_sync(planning.learning.restore)
                tasks.start_soon(runtime.cloud.run)
                work = await probe(engine, runtime._speed, size=engine.vocab.size)
                planning.learning.probed(work)
                logger.info("the device prefills %.0f and decodes %.1f tokens per second", *runtime.device_speed())
                tasks.start_soon(runtime._warm_up_grammars)
                tasks.start_soon(planning.learning.keep)
                tasks.start_soon(upgrade_when_idle, engine, runtime._speed.chunk)
                try:
                    yield runtime
                finally:
                    tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise first_of_ours(group) from group
        finally:
            engine.close()

    def _round_trip(self, seconds: float) -> None:
        self._planning.learning.cloud(self._cloud_model).round_trip(seconds)

    async def _warm_up_grammars(self) -> None:
        """Read the vocabulary for grammars: half a second that no answer should wait for, nor the start.

        A model that cannot be held to a grammar is no reason not to serve it: requests with one are refused.
        """
        try:
            await anyio.to_thread.run_sync(self._grammars.matcher, Grammar(GrammarKind.JSON_OBJECT))
        except InvalidGrammar as error:
            logger.warning("this model cannot be held to a grammar: %s", error)

    def device_speed(self) -> tuple[float, float]:
        """Return the device's prefill and decode rates, tokens per second."""
        return self._speed.prefill_tps or math.nan, 1.0 / self._speed.step_s if self._speed.step_s else math.nan

    def hardware(self) -> list[str]:
        """Return what llama.cpp computes on, in lines for people."""
        return hardware_lines(self._engine)

    @property
    def vocab(self) -> Vocabulary:
        """The model's tokens."""
        return self._engine.vocab

    @property
    def refines(self) -> bool:
        """Whether prompts may be refined, so that it matters what of them has to stay."""
        return self._settings.refine_target.kind != "off"

    @property
    def session_header(self) -> str:
        """The header by which a client can name its conversation; empty for none."""
        return self._settings.session_header

    @property
    def n_ctx(self) -> int:
        """Tokens that the device's context holds."""
        return self._engine.n_ctx

    def context_limit(self) -> int:
        """Return the largest prompt and answer together that either side can take now."""
        info = self.cloud.info
        return self.n_ctx if info is None else max(self.n_ctx, info.max_model_len)

    def default_max_tokens(self, prompt_tokens: int) -> int:
        """Return the longest answer to a prompt where the client named no limit; below 1 where none fits.

        An answer that fits the device stays within it; a prompt that does not is the cloud's. The model may have a
        limit of its own.
        """
        room = (self.n_ctx if prompt_tokens < self.n_ctx else self.context_limit()) - prompt_tokens
        most = self.sampling_defaults().max_tokens
        return room if most is None else min(room, most)

    def sampling_defaults(self) -> DefaultSamplingParams:
        """Return how tokens are chosen where a client does not say: as the cloud told, else as the file."""
        told = self.cloud.told
        ours = None if told is None else told.default_sampling_params
        return self._engine.sampling_defaults if ours is None else ours

    def check_grammar(self, request: AnswerRequest) -> AnswerRequest:
        """Return `request` with its grammar as both engines are to have it. Not on the event loop.

        Raises:
            InvalidGrammar: `session` would refuse it, which is found out before anybody has waited.
        """
        info = self.cloud.info
        request = with_explicit_grammar(request, None if info is None else info.structured_outputs)
        check_grammar(request, self.n_ctx, self._grammars)
        return request

    def cloud_status(self) -> dict[str, object]:
        """Return what is known of the cloud, JSON-ready."""
        error = self.cloud.error
        return {
            "url": self._settings.cloud_url,
            "state": self.cloud.connection.value,
            "way": None if self.cloud.way is None else self.cloud.way.value,
            "error": None if error is None else named(error),
        }

    def learnt(self) -> dict[str, object]:
        """Return what was learnt of device and cloud, JSON-ready."""
        return learnt(self._planning.learning, None if self.cloud.client is None else self._cloud_model)

    def session(self, request: AnswerRequest, *, paced: bool = True, group: str = "") -> AnswerSession:
        """Return the session that makes one answer.

        Entering it raises ContextOverflow where prompt and answer fit neither side.

        Args:
            request: what to answer.
            paced: as `Facts.paced`.
            group: as `Facts.group`.
        """
        prompt, client = request.prompt_token_ids, self.cloud.client
        memory = self._engine.slot_for(prompt).memory
        facts = Facts(
            has_cloud=client is not None,
            info=self.cloud.info,
            held=memory.holds(prompt),
            held_whole=memory.holds(prompt, refined=False),
            kv_cell_bytes=self._kv_cell_bytes(),
            paced=paced,
            group=group,
            sharing=self._engine.sharing,
            busy=[left for session in self._sessions if (left := session.work_left()) is not None],
        )
        agreed = self._agreements.agree(request, facts)
        made = AnswerSession(
            agreed.request,
            engine=self._engine if agreed.engine else None,
            cloud=client if agreed.cloud else None,
            told=self.cloud.told,
            verdict=agreed.plan.plan.verdict,
            plan=agreed.plan,
            vocab=self.vocab,
            policies=self._planning.policies,
            rate=agreed.rate,
            patience=self._settings.patience,
            speed=self._speed,
            grammars=self._grammars,
            guard=Guard(threshold=self._settings.guard_nats),
            cells_checks=self._cells_checks,
            on_cloud_error=self.cloud.suspect,
            on_ended=lambda session: self._ended(session, agreed.request, group),
            tracing=self._tracing,
        )
        self._sessions.add(made)
        return made

    def _kv_cell_bytes(self) -> int | None:
        """Return the bytes of a cell of the cloud's KV cache; None where this device cannot have or use any."""
        info, client = self.cloud.info, self.cloud.client
        if self._settings.kv == "off" or info is None or client is None or KV_HANDOVER not in info.features:
            return None
        geometry = info.kv
        if not isinstance(geometry, KVGeometry) or self._engine.kv.differs_from(geometry) is not None:
            return None
        return None if self._cells_checks.passed(client.url, geometry) is False else geometry.cell_bytes

    def _ended(self, session: AnswerSession, request: AnswerRequest, group: str) -> None:
        self._planning.learning.ended(session, request, group=group, model=self._cloud_model)

    @property
    def _cloud_model(self) -> str:
        info = self.cloud.info
        return "" if info is None else info.model


def _client(settings: ServeSettings) -> CloudClient | None:
    if settings.cloud_url is None:
        return None
    key = settings.cloud_api_key
    return CloudClient(
        settings.cloud_url,
        api_key=None if key is None else key.get_secret_value(),
        model=settings.cloud_model,
        tenant=settings.cloud_tenant,
        session_header=settings.session_header,
    )

"""A device, its cloud, and how every answer is made with them: what the server and the Python API stand on."""

from __future__ import annotations

import logging
import math
import time
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakSet

import anyio

from pdd_core.errors import InvalidGrammar, named
from pdd_core.planner.types import Plan, Verdict, Why
from pdd_core.refinement.guard import Guard
from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
from pdd_llamacpp_adapter.cloud.cloud_monitor import CloudMonitor
from pdd_llamacpp_adapter.engine.device_engine import DeviceEngine
from pdd_llamacpp_adapter.engine.grammar import GrammarEngine
from pdd_llamacpp_adapter.engine.speed import DeviceSpeed, probe
from pdd_llamacpp_adapter.engine.upgrade import upgrade_when_idle
from pdd_llamacpp_adapter.request import Grammar, GrammarKind
from pdd_llamacpp_adapter.runtime.planning import Planning
from pdd_llamacpp_adapter.runtime.terms import Terms
from pdd_llamacpp_adapter.session.answer_session import AnswerSession
from pdd_llamacpp_adapter.session.outcome import Decided
from pdd_llamacpp_adapter.session.session_start import check_grammar, fits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pdd_core.env import ServeSettings
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
        self._grammars = GrammarEngine(engine.vocab, engine.vocab.stop_ids)
        self._terms = Terms(settings, self._speed, n_ctx=engine.n_ctx)
        self._planning = planning or Planning(settings, n_ctx=engine.n_ctx)
        self._sessions: WeakSet[AnswerSession] = WeakSet()
        self._warned: set[str] = set()
        self.cloud = CloudMonitor(cloud, engine.vocab, on_round_trip=self._round_trip)

    @classmethod
    @asynccontextmanager
    async def running(cls, gguf: Path, settings: ServeSettings, *, model_name: str) -> AsyncIterator[Runtime]:
        """Load the model, measure the device, connect to the cloud, and undo all of it at the end.

        A cloud that is not there is no error: it is tried again for as long as this runs.

        Raises:
            ConfigurationError: a setting that cannot work.
            DeviceEngineFailed: llama.cpp cannot make a context of this size.
            ModelError: the file is missing, unreadable or not a GGUF model.
        """

        def load() -> DeviceEngine:
            return DeviceEngine.open(
                gguf, n_ctx=settings.n_ctx, n_threads=settings.threads, flash_attn=settings.flash_attn
            )

        planning = Planning(settings, n_ctx=settings.n_ctx)  # what cannot work is refused before a model is loaded
        engine = await anyio.to_thread.run_sync(load)
        try:
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
                tasks.start_soon(upgrade_when_idle, engine, lambda: runtime._speed.chunk)
                try:
                    yield runtime
                finally:
                    tasks.cancel_scope.cancel()
        finally:
            engine.close()

    def _round_trip(self, seconds: float) -> None:
        info = self.cloud.info
        self._planning.learning.cloud("" if info is None else info.model).round_trip(seconds)

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

    @property
    def vocab(self) -> Vocabulary:
        """The model's tokens."""
        return self._engine.vocab

    @property
    def refines(self) -> bool:
        """Whether prompts may be refined, so that it matters what of them has to stay."""
        return self._settings.refine_target.kind != "off"

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

        An answer that fits the device stays within it; a prompt that does not is the cloud's.
        """
        return (self.n_ctx if prompt_tokens < self.n_ctx else self.context_limit()) - prompt_tokens

    def check_grammar(self, request: AnswerRequest) -> None:
        """Refuse a grammar that `session` would refuse, before anybody has waited. Not on the event loop."""
        check_grammar(request, self.n_ctx, self._grammars)

    def cloud_status(self) -> dict[str, object]:
        """Return what is known of the cloud, JSON-ready."""
        error = self.cloud.error
        return {
            "url": self._settings.cloud_url,
            "state": self.cloud.connection.value,
            "error": None if error is None else named(error),
        }

    def session(self, request: AnswerRequest, *, paced: bool = True, group: str = "") -> AnswerSession:
        """Return the session that makes one answer.

        Entering it raises ContextOverflow where prompt and answer fit neither side.

        Args:
            request: what to answer.
            paced: False for a client that waits for all of it.
            group: whose answers are alike, such as an app's: for the planner, how long they get.
        """
        cloud, needed = self.cloud.client, len(request.prompt_token_ids) + request.max_tokens
        info = self.cloud.info
        if info is not None and needed > info.max_model_len:
            cloud = None
        held = self._engine.memory.holds(request.prompt_token_ids)
        held_whole = self._engine.memory.holds(request.prompt_token_ids, refined=False)
        rate = self._terms.rate(has_cloud=cloud is not None) if paced else math.inf
        if cloud is None:
            why = Why("there is no cloud" if self.cloud.client is None else "it does not fit the cloud")
            decided = Decided(Plan(Verdict.DEVICE_ONLY, why=why), "settings")
            request = self._terms.with_budget(request, rate, held=held_whole)
        else:
            request, decided = self._planned(request, rate, held=held, held_whole=held_whole, group=group)
            if decided.plan.verdict is Verdict.DEVICE_ONLY and paced:
                rate = self._terms.rate(has_cloud=False)
        made = AnswerSession(
            request,
            engine=None if self._is_the_clouds(request, cloud) else self._engine,
            cloud=cloud,
            verdict=decided.plan.verdict,
            plan=decided,
            vocab=self.vocab,
            policies=self._planning.policies,
            rate=rate,
            patience=self._settings.patience,
            speed=self._speed,
            grammars=self._grammars,
            guard=Guard(threshold=self._settings.guard_nats),
            on_cloud_error=self.cloud.suspect,
            on_ended=lambda session: self._ended(session, request, group),
        )
        self._sessions.add(made)
        return made

    def _planned(
        self, request: AnswerRequest, rate: float, *, held: int, held_whole: int, group: str
    ) -> tuple[AnswerRequest, Decided]:
        """Return `request` with the plan's share of the prompt and decode budget, and the plan."""
        fits_whole = fits(request, self.n_ctx, refinable=False)
        chooses = self._planning.asks and self._settings.refine_target.kind == "auto" and fits_whole
        # who asks for a refined prompt wants what only a handoff has; the settings only say how much one reads
        hand_over = request.refine_ratio is not None
        if not chooses:
            request = self._with_ratio(request, held=held)
        info = self.cloud.info
        if self._is_the_clouds(request, self.cloud.client):
            why = Why("prompt and answer do not fit the device's context")
            decided = Decided(Plan(Verdict.CLOUD_ONLY, why=why), "settings")
        elif not self._planning.asks:
            decided = self._planning.settled(request.refine_ratio)
        else:
            decided = self._planning.ask(
                request,
                rate=rate,
                held=held,
                held_whole=held_whole,
                group=group,
                info=info,
                refinable=chooses and request.refine_ratio is None,
                hand_over=hand_over,
                busy=[left for session in self._sessions if (left := session.work_left()) is not None],
            )
        judged = held_whole < held
        return self._terms.planned(request, decided.plan, rate, held=held, judged=judged), decided

    def _ended(self, session: AnswerSession, request: AnswerRequest, group: str) -> None:
        info = self.cloud.info
        self._planning.learning.ended(session, request, group=group, model="" if info is None else info.model)

    def _is_the_clouds(self, request: AnswerRequest, cloud: CloudClient | None) -> bool:
        """Whether the device's context is too small for the answer, and refinement is of no help."""
        info = self.cloud.info
        if cloud is None or info is None:
            return False
        return not fits(request, self.n_ctx, refinable=info.refinement != "off")

    def _with_ratio(self, request: AnswerRequest, *, held: int) -> AnswerRequest:
        """Return `request` with the share of its prompt to read; a request that names one keeps it."""
        if request.refine_ratio is not None:
            return request
        ratio = self._terms.refine_ratio(len(request.prompt_token_ids), request.max_tokens, held=held)
        info = self.cloud.info
        if ratio is not None and info is not None and info.refinement == "off":
            kind = self._settings.refine_target.kind
            if kind == "auto":
                return request
            self._warn_once(f"refine is {self._settings.refine}, but the cloud refines no prompts")
        return replace(request, refine_ratio=ratio)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning("%s", text)


def _client(settings: ServeSettings) -> CloudClient | None:
    if settings.cloud_url is None:
        return None
    key = settings.cloud_api_key
    return CloudClient(
        settings.cloud_url,
        api_key=None if key is None else key.get_secret_value(),
        model=settings.cloud_model,
        tenant=settings.cloud_tenant,
    )

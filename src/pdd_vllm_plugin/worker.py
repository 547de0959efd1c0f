"""The class that ``--worker-cls`` names: vLLM's own worker for this platform, which also looks after prompts.

Refined prompts need the attention of a prompt's last tokens (`capture`), KV handover the prompt's cells (`kv`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pdd_core.kv.geometry import NoKV
from pdd_vllm_plugin.capture import backends
from pdd_vllm_plugin.capture import windows as scores
from pdd_vllm_plugin.capture.layers import capture_layers, layers_of, of_target, refuse_unsupported
from pdd_vllm_plugin.capture.score_store import Missed, ScoreStore
from pdd_vllm_plugin.capture.window_scorer import WindowScorer
from pdd_vllm_plugin.compat import platform_worker
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.deployment import gives_cells, refine_method
from pdd_vllm_plugin.failsafe import Failsafe
from pdd_vllm_plugin.kv import keeper as cells
from pdd_vllm_plugin.prompt_tracker import PromptTracker

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from pdd_vllm_plugin.prompt_tracker import PromptChunk, Wish

logger = logging.getLogger("vllm.pdd")


class PDDWorker(platform_worker()):  # type: ignore[misc]
    """Looks after the prompts of requests that ask for it. All others pass it by untouched."""

    _pdd_scorer: WindowScorer | None = None
    _pdd_keeper: cells.CellKeeper | None = None
    _pdd_tracker: PromptTracker | None = None
    _pdd_no_cells = NoKV(reason="not_enabled", message="the workers keep no KV caches: additional_config.pdd.kv")

    def load_model(self, **kwargs: Any) -> None:
        """Load the model with backends that can be looked at, unless refinement is off.

        Raises:
            UnsupportedDeployment: a setting under which attention cannot be captured; the message names it.
        """
        self._pdd_config = PDDConfig.from_vllm(self.vllm_config)
        self._pdd_captures = refine_method(self._pdd_config, self.vllm_config) == "attention"
        if self._pdd_captures:
            refuse_unsupported(self.vllm_config)
            backends.register_backends()
        super().load_model(**kwargs)
        if self._pdd_captures:
            self._pdd_layers = layers_of(
                self.vllm_config, self._pdd_attention_layers(), self._pdd_config.refine_layers
            )

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """Allocate the KV cache; find out how keys and values lie in it."""
        super().initialize_from_config(kv_cache_config)
        wishes: dict[str, Wish] = {}
        if self._pdd_captures and self._pdd_layers:
            self._pdd_scorer = self._pdd_scorer_of(kv_cache_config)
            wishes[scores.FEATURE] = scores.wants_scores(self._pdd_config.refine_max_prompt_tokens)
        if gives_cells(self._pdd_config, self.vllm_config):
            self._pdd_keeper = self._pdd_keeper_of(kv_cache_config)
            if self._pdd_keeper is not None:
                wishes[cells.FEATURE] = self._pdd_keeper.wants
        self._pdd_tracker = PromptTracker(wishes) if wishes else None
        self._pdd_failsafe = Failsafe("prompts are neither refined nor handed over from here on")

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """Run a step; look after the prompts that it computes."""
        chunks = self._pdd_followed(scheduler_output)
        if not chunks:
            return super().execute_model(scheduler_output)
        backends.scorer = scorer = self._pdd_scoring(chunks)
        try:
            result = super().execute_model(scheduler_output)
        finally:
            backends.scorer = None
        if scorer is not None:
            with scorer.failsafe:
                scorer.end_step()
        if (keeper := self._pdd_keeper) is not None and not keeper.failsafe.failed:
            with keeper.failsafe:
                keeper.end_step(chunks)
        return result

    def _pdd_followed(self, scheduler_output: SchedulerOutput) -> tuple[PromptChunk, ...]:
        """Return what the coming step computes of prompts that are looked after."""
        tracker = self._pdd_tracker
        if tracker is None or self._pdd_failsafe.failed:
            return ()
        chunks: tuple[PromptChunk, ...] = ()
        with self._pdd_failsafe:
            chunks = tracker.step(scheduler_output)
        if (scorer := self._pdd_scorer) is not None and not scorer.failsafe.failed:
            with scorer.failsafe:
                scorer.forget(scheduler_output.finished_req_ids)
        return chunks

    def _pdd_scoring(self, chunks: tuple[PromptChunk, ...]) -> WindowScorer | None:
        """Return the scorer if the coming step computes a part of a window."""
        scorer = self._pdd_scorer
        if scorer is None or scorer.failsafe.failed:
            return None
        with scorer.failsafe:
            found = scores.windows(chunks, self._pdd_config.refine_window)
            if found:
                scorer.begin_step(found)
                return scorer
        return None

    def pdd_take_scores(self, handoff_ids: list[str]) -> list[dict[str, Any] | None]:
        """RPC: give this rank's scores out, each once; see `ScoreStore`."""
        if self._pdd_scorer is None:  # a pipeline rank without a captured layer
            return [{"layers": [], "window": 0, "values": b""} for _ in handoff_ids]
        scorer = self._pdd_scorer
        broken = scorer.failsafe.failed or self._pdd_failsafe.failed
        failed = Missed("the capture failed: see the server's log").message() if broken else None
        return [scorer.score_store.take(handoff_id) or failed for handoff_id in handoff_ids]

    def pdd_capture_counts(self) -> dict[str, int]:
        """RPC: what this rank has captured and holds."""
        scorer = self._pdd_scorer
        if scorer is None or self._pdd_tracker is None:
            return {}
        return {**scorer.counts(), "followed": len(self._pdd_tracker)}

    def pdd_kv_shelf(self) -> dict[str, Any]:
        """RPC: where this rank keeps cells and what it has of each, or why it keeps none."""
        if self._pdd_keeper is None:
            return {"none": self._pdd_no_cells.model_dump(mode="json")}
        return self._pdd_keeper.message()

    def pdd_kv_counts(self) -> dict[str, int]:
        """RPC: what this rank has kept and holds."""
        return {} if self._pdd_keeper is None else self._pdd_keeper.counts()

    def _pdd_scorer_of(self, kv_cache_config: KVCacheConfig) -> WindowScorer:
        config = self._pdd_config
        layers = capture_layers(self._pdd_layers, self._pdd_attention_layers(), kv_cache_config.kv_cache_groups)
        logger.info(
            "pdd: attention of at most the last %d prompt tokens is captured at layers %s (%s over heads)",
            config.refine_window, sorted(self._pdd_layers.values()), config.refine_heads,
        )  # fmt: skip
        return WindowScorer(
            layers,
            window=config.refine_window,
            heads=config.refine_heads,
            score_store=ScoreStore(config.max_handoffs),
            strict=config.strict,
        )

    def _pdd_keeper_of(self, kv_cache_config: KVCacheConfig) -> cells.CellKeeper | None:
        """Return the keeper of cells, or say why there is none."""
        keeper: cells.CellKeeper | NoKV = NoKV(reason="unsupported", message="see the server's log")
        with Failsafe("no KV cache is handed over"):
            keeper = cells.keeper_of(self._pdd_rank(kv_cache_config), self._pdd_config)
        if isinstance(keeper, NoKV):
            self._pdd_no_cells = keeper
            logger.info("pdd: no KV cache is handed over: %s", keeper.message)
            return None
        logger.info("pdd: the KV caches of prompts are kept for devices that ask")
        return keeper

    def _pdd_rank(self, kv_cache_config: KVCacheConfig) -> Any:
        from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

        from pdd_vllm_plugin.kv.rank_cells import Rank

        model = self.model_runner.get_model()
        language = getattr(model, "get_language_model", lambda: model)()
        return Rank(
            self.vllm_config,
            self._pdd_attention_layers(),
            kv_cache_config.kv_cache_groups,
            list(language.modules()),
            get_tensor_model_parallel_rank(),
        )

    def _pdd_attention_layers(self) -> dict[str, Any]:
        from vllm.config import get_layers_from_vllm_config
        from vllm.model_executor.layers.attention import Attention

        # where this vLLM does not tell its drafter, the layers' names do
        drafter = getattr(self.model_runner, "get_draft_model", lambda: None)()
        return of_target(get_layers_from_vllm_config(self.vllm_config, Attention), drafter)

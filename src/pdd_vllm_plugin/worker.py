"""The class that ``--worker-cls`` names: vLLM's own worker for this platform, with attention capture."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pdd_vllm_plugin.capture import backends
from pdd_vllm_plugin.capture.layers import capture_layers, layers_of, of_target, refuse_unsupported
from pdd_vllm_plugin.capture.score_store import Missed, ScoreStore
from pdd_vllm_plugin.capture.window_scorer import WindowScorer
from pdd_vllm_plugin.capture.windows import WindowTracker
from pdd_vllm_plugin.compat import platform_worker
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.deployment import refine_method

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = logging.getLogger("vllm.pdd")


class PDDWorker(platform_worker()):  # type: ignore[misc]
    """Scores the prompts of requests that ask for a refined prompt. All others pass it by untouched."""

    _pdd_scorer: WindowScorer | None = None

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
        """Allocate the KV cache; find out how keys lie in it."""
        super().initialize_from_config(kv_cache_config)
        if not self._pdd_captures or not self._pdd_layers:
            return
        config = self._pdd_config
        layers = capture_layers(self._pdd_layers, self._pdd_attention_layers(), kv_cache_config.kv_cache_groups)
        self._pdd_tracker = WindowTracker(config.refine_window, most=config.refine_max_prompt_tokens)
        self._pdd_scorer = WindowScorer(
            layers,
            window=config.refine_window,
            heads=config.refine_heads,
            score_store=ScoreStore(config.max_handoffs),
            strict=config.strict,
        )
        logger.info(
            "pdd: attention of at most the last %d prompt tokens is captured at layers %s (%s over heads)",
            config.refine_window, sorted(self._pdd_layers.values()), config.refine_heads,
        )  # fmt: skip

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """Run a step; score the prompts whose window it computes."""
        scorer = self._pdd_scorer
        if scorer is None or not self._pdd_begin_step(scorer, scheduler_output):
            return super().execute_model(scheduler_output)
        backends.scorer = scorer
        try:
            result = super().execute_model(scheduler_output)
        finally:
            backends.scorer = None
        with scorer.failsafe:
            scorer.end_step()
        return result

    def _pdd_begin_step(self, scorer: WindowScorer, scheduler_output: SchedulerOutput) -> bool:
        """Return whether the coming step computes a part of a window."""
        if scorer.failsafe.failed:
            return False
        with scorer.failsafe:
            chunks = self._pdd_tracker.step(scheduler_output)
            scorer.forget(scheduler_output.finished_req_ids)
            if chunks:
                scorer.begin_step(chunks)
                return True
        return False

    def pdd_take_scores(self, handoff_ids: list[str]) -> list[dict[str, Any] | None]:
        """RPC: give this rank's scores out, each once; see `ScoreStore`."""
        if self._pdd_scorer is None:  # a pipeline rank without a captured layer
            return [{"layers": [], "window": 0, "values": b""} for _ in handoff_ids]
        scorer = self._pdd_scorer
        failed = Missed("the capture failed: see the server's log").message() if scorer.failsafe.failed else None
        return [scorer.score_store.take(handoff_id) or failed for handoff_id in handoff_ids]

    def pdd_capture_counts(self) -> dict[str, int]:
        """RPC: what this rank has captured and holds."""
        scorer = self._pdd_scorer
        if scorer is None:
            return {}
        return {**scorer.counts(), "followed": len(self._pdd_tracker)}

    def _pdd_attention_layers(self) -> dict[str, Any]:
        from vllm.config import get_layers_from_vllm_config
        from vllm.model_executor.layers.attention import Attention

        # where this vLLM does not tell its drafter, the layers' names do
        drafter = getattr(self.model_runner, "get_draft_model", lambda: None)()
        return of_target(get_layers_from_vllm_config(self.vllm_config, Attention), drafter)

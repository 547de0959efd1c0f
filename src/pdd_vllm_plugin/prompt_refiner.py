"""Makes the refined prompt of each request that asks for one, as soon as its first token is there."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from pdd_core.env import Env
from pdd_core.errors import NotCaptured, PolicyError, named
from pdd_core.handoff import NoRefinement, Refinement
from pdd_core.plugins import Policies
from pdd_core.refinement.check import is_kept
from pdd_core.refinement.prompt import RefinePrompt
from pdd_core.refinement.protect import protected_spans, question_window
from pdd_core.refinement.refiners import AttentionRefiner, refiner
from pdd_core.refinement.refiners.attention import LEAST_FOCUS
from pdd_core.refinement.turns import HEADER
from pdd_vllm_plugin.question_window import with_window
from pdd_vllm_plugin.refiner_threads import RefinerThreads
from pdd_vllm_plugin.score_fetcher import ScoreFetcher
from pdd_vllm_plugin.token_texts import TokenTexts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pdd_core.refinement.scores import PromptScores
    from pdd_vllm_plugin.config import PDDConfig
    from pdd_vllm_plugin.handoff_record import HandoffRecord

logger = logging.getLogger("vllm.pdd")


class PromptRefiner:
    """The refiners of one engine: third parties', then `method`'s."""

    def __init__(self, engine_client: Any, config: PDDConfig, method: str, tokenizer: Any) -> None:
        self._config = config
        self._score_fetcher = ScoreFetcher(engine_client, config.refine_heads) if method == "attention" else None
        self._token_texts = TokenTexts(tokenizer)
        allowed = Env().allowed_policies()
        self._policies = Policies({method: refiner(method)}, allow=allowed, strict=config.strict)
        self._built_in = Policies({method: refiner(method)}, allow=(), strict=False)
        self._threads = RefinerThreads()
        self._warned: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def with_question(self, sampling_params: Any, token_ids: Sequence[int]) -> Any:
        """Return the parameters of a request that tell the workers how much of its prompt is the question.

        They are the same ones where no worker looks, or where the prompt is not known yet.
        """
        if self._score_fetcher is None or not token_ids:
            return sampling_params
        most = self._config.refine_window
        end = token_ids[-most - HEADER :]  # no more of it is looked at: nor are its texts made on the event loop
        try:
            pieces, special = self._token_texts.of(end), self._token_texts.special_ids
            return with_window(sampling_params, question_window(end, pieces, special, most=most))
        except Exception:
            logger.exception("pdd: the question of a prompt could not be found")
            return sampling_params

    def begin(self, record: HandoffRecord, *, then: Callable[[HandoffRecord], object] | None = None) -> None:
        """Start on a request that has its first token. Returns at once; the record tells when it is done.

        `then` is called once that is so.
        """
        task = asyncio.create_task(self._refine(record))
        if then is not None:
            task.add_done_callback(lambda _: then(record))
        record.refining = True
        self._tasks.add(task)  # asyncio itself keeps only weak references
        task.add_done_callback(self._tasks.discard)

    async def _refine(self, record: HandoffRecord) -> None:
        try:
            record.refined_as(await self._refinement(record))
        except NotCaptured as error:
            record.refined_as(NoRefinement(reason="not_captured", message=str(error)))
        except Exception as error:  # a request goes on without a refined prompt, whatever happens here
            logger.exception("pdd: a prompt could not be refined")
            record.refined_as(NoRefinement(reason="failed", message=type(error).__name__))

    async def _refinement(self, record: HandoffRecord) -> Refinement | NoRefinement:
        length, most = len(record.prompt_token_ids), self._config.refine_max_prompt_tokens
        if length > most:  # no worker has looked at it either
            problem = f"the prompt has {length} tokens, more than additional_config.pdd.refine_max_prompt_tokens"
            return NoRefinement(reason="too_long", message=f"{problem} ({most})")
        scores = None
        if self._score_fetcher is not None:
            scores = await self._score_fetcher.fetch(record.opt_in.handoff_id, record.engine)
        if scores is not None and scores.values.shape[1] != length:
            return NoRefinement(reason="not_captured", message="the workers saw another prompt")
        # tens of milliseconds for a long prompt: not on the loop that streams everybody's tokens
        prompt = await self._threads.run(partial(self._prompt, record))
        ratio = record.opt_in.refine_ratio or 1.0  # a record without one is never refined
        kept, method = await self._choose(scores, prompt, ratio)
        if scores is not None and self._policies.is_built_in(method) and ratio < 1:
            focus = await self._threads.run(partial(AttentionRefiner().focus, scores, prompt))
            if focus < LEAST_FOCUS:
                problem = "attention and the question's words agree on no lines that matter more than the others"
                return NoRefinement(reason="spread", message=f"{problem} ({focus:.2f}, below {LEAST_FOCUS})")
        return Refinement(
            method=method,
            ratio=ratio,
            kept_indices=kept,
            kept_token_ids=[prompt.token_ids[index] for index in kept],
            protected=list(prompt.protected),
            window=0 if scores is None else scores.window,
            layers=[] if scores is None else list(scores.layers),
        )

    async def _choose(
        self, scores: PromptScores | None, prompt: RefinePrompt, ratio: float
    ) -> tuple[list[int], str]:
        """Return the indices that stay, and who chose them: third parties have `refine_timeout_s` for it."""

        def ask(policies: Policies) -> tuple[list[int], str]:
            kept, method = policies.first_result(
                "pdd_refine", lambda kept: is_kept(kept, prompt), scores=scores, prompt=prompt, ratio=ratio
            )
            return list(kept), method

        third_parties = ", ".join(self._policies.third_parties("pdd_refine"))
        if third_parties:
            try:
                call = partial(ask, self._policies)
                return await self._threads.run_within(self._config.refine_timeout_s, call, who=third_parties)
            except PolicyError as error:  # `strict`, or out of time
                self._report(error)
        return await self._threads.run(partial(ask, self._built_in))

    def _report(self, error: PolicyError) -> None:
        if self._config.strict or str(error) not in self._warned:
            self._warned.add(str(error))
            level = logging.ERROR if self._config.strict else logging.WARNING
            logger.log(level, "pdd: %s; the built-in refiner decides", named(error))

    def _prompt(self, record: HandoffRecord) -> RefinePrompt:
        token_ids = tuple(record.prompt_token_ids)
        pieces = self._token_texts.of(token_ids)
        special = self._token_texts.special_ids
        protected = protected_spans(token_ids, pieces, special, marked=record.opt_in.protect)
        return RefinePrompt(token_ids, pieces, special, protected)

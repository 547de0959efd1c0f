"""Replaces ``EngineClient.generate``, to record what the engine answers to opted-in requests.

Every OpenAI route of vLLM calls that one method, streamed or not. A request that has not opted in gets the
original generator back, untouched.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextvars import Context
from typing import TYPE_CHECKING, Any

from pdd_core.errors import InvalidOptIn
from pdd_core.handoff import DecodeBudget, KVCells, Status
from pdd_core.kept_fields import KEPT_IDS, KEPT_TEXTS, check_kept_fields
from pdd_core.optin import (
    check_one_answer,
    check_protected,
    check_tokenizer_digest,
    parse_opt_in,
)
from pdd_vllm_plugin.budget_in_kv_transfer_params import take_budget_report
from pdd_vllm_plugin.compat import completion_id, request_error
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.handoff_names import check_request_id
from pdd_vllm_plugin.handoff_record import NOT_ENABLED, NOT_REQUESTED, PENDING, HandoffRecord
from pdd_vllm_plugin.handoff_spans import end_span
from pdd_vllm_plugin.inline_updates import follow
from pdd_vllm_plugin.kv.cell_answers import CellAnswers
from pdd_vllm_plugin.kv.handshake import NOT_ENABLED as NO_CELLS
from pdd_vllm_plugin.kv.offer import without_kv

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from pdd_core.handoff import NoRefinement
    from pdd_core.optin import OptIn
    from pdd_vllm_plugin.handoff_spans import HandoffSpans
    from pdd_vllm_plugin.handoff_store import HandoffStore
    from pdd_vllm_plugin.metrics import CloudMetrics
    from pdd_vllm_plugin.prompt_refiner import PromptRefiner

SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "seed",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "bad_words",
    "allowed_token_ids", "stop", "stop_token_ids", "ignore_eos", "min_tokens", "max_tokens",
    "logprobs", "skip_special_tokens", "include_stop_str_in_output",
)  # fmt: skip
"""What a device needs to go on sampling as the client asked. vLLM's own names (vllm.SamplingParams)."""


class GenerateRecorder:
    """Holds one engine client's own ``generate``; `HandoffService.start` puts `generate` in its place."""

    def __init__(
        self,
        engine_client: Any,
        store: HandoffStore,
        *,
        model: str,
        tokenizer: str,
        metrics: CloudMetrics,
        cells: CellAnswers | None = None,
        refiner: PromptRefiner | None = None,
        spans: HandoffSpans | None = None,
    ) -> None:
        self._generate = engine_client.generate
        self._store = store
        self._model = model
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._cells = CellAnswers(PDDConfig(), NO_CELLS, metrics) if cells is None else cells
        self._refiner = refiner
        self._spans = spans

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """Replace ``EngineClient.generate``: record an opted-in request, pass every other one through.

        A plain function, not an async generator: what it raises reaches the client as a 400, before the engine.

        Raises:
            VLLMValidationError: the opt-in is wrong. The middleware has usually said so before.
        """
        try:
            xargs = getattr(sampling_params, "extra_args", None)
            check_tokenizer_digest(xargs, self._tokenizer)
            opt_in = parse_opt_in(xargs)
            if opt_in is None:
                return self._generate(prompt, sampling_params, request_id, **kwargs)  # type: ignore[no-any-return]
            check_one_answer(sampling_params.n)
            check_kept_fields({name: getattr(sampling_params, name, None) for name in (*KEPT_TEXTS, *KEPT_IDS)})
            check_request_id(request_id)
            record = self._new_record(opt_in, prompt, sampling_params, request_id, kwargs.get("lora_request"))
            if opt_in.inline:
                follow(record)
            self._store.add(record)
            record.kv = self._cells.offer(opt_in, prompt, kwargs.get("lora_request"))
            record.kv_asked = isinstance(record.kv, KVCells)
        except InvalidOptIn as error:
            raise request_error(str(error), error.param) from error
        # vLLM aborts by this id and lets clients choose it: without a suffix one could end another's request.
        kind = sampling_params.output_kind.name
        params = _observable(sampling_params) if kind == "FINAL_ONLY" else sampling_params
        if opt_in.kv and not record.kv_asked:
            params = without_kv(params)
        if self._refiner is not None and opt_in.refine_ratio is not None:
            params = self._refiner.with_question(params, record.prompt_token_ids)
        inner = self._generate(prompt, params, record.engine_request_id, **kwargs)
        return self._observe(inner, record, kind, kwargs.get("trace_headers"))

    def _new_record(
        self, opt_in: OptIn, prompt: Any, sampling_params: Any, request_id: str, lora: Any
    ) -> HandoffRecord:
        record = HandoffRecord(
            opt_in=opt_in,
            completion_id=completion_id(request_id),
            engine_request_id=f"{request_id}-{secrets.token_hex(8)}",
            model=lora.lora_name if lora is not None else self._model,
            tokenizer=self._tokenizer,
            sampling_params=_as_given(sampling_params),
            created=time.time(),
            touched=time.monotonic(),
            refinement=self._refinement_of(opt_in),
        )
        # vLLM's EngineInput is a TypedDict; text prompts given to the Python API come without ids
        if isinstance(prompt, dict):
            record.prompt_token_ids.extend(prompt.get("prompt_token_ids") or ())
        if record.prompt_token_ids:
            check_protected(opt_in.protect, len(record.prompt_token_ids))
        return record

    def _refinement_of(self, opt_in: OptIn) -> NoRefinement:
        if opt_in.refine_ratio is None:
            return NOT_REQUESTED
        return NOT_ENABLED if self._refiner is None else PENDING

    async def _observe(
        self,
        inner: AsyncGenerator[Any, None],
        record: HandoffRecord,
        kind: str,
        trace_headers: Mapping[str, str] | None,
    ) -> AsyncGenerator[Any, None]:
        record.started = True
        span = None if self._spans is None else self._spans.begin(record, trace_headers)
        self._metrics.began(record)
        try:
            if record.cancelled:
                raise request_error("the handoff was deleted before the request began", "vllm_xargs.pdd_handoff")
            async for output in inner:
                self._take_in(output, record, delta=kind == "DELTA")
                if record.refinement_pending and not record.refining and record.output_token_ids:
                    self._begin_refining(record)
                if kind != "FINAL_ONLY" or output.finished:
                    yield output
        finally:
            # Whatever ended the loop: the client left, the engine died, or the answer is complete.
            record.end(None)
            self._metrics.ended(record)
            if span is not None:
                end_span(span, record)
            self._store.note(record)
            # Nobody may ever ask again, and a prompt is not to stay in memory for that. Nor is what the variables
            # of this request lead to, which a timer would keep: its connection, for one.
            later = self._store.ttl_s + 1.0
            asyncio.get_running_loop().call_later(later, self._store.purge, context=Context())
            # Closing it here aborts the engine's request now, not when the garbage collector comes by.
            await inner.aclose()

    def _begin_refining(self, record: HandoffRecord) -> None:
        if self._refiner is not None:
            self._refiner.begin(record, then=self._refined)

    def _refined(self, record: HandoffRecord) -> None:
        self._metrics.refined(record)
        self._store.note(record)  # a request may have ended before its prompt is refined

    def _take_in(self, output: Any, record: HandoffRecord, *, delta: bool) -> None:
        if not record.prompt_token_ids and output.prompt_token_ids:
            record.prompt_token_ids.extend(output.prompt_token_ids)
            self._cells.measured(record)
        report = take_budget_report(output)
        if report is not None:
            self._metrics.reported(report, first=record.budget_report is None)
            record.decode_budget = DecodeBudget(**report)
            record.budget_report = report
        for completion in output.outputs:
            record.add_output(completion, delta=delta)
        if record.status is not Status.RUNNING:
            self._store.note(record)  # now: it may take long until a slow client has read it


def _observable(sampling_params: Any) -> Any:
    """Return the parameters of a request that is not streamed, so that vLLM tells what there is after each token.

    ``RequestOutputKind.CUMULATIVE``: each output has the whole answer so far, and the one that is `finished` is
    what FINAL_ONLY would have given, made by the same lines (``RequestState.make_request_output``).
    """
    params = sampling_params.clone()
    params.output_kind = type(params.output_kind).CUMULATIVE
    return params


def _as_given(sampling_params: Any) -> Mapping[str, Any]:
    given = {name: getattr(sampling_params, name, None) for name in SAMPLING_FIELDS}
    return {name: value for name, value in given.items() if value is not None}

"""The span of an opted-in request, beside vLLM's own, if vLLM traces: ``--otlp-traces-endpoint``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pdd_core.handoff import Refinement
from pdd_core.tracing import Tracing, filled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import Span

    from pdd_core.tracing import Value
    from pdd_vllm_plugin.handoff_record import HandoffRecord


class HandoffSpans:
    """Makes spans with the tracer provider that vLLM has set up in its API server."""

    def __init__(self) -> None:
        self._tracing = Tracing()

    @classmethod
    def of(cls, vllm_config: Any) -> Self | None:
        """Return None where vLLM does not trace. Where it does, OpenTelemetry is installed."""
        settings = getattr(vllm_config, "observability_config", None)
        return None if getattr(settings, "otlp_traces_endpoint", None) is None else cls()

    def begin(self, record: HandoffRecord, trace_headers: Mapping[str, str] | None) -> Span:
        """Begin the span, as a child of what the request's headers name."""
        opt_in = record.opt_in
        attributes: dict[str, Value | None] = {
            # vLLM's own span has it too. The handoff's id is in no span: with it, the state can be read
            "gen_ai.request.id": record.completion_id,
            "gen_ai.response.model": record.model,
            "gen_ai.usage.input_tokens": len(record.prompt_token_ids),
            "pdd.asked.decode_budget": opt_in.decode_budget,
            "pdd.asked.refine_ratio": opt_in.refine_ratio,
            "pdd.extends": opt_in.extends is not None,
        }
        return self._tracing.begin("pdd.handoff", filled(attributes), headers=trace_headers or {})


def end_span(span: Span, record: HandoffRecord) -> None:
    """End the span of a request whose part in the cloud has ended."""
    budget, refinement = record.decode_budget, record.refinement
    refined = refinement if isinstance(refinement, Refinement) else None
    span.set_attributes(
        filled(
            {
                # how it ended in our words and vLLM's; a stop string would be the client's own text
                "pdd.status": record.status.value,
                "gen_ai.response.finish_reasons": None if record.finish_reason is None else [record.finish_reason],
                "gen_ai.usage.input_tokens": len(record.prompt_token_ids),
                "gen_ai.usage.output_tokens": len(record.output_token_ids),
                "pdd.decode_budget": None if budget is None else budget.tokens,
                "pdd.set_by": None if budget is None else budget.set_by,
                "pdd.refined.kept_tokens": None if refined is None else len(refined.kept_indices),
                "pdd.refined.reason": None if isinstance(refinement, Refinement) else refinement.reason,
            }
        )
    )
    span.end()

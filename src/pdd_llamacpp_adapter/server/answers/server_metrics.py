"""What ``/metrics`` tells, in Prometheus' text format. Answers are counted at their end, never per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pdd_core.timeline import Source

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.answers.admission_queue import AdmissionQueue
    from pdd_llamacpp_adapter.session.outcome import Outcome

_TTFT_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
_GAP_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)


class ServerMetrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self, queue: AdmissionQueue) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "pdd_device_requests", "HTTP requests answered", ["route", "status"], registry=registry
        )
        self._answers = Counter(
            "pdd_device_answers", "Answers by their end", ["mode", "finish_reason"], registry=registry
        )
        self._tokens = Counter("pdd_device_tokens", "Shown tokens by their maker", ["source"], registry=registry)
        self._prompt = Counter("pdd_device_prompt_tokens", "Tokens of all prompts", registry=registry)
        self._vain = Counter(
            "pdd_device_cloud_tokens_in_vain", "Tokens the cloud sent after the take-over", registry=registry
        )
        self._extensions = Counter(
            "pdd_device_cloud_extensions", "Further budgets asked for a late device", registry=registry
        )
        self._retries = Counter(
            "pdd_device_cloud_retries", "Further attempts after the cloud was lost", registry=registry
        )
        self._takeovers = Counter("pdd_device_takeovers", "Answers the device took over", registry=registry)
        self._plans = Counter(
            "pdd_device_plans",
            "Answers by who was to make them, and who said so",
            ["verdict", "by"],
            registry=registry,
        )
        self._ttft = Histogram(
            "pdd_device_time_to_first_token_seconds",
            "From the session's begin to its first shown token",
            buckets=_TTFT_BUCKETS,
            registry=registry,
        )
        self._gaps = Histogram(
            "pdd_device_token_gap_seconds",
            "Between one shown token and the next",
            buckets=_GAP_BUCKETS,
            registry=registry,
        )
        running = Gauge("pdd_device_running", "Answers being made", registry=registry)
        running.set_function(lambda: queue.running)
        waiting = Gauge("pdd_device_waiting", "Answers waiting for their turn", registry=registry)
        waiting.set_function(lambda: queue.waiting)

    def count_request(self, route: str, status: int) -> None:
        """Count one HTTP request. `route` is the route's pattern, never the path a client made up."""
        self._requests.labels(route, str(status)).inc()

    def count_answer(self, outcome: Outcome) -> None:
        """Count one answer that has ended, however it did."""
        timeline = outcome.timeline
        self._answers.labels(str(outcome.mode), outcome.finish_reason).inc()
        for source in Source:
            self._tokens.labels(str(source)).inc(timeline.count(source))
        self._prompt.inc(outcome.prompt_tokens)
        self._vain.inc(outcome.cloud_tokens_in_vain)
        self._extensions.inc(outcome.extensions)
        self._retries.inc(outcome.cloud_retries)
        self._takeovers.inc(outcome.took_over_at is not None)
        if outcome.plan is not None:
            self._plans.labels(outcome.plan.plan.verdict.value, outcome.plan.by).inc()
        if timeline.ttft is not None:
            self._ttft.observe(timeline.ttft)
        for gap in timeline.gaps:
            self._gaps.observe(gap)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)

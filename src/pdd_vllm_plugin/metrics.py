"""The plugin's figures on vLLM's own ``/metrics``, counted when a request begins and ends, never per token.

vLLM's API server exposes prometheus_client's default registry, or, where PROMETHEUS_MULTIPROC_DIR is set, what
every process has written there (vllm.v1.metrics.prometheus.get_prometheus_registry). These work with both.
"""

from __future__ import annotations

from collections import Counter as Counts
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from pdd_core.handoff import NoRefinement, Status
from pdd_core.kv.geometry import NoKV
from pdd_core.policies.budget import LoadBudget
from pdd_vllm_plugin.config import PDDConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pdd_vllm_plugin.handoff_record import HandoffRecord

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class CloudMetrics:
    """All figures of one API server process. docs/metrics.md says what each means."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"pdd_{name}", text, labels, registry=registry)

        self._requests = counter("requests", "Opted-in requests by how their part in the cloud ended", "status")
        self._budgets = counter("budgets", "Decode budgets by the policy that set them, as they ended", "set_by")
        self._changes = counter("budget_changes", "Changes of a budget while its request ran", "direction")
        self._budget_tokens = Histogram(
            "pdd_decode_budget_tokens", "Decode budgets as they ended", buckets=_TOKENS, registry=registry
        )
        self._generated = counter("generated_tokens", "Tokens decoded for opted-in requests")
        self._not_generated = counter(
            "max_tokens_not_generated",
            "Of requests that were handed off: the client's max_tokens less the tokens decoded. An upper bound of "
            "what the cloud was spared: the answer might have ended earlier",
        )
        self._cancels = counter(
            "cancels", "Deleted while running, by whether the engine confirmed it", "confirmed"
        )
        self._in_vain = counter(
            "tokens_in_vain", "Tokens that their client had no use for, as far as its DELETE says so (used=K)"
        )
        self._extensions = counter("extensions", "Requests that go on from an earlier handoff (pdd_extends)")
        self._refinements = counter("refinements", "Refined prompts by the refiner that made them", "method")
        self._not_refined = counter(
            "refinements_refused", "Requests for a refined prompt that got none, by reason", "reason"
        )
        self._kv_refused = counter(
            "kv_refused", "Requests with pdd_kv that get no cells, as they ended, by reason", "reason"
        )
        self._kv_streams = counter("kv_streams", "Requests for cells by what became of them", "outcome")
        self._kv_sent = counter("kv_sent_bytes", "Bytes of cells that were sent")
        self._kv_wait = Histogram(
            "pdd_kv_wait_seconds",
            "How long a request for cells waited until they were there",
            buckets=_SECONDS,
            registry=registry,
        )
        self._running = Gauge(
            "pdd_running_requests", "Opted-in requests running", registry=registry, multiprocess_mode="livesum"
        )
        self._pressure = Gauge(
            "pdd_pressure",
            "Pressure on the scheduler, 0 to 1, as last told with an opted-in request's output; 0 if none runs",
            ("engine",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._floor = Gauge(
            "pdd_budget_floor_tokens",
            "Decode budget, at the pressure of now, of a request that names neither a budget nor a least one",
            ("engine",),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._count = 0
        self._on_engine: Counts[int] = Counts()
        """Requests running on each engine, as far as it is known where they run."""
        self.configure(PDDConfig(), ())

    def configure(self, config: PDDConfig, engines: Iterable[int]) -> None:
        """Take in the settings of the budgets and the ranks of the engines, once they are known."""
        floor = config.load_floor if config.budget_policy == "load" else None
        self._load, self._most = LoadBudget(config.default_decode_budget, floor), config.max_decode_budget
        for engine in engines:
            self._press(engine, 0.0)

    def _press(self, engine: int, pressure: float) -> None:
        self._pressure.labels(str(engine)).set(pressure)
        self._floor.labels(str(engine)).set(min(self._load.floor_at(pressure), self._most))

    def began(self, record: HandoffRecord) -> None:
        """Count a request that vLLM has begun."""
        self._count += 1
        self._running.set(self._count)
        if record.opt_in.extends is not None:
            self._extensions.inc()

    def reported(self, report: Mapping[str, Any], *, first: bool) -> None:
        """Take in what the scheduler says with a request's output: see `BudgetedRequest.report`.

        `first` is whether it is the first report of this request.
        """
        self._on_engine[report["engine"]] += first
        self._press(report["engine"], report.get("pressure", 0.0))

    def ended(self, record: HandoffRecord) -> None:
        """Count a request whose part in the cloud is over."""
        self._count -= 1
        self._running.set(self._count)
        made = len(record.output_token_ids)
        self._requests.labels(str(record.status)).inc()
        self._generated.inc(made)
        if record.status is Status.HANDED_OFF:
            self._not_generated.inc(max(0, record.sampling_params.get("max_tokens", made) - made))
        report = record.budget_report
        if report is not None:
            self._on_engine[report["engine"]] -= 1
            if not self._on_engine[report["engine"]]:
                self._press(report["engine"], 0.0)
            self._budgets.labels(report["set_by"]).inc()
            self._budget_tokens.observe(report["tokens"])
            self._changes.labels("lowered").inc(report.get("lowered", 0))
            self._changes.labels("raised").inc(report.get("raised", 0))
        if isinstance(record.kv, NoKV) and record.kv.reason != "not_requested":
            self._kv_refused.labels(record.kv.reason).inc()
        if not record.refining:
            self.refined(record)

    def refined(self, record: HandoffRecord) -> None:
        """Count what became of a request's refined prompt."""
        refinement = record.refinement
        if not isinstance(refinement, NoRefinement):
            self._refinements.labels(refinement.method).inc()
        elif refinement.reason != "not_requested":
            self._not_refined.labels(refinement.reason).inc()

    def kv_answered(self, outcome: str, sent: int = 0) -> None:
        """Count a request for cells: a reason why there are none, or ``sent`` or ``left``, and the bytes."""
        self._kv_streams.labels(outcome).inc()
        self._kv_sent.inc(sent)

    def kv_waited(self, seconds: float) -> None:
        """Count how long a request for cells had to wait for them."""
        self._kv_wait.observe(seconds)

    def cancelled(self, *, confirmed: bool) -> None:
        """Count a DELETE that came while its request ran."""
        self._cancels.labels(str(confirmed).lower()).inc()

    def used(self, record: HandoffRecord, tokens: int) -> None:
        """Count what was made in vain: the client says how many `tokens` of the answer it has used."""
        self._in_vain.inc(max(0, len(record.output_token_ids) - tokens))

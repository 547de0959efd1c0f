"""What ``/metrics`` says of the shared store; there only where one is set."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class StoreMetrics:
    """Figures of one API server process. docs/metrics.md says what each means."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.up = Gauge(
            "pdd_store_up", "Whether the shared store answers", registry=registry, multiprocess_mode="livemin"
        )
        self._errors = Counter("pdd_store_errors", "Errors of the shared store", registry=registry)
        self._states = Counter(
            "pdd_store_states", "Ended states by what became of them", ("outcome",), registry=registry
        )
        for outcome in ("stored", "dropped"):
            self._states.labels(outcome)

    def error(self) -> None:
        """Count an error of the store: a lost connection, a refused command, a value that cannot be read."""
        self._errors.inc()

    def stored(self) -> None:
        """Count a state that was written."""
        self._states.labels("stored").inc()

    def dropped(self, states: int = 1) -> None:
        """Count states that were not written."""
        self._states.labels("dropped").inc(states)

"""Operations and their stages, and of pulls what each registry does."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from api.stages import Outcome, Stage, Stages
from criserver.metrics.registries import Registries
from imageservice.errors import REGISTRY_UNAVAILABLE, SIGNATURE_VALIDATION_FAILED

PULL = "PullImage"

# Operations take from milliseconds to the minutes of a pull or of a stop's grace period.
OPERATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
# There are many stages, so each has few buckets.
STAGE_BUCKETS = (0.0005, 0.002, 0.01, 0.05, 0.25, 1, 5, 30, 120)


class OperationMetrics:
    """See api.stages.Observer. Names of operations and stages are the code's own, so they are few.

    A pull's object is its image's name, which begins with its registry's.
    """

    def __init__(self, registry: CollectorRegistry, registries: Registries) -> None:
        self._registries = registries
        self._under_way: dict[Stages, None] = {}
        self._total = Counter(
            "criserver_operations_total",
            "Operations that have ended.",
            ("operation", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "criserver_operation_duration_seconds",
            "How long operations took, those that failed too.",
            ("operation",),
            buckets=OPERATION_BUCKETS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "criserver_operations_in_flight",
            "Operations that are under way, their callers gone or not.",
            ("operation",),
            registry=registry,
        )
        Gauge(
            "criserver_oldest_operation_age_seconds",
            "How long the oldest operation has been under way; 0 when there is none.",
            registry=registry,
        ).set_function(self._oldest)
        self._stages = Histogram(
            "criserver_stage_duration_seconds",
            "How long the stages of operations took.",
            ("operation", "stage"),
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._stage_failures = Counter(
            "criserver_stage_failures_total",
            "Stages that have failed.",
            ("operation", "stage"),
            registry=registry,
        )
        self._pulls = Counter(
            "criserver_pulls_total", "Pulls that have ended.", ("registry",), registry=registry
        )
        self._pull_failures = Counter(
            "criserver_pull_failures_total",
            "Pulls that have failed.",
            ("registry", "reason"),
            registry=registry,
        )
        self._durations: dict[tuple[str, str], Histogram] = {}

    def operation_began(self, operation: Stages) -> None:
        """See Observer."""
        self._under_way[operation] = None
        self._in_flight.labels(operation.name).inc()

    def operation_ended(self, operation: Stages) -> None:
        """See Observer."""
        self._under_way.pop(operation, None)
        self._in_flight.labels(operation.name).dec()
        self._total.labels(operation.name, operation.code).inc()
        self._seconds.labels(operation.name).observe(operation.elapsed())
        if operation.name == PULL:
            self._pull_ended(operation)

    def _pull_ended(self, operation: Stages) -> None:
        name = self._registries.label(operation.key.partition("/")[0])
        self._pulls.labels(name).inc()
        if operation.outcome is not Outcome.OK:
            self._pull_failures.labels(name, _reason(operation)).inc()

    def stage_began(self, stage: Stage) -> None:
        """See Observer."""

    def stage_ended(self, stage: Stage) -> None:
        """See Observer."""
        key = stage.operation.name, stage.name
        durations = self._durations.get(key)
        if durations is None:
            durations = self._durations[key] = self._stages.labels(*key)
        durations.observe((stage.duration or 0) / 1e9)
        if stage.outcome is Outcome.FAILED:
            self._stage_failures.labels(*key).inc()

    def _oldest(self) -> float:
        # They are in the order in which they began. A scrape reads this on a thread of its own.
        for operation in list(self._under_way):
            return (time.monotonic_ns() - operation.started) / 1e9
        return 0.0


def _reason(pull: Stages) -> str:
    """Return why a pull failed, as one of few words."""
    if pull.outcome is Outcome.CANCELLED:
        return "cancelled"
    if pull.cause.startswith(REGISTRY_UNAVAILABLE):
        return "registry_unavailable"
    if pull.cause.startswith(SIGNATURE_VALIDATION_FAILED):
        return "signature"
    return "not_found" if pull.code == "NOT_FOUND" else "other"

"""RPCs: how many, how they ended, how long they took."""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from criserver.rpcs import Call

# From a status, which takes less than a millisecond, to the kubelet's limit of two minutes.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

LABELS = ("service", "method")


class _Method(NamedTuple):
    """The series of one method, looked up once: an observation is then a microsecond."""

    service: str
    name: str
    in_flight: Gauge
    seconds: Histogram


class RPCMetrics:
    """See criserver.rpcs.RPCObserver. Methods are those of the API: there are no others."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._total = Counter(
            "criserver_rpcs_total", "RPCs that have ended.", (*LABELS, "code"), registry=registry
        )
        self._seconds = Histogram(
            "criserver_rpc_duration_seconds",
            "How long RPCs took, those that failed too.",
            LABELS,
            buckets=BUCKETS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "criserver_rpcs_in_flight", "RPCs that are under way.", LABELS, registry=registry
        )
        self._methods: dict[str, _Method] = {}
        self._ends: dict[tuple[str, str], Counter] = {}

    def began(self, call: Call) -> None:
        """See RPCObserver."""
        self._method(call.path).in_flight.inc()

    def ended(self, call: Call) -> None:
        """See RPCObserver."""
        method = self._method(call.path)
        method.in_flight.dec()
        method.seconds.observe(call.seconds)
        end = self._ends.get((call.path, call.code))
        if end is None:
            end = self._total.labels(method.service, method.name, call.code)
            self._ends[call.path, call.code] = end
        end.inc()

    def _method(self, path: str) -> _Method:
        method = self._methods.get(path)
        if method is None:
            service, name = path.rsplit("/", 2)[-2:]
            service = service.rsplit(".", 1)[-1]
            method = _Method(
                service,
                name,
                self._in_flight.labels(service, name),
                self._seconds.labels(service, name),
            )
            self._methods[path] = method
        return method

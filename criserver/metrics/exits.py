"""Containers' ends, by the reason that the CRI reports."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from api.cri import api_pb2 as cri
from criserver.events import Change


class ExitMetrics:
    """Counts the ends among the changes that criserver.events tells of."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._exits = Counter(
            "criserver_container_exits_total",
            "Containers that have ended.",
            ("reason",),
            registry=registry,
        )

    def changed(self, change: Change) -> None:
        """Take a change."""
        if change.type != cri.CONTAINER_STOPPED_EVENT:
            return
        for container in change.containers:  # none is the subject when a sandbox has stopped
            if container.id == change.subject:
                self._exits.labels(container.reason).inc()

"""CNI plugins: runs by plugin and operation. Plugins are those of the node's configurations."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 10, 30, 60)


class CNIMetrics:
    """See podsandbox.network.cni_plugins.PluginObserver."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "criserver_cni_duration_seconds",
            "How long runs of CNI plugins took, those that failed too.",
            ("plugin", "command"),
            buckets=BUCKETS,
            registry=registry,
        )
        self._failures = Counter(
            "criserver_cni_failures_total",
            "Runs of CNI plugins that have failed or were killed at their timeout.",
            ("plugin", "command"),
            registry=registry,
        )

    def ran(self, plugin: str, command: str, seconds: float, succeeded: bool) -> None:
        """See PluginObserver."""
        self._seconds.labels(plugin, command).observe(seconds)
        if not succeeded:
            self._failures.labels(plugin, command).inc()

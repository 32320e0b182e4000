"""What Prometheus reads of the daemon; docs/observability.md lists every metric.

prometheus_client is imported by the modules that count (`registry`, and what it imports), and they
are imported when metrics.listen is set. What other parts keep for the metrics is plain numbers.
"""

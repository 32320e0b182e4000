"""Spans of RPCs, operations and stages, for an OpenTelemetry collector.

opentelemetry is imported by these modules alone, and they are when tracing.endpoint is set.
"""

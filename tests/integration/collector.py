"""An OpenTelemetry collector of the tests' own: OTLP over gRPC on a free port of 127.0.0.1."""

from __future__ import annotations

import threading
from concurrent import futures
from typing import NamedTuple

import grpc
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)
from opentelemetry.proto.trace.v1 import trace_pb2


class Received(NamedTuple):
    """One span as it has come; ids in hexadecimal, times in ns since the epoch."""

    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    attributes: dict[str, str | int]
    error: str | None  # None without an error
    resource: dict[str, str | int]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps all spans that are exported to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Received] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.endpoint = f"http://127.0.0.1:{port}"
        self._server.start()

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Take a batch."""
        with self._lock:
            for group in request.resource_spans:
                resource = _values(group.resource.attributes)
                for scope in group.scope_spans:
                    self._spans += [_received(span, resource) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, trace: str = "") -> list[Received]:
        """What has come so far, of one trace or ("") of all, in the order in which it began."""
        with self._lock:
            found = [span for span in self._spans if trace in ("", span.trace)]
        return sorted(found, key=lambda span: span.start)

    def stop(self) -> None:
        self._server.stop(None).wait()


def _received(span: trace_pb2.Span, resource: dict[str, str | int]) -> Received:
    failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    return Received(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _values(span.attributes),
        span.status.message if failed else None,
        resource,
    )


def _values(attributes: object) -> dict[str, str | int]:
    return {
        each.key: each.value.string_value or each.value.int_value  # of no other type here
        for each in attributes  # type: ignore[attr-defined]
    }

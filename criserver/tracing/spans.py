"""A span for each RPC that goes on with its caller's trace, and below it operations and stages.

    RPC                       the caller's traceparent is its parent
     └─ operation             begun by the RPC; it may end after it, and outlive it
         └─ stage …           nested; those that another process has measured are placed by it

An operation that an RPC joins has its span below the RPC that began it. Where the RPC is not
sampled nothing below it is made.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple

import grpc
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from api.stages import Outcome, Stage, Stages
from criserver.rpc_subject import Subject, Subjects
from criserver.rpcs import OK, Call

# OpenTelemetry's names (semantic conventions) of what a Subject knows, and one of ours.
ATTRIBUTES = {
    "namespace": "k8s.namespace.name",
    "pod": "k8s.pod.name",
    "pod_uid": "k8s.pod.uid",
    "container": "k8s.container.name",
    "container_id": "container.id",
    "image": "container.image.name",
    "pod_sandbox_id": "criserver.pod_sandbox.id",
}
OBJECT = "criserver.object"  # what an operation is on: an id, or an image's name
DETAIL = "criserver.detail"  # what a stage is about

# W3C trace context, as gRPC metadata. This is the end of a traceparent that is not sampled.
CARRIED = ("traceparent", "tracestate")
NOT_SAMPLED = "-00"


class _RPC(NamedTuple):
    """The sampled RPC of this context: what begins in it belongs below its span."""

    below: Context
    subject: Subject


class _Operation(NamedTuple):
    span: Span
    below: Context


_current: ContextVar[_RPC | None] = ContextVar("traced rpc", default=None)


class Spans:
    """See criserver.rpcs.RPCObserver and api.stages.Observer."""

    def __init__(self, tracer: Tracer, subjects: Subjects, *, roots: bool) -> None:
        """With `roots`, an RPC whose caller sends no trace context may be sampled."""
        self._roots = roots
        self._tracer = tracer
        self._subjects = subjects
        self._propagator = TraceContextTextMapPropagator()
        self._rpcs: dict[Call, Span] = {}
        self._operations: dict[Stages, _Operation] = {}
        self._stages: dict[Stage, Span] = {}

    # -- RPCs ---------------------------------------------------------------------------------

    def began(self, call: Call) -> None:
        """See RPCObserver."""
        caller = self._caller(call)
        if caller is None:
            return
        span = self._tracer.start_span(
            call.path[1:], caller, SpanKind.SERVER, start_time=call.started
        )
        if not span.is_recording():
            return
        call.trace_id = format(span.get_span_context().trace_id, "032x")
        call.subject = call.subject or self._subjects.of(call.request)
        service, _, method = call.path[1:].rpartition("/")
        span.set_attributes({"rpc.system": "grpc", "rpc.service": service, "rpc.method": method})
        span.set_attributes(_attributes(call.subject))
        self._rpcs[call] = span
        _current.set(_RPC(set_span_in_context(span, Context()), call.subject))

    def ended(self, call: Call) -> None:
        """See RPCObserver."""
        span = self._rpcs.pop(call, None)
        if span is None:
            return
        if call.subject is not None:
            call.subject.take_ids(call.response)
            span.set_attributes(_attributes(call.subject))
        span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[call.code].value[0])
        if call.code != OK:
            span.set_status(Status(StatusCode.ERROR, call.message or call.code))
        span.end(call.started + round(call.seconds * 1e9))

    def _caller(self, call: Call) -> Context | None:
        """Return the context that the caller has sent; None if the RPC is surely not sampled.

        That is most RPCs, which are polls: for them no more than this is done.
        """
        carrier = {key: value for key, value in call.metadata if key in CARRIED}
        if not carrier:
            return Context() if self._roots else None
        if carrier.get("traceparent", "").endswith(NOT_SAMPLED):
            return None
        return self._propagator.extract(carrier, Context())

    # -- operations ---------------------------------------------------------------------------

    def operation_began(self, operation: Stages) -> None:
        """See Observer."""
        rpc = _current.get()
        if rpc is None:
            return
        attributes = _attributes(rpc.subject) | {OBJECT: operation.key}
        span = self._tracer.start_span(
            operation.name, rpc.below, attributes=attributes, start_time=operation.started_at
        )
        self._operations[operation] = _Operation(span, set_span_in_context(span, Context()))

    def operation_ended(self, operation: Stages) -> None:
        """See Observer."""
        traced = self._operations.pop(operation, None)
        if traced is not None and operation.ended is not None:
            _set_outcome(traced.span, operation.outcome, operation.cause)
            traced.span.end(operation.wall(operation.ended))

    # -- stages -------------------------------------------------------------------------------

    def stage_began(self, stage: Stage) -> None:
        """See Observer."""
        operation = self._operations.get(stage.operation)
        if operation is None:
            return
        parent = self._stages.get(stage.parent) if stage.parent is not None else None
        below = operation.below if parent is None else set_span_in_context(parent, Context())
        started = stage.operation.wall(stage.started)
        span = self._tracer.start_span(stage.name, below, start_time=started)
        if stage.detail:
            span.set_attribute(DETAIL, stage.detail)
        self._stages[stage] = span

    def stage_ended(self, stage: Stage) -> None:
        """See Observer. It may be after the operation's end."""
        span = self._stages.pop(stage, None)
        if span is None:
            return
        wall = stage.operation.wall
        for event in stage.events:
            span.add_event(event.text, timestamp=wall(event.at))
        _set_outcome(span, stage.outcome, stage.cause)
        span.end(wall(stage.started + (stage.duration or 0)))


def _attributes(subject: Subject) -> dict[str, str]:
    return {ATTRIBUTES[name]: value for name, value in subject.present()}


def _set_outcome(span: Span, outcome: Outcome, cause: str) -> None:
    if outcome is not Outcome.OK:
        span.set_status(Status(StatusCode.ERROR, cause or outcome.value))

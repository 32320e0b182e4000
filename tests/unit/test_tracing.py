"""Spans without a collector: whose they are below, when they end, and what is not sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import StatusCode

from api import stages
from api.cri import api_pb2 as cri
from api.errors import DeadlineExceededError, InternalError
from criserver.operations import DEADLINE, Operations
from criserver.rpc_subject import Subjects
from criserver.rpcs import Call
from criserver.tracing.spans import Spans

TRACE, CALLER = "a" * 32, "b" * 16
PATH = "/runtime.v1.RuntimeService/RunPodSandbox"


class Traced:
    """Spans of a process that is traced, the ones that have ended."""

    def __init__(self, ratio: float = 0.0) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.spans = Spans(provider.get_tracer("tests"), Subjects(), roots=ratio > 0)

    def ended(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}

    def call(self, traceparent: str = f"00-{TRACE}-{CALLER}-01") -> Call:
        """An RPC that has begun in this context."""
        metadata = [("traceparent", traceparent)] if traceparent else []
        call = Call(PATH, cri.RunPodSandboxRequest(), metadata)
        self.spans.began(call)
        return call

    def end(self, call: Call, code: str = "OK", message: str = "") -> None:
        call.end(code, message)
        self.spans.ended(call)


@pytest.fixture
def traced() -> Iterator[Traced]:
    made = Traced()
    stop = stages.observe(made.spans)
    yield made
    stop()


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def own(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_operations_and_stages_are_below_the_rpc_that_began_them(traced):
    async def work() -> None:
        with stages.stage("sandbox"), stages.stage("network", "bridge"):
            stages.note("a first try failed")

    call = traced.call()
    await Operations().run("id", "Run", work)
    traced.end(call)
    spans = traced.ended()
    rpc = spans[PATH[1:]]
    assert parent(rpc) == int(CALLER, 16)
    assert {span.context.trace_id for span in spans.values() if span.context} == {int(TRACE, 16)}
    chain = [spans[name] for name in ("network", "sandbox", "Run")]
    assert [parent(span) for span in chain] == [own(chain[1]), own(chain[2]), own(rpc)]
    assert [event.name for event in chain[0].events] == ["a first try failed"]
    assert dict(chain[0].attributes or {}) == {"criserver.detail": "bridge"}


async def test_what_another_process_measured_lies_within_the_stage_that_asked_for_it(traced):
    minute = 60_000_000_000

    async def work() -> None:
        with stages.stage("create"):
            recorder = stages.RECORDER.get()
            assert recorder is not None
            recorder.add({"fork": minute, "init": 1, "total": minute}, "create")

    call = traced.call()
    await Operations().run("id", "Run", work)
    traced.end(call)
    spans = traced.ended()
    times = [
        (spans[name].start_time, spans[name].end_time) for name in ("create.fork", "create.init")
    ]
    (begin, _), (_, end) = times
    assert spans["create"].start_time == begin
    assert (spans["create"].end_time or 0) >= end
    assert times[0][1] == times[1][0]


async def test_an_operation_that_outlives_its_rpc_ends_in_its_trace(traced):
    release, operations = asyncio.Event(), Operations()

    async def work() -> None:
        with stages.stage("network"):
            await release.wait()

    call = traced.call()
    DEADLINE.set(asyncio.get_running_loop().time() + 0.01)
    with pytest.raises(DeadlineExceededError) as caught:
        await operations.run("id", "Run", work)
    traced.end(call, "DEADLINE_EXCEEDED", str(caught.value))
    assert list(traced.ended()) == [PATH[1:]]
    release.set()
    await settle()
    spans = traced.ended()
    assert parent(spans["Run"]) == own(spans[PATH[1:]])
    assert spans[PATH[1:]].status.status_code is StatusCode.ERROR
    assert "network" in (spans[PATH[1:]].status.description or "")
    assert spans["Run"].status.status_code is StatusCode.UNSET


async def test_a_failure_is_in_the_status_of_all_that_failed(traced):
    async def work() -> None:
        with stages.stage("network"):
            raise InternalError("the disk is full")

    call = traced.call()
    with pytest.raises(InternalError):
        await Operations().run("id", "Run", work)
    traced.end(call, "INTERNAL", "the disk is full")
    assert {span.status.description for span in traced.ended().values()} == {"the disk is full"}


async def test_a_shared_stage_may_end_after_its_operation(traced):
    release = asyncio.Event()
    tasks = []

    async def layer() -> None:
        with stages.stage("layer"):
            await release.wait()

    async def work() -> None:
        tasks.append(asyncio.create_task(layer()))
        await asyncio.sleep(0)

    call = traced.call()
    await Operations().run("id", "Run", work)
    traced.end(call)
    assert "layer" not in traced.ended()
    release.set()
    await asyncio.gather(*tasks)
    spans = traced.ended()
    assert parent(spans["layer"]) == own(spans["Run"])
    assert (traced.spans._stages, traced.spans._operations, traced.spans._rpcs) == ({}, {}, {})


@pytest.mark.parametrize("traceparent", ["", f"00-{TRACE}-{CALLER}-00", "nonsense", "-00"])
async def test_what_is_not_sampled_makes_no_span(traced, traceparent):
    async def work() -> None:
        with stages.stage("network"):
            pass

    call = traced.call(traceparent)
    await Operations().run("id", "Run", work)
    traced.end(call)
    assert traced.ended() == {}
    assert call.trace_id == ""


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"ff-{TRACE}-{CALLER}-01"])
async def test_without_a_usable_context_the_ratio_decides(traceparent):
    always = Traced(1.0)
    call = always.call(traceparent)
    always.end(call)
    (span,) = always.ended().values()
    assert span.parent is None
    assert call.trace_id not in ("", TRACE)


async def test_an_operation_of_no_rpc_makes_no_span(traced):
    """What the daemon does by itself, such as at its start."""

    async def work() -> None:
        with stages.stage("network"):
            pass

    await Operations().run("id", "Run", work)
    assert traced.ended() == {}

"""Where spans go: the collector, by a thread that sends them in batches.

What OpenTelemetry's variables (OTEL_EXPORTER_OTLP_CERTIFICATE, …_HEADERS, OTEL_RESOURCE_ATTRIBUTES,
OTEL_BSP_…) say of what is not a setting of ours holds, as with any program that uses its SDK.
"""

from __future__ import annotations

import asyncio
import logging

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from api import stages
from criserver.config_observability import TracingConfig
from criserver.rpc_subject import Subjects
from criserver.status import VERSION
from criserver.tracing.spans import Spans

log = logging.getLogger(__name__)

# A pod's spans reach the collector soon after it has started. A batch has 512 spans at most.
SCHEDULE_MS = 1000
# What the collector gets for one batch, and what a daemon that stops gives it for all that is left.
EXPORT_SECONDS = 5.0
CLOSE_SECONDS = 3.0


class Tracing:
    """Makes spans of all RPCs that are sampled, from now until `close`."""

    def __init__(self, config: TracingConfig, subjects: Subjects) -> None:
        resource = Resource.create({SERVICE_NAME: "criserver", SERVICE_VERSION: VERSION})
        sampler = ParentBased(TraceIdRatioBased(config.sampling_ratio))
        self._exporter = OTLPSpanExporter(config.endpoint, timeout=EXPORT_SECONDS)
        self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(self._exporter, schedule_delay_millis=SCHEDULE_MS)
        )
        tracer = self._provider.get_tracer("criserver", VERSION)
        self.spans = Spans(tracer, subjects, roots=config.sampling_ratio > 0)
        self._stop_observing = stages.observe(self.spans)
        log.info("traces go to %s", config.endpoint)

    async def close(self) -> None:
        """Send what is left. That ends after CLOSE_SECONDS, and the batch that is under way."""
        self._stop_observing()
        shutdown = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        done, _ = await asyncio.wait({shutdown}, timeout=CLOSE_SECONDS)
        if not done:
            log.warning("the collector takes no traces: those of the last moments are lost")
            self._exporter.shutdown()  # ends its retries, and refuses further batches
            await shutdown

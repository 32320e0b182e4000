"""All metrics of one daemon, in a registry of their own, and their exposition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from api import stages
from criserver.metrics.cni import CNIMetrics
from criserver.metrics.exits import ExitMetrics
from criserver.metrics.operations import OperationMetrics
from criserver.metrics.registries import Registries
from criserver.metrics.rpcs import RPCMetrics
from criserver.metrics.state import StateCollector
from criserver.runtime import Runtime


class Metrics:
    """Counts from now on; `watch` adds what a runtime has."""

    def __init__(self) -> None:
        # A series with the time of its creation beside each counter: nobody asks for them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registries = Registries()
        self._one_at_a_time = asyncio.Lock()
        self._state: StateCollector | None = None
        self.rpcs = RPCMetrics(self._registry)
        self.cni = CNIMetrics(self._registry)
        self._operations = OperationMetrics(self._registry, self._registries)
        self._exits = ExitMetrics(self._registry)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def watch(self, runtime: Runtime) -> Callable[[], None]:
        """Count what happens in a runtime; returns what ends that."""
        self._state = StateCollector(runtime, self._registries)
        self._registry.register(self._state)
        runtime.events.observers.append(self._exits.changed)
        return stages.observe(self._operations)

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics and their media type, by the Accept header of who asks.

        Text for the daemon's hundreds of series takes milliseconds: a thread writes it.
        """
        encode, content_type = choose_encoder(accept)
        async with self._one_at_a_time:
            if self._state is not None:
                await self._state.look()
            return await asyncio.to_thread(encode, self._registry), content_type

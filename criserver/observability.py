"""The log of RPCs, the metrics and the traces of a daemon, as its settings ask for them.

What is off is not imported, and costs nothing: nobody is told of anything on its behalf.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from criserver.access_log import AccessLog
from criserver.config import Config
from criserver.config_observability import parse_address
from criserver.rpc_subject import Subjects
from criserver.rpcs import RPCObserver
from criserver.runtime import Runtime
from podsandbox.network.cni_plugins import PluginObserver

if TYPE_CHECKING:
    from criserver.metrics.registry import Metrics


class Observability:
    """Made before the parts that it observes; started when the spawner runs, for grpc's sake."""

    def __init__(self, config: Config) -> None:
        self._metrics = _metrics(config)

    @property
    def cni(self) -> PluginObserver | None:
        """Who is to be told of CNI plugins' runs."""
        return None if self._metrics is None else self._metrics.cni

    async def start(self, runtime: Runtime, stack: AsyncExitStack) -> list[RPCObserver]:
        """Observe a runtime until `stack` is left; returns who is to be told of RPCs.

        Raises ConfigError where the metrics cannot be served.
        """
        subjects = Subjects(runtime.sandboxes.mirror, runtime.containers.mirror)
        observers: list[RPCObserver] = []
        if runtime.config.tracing.endpoint:
            from criserver.tracing.provider import Tracing  # grpc starts threads: not before now

            tracing = Tracing(runtime.config.tracing, subjects)
            stack.push_async_callback(tracing.close)
            observers.append(tracing.spans)
        if self._metrics is not None:
            observers.append(self._metrics.rpcs)
            await _expose(self._metrics, runtime, stack)
        observers.append(AccessLog(subjects))
        return observers


def _metrics(config: Config) -> Metrics | None:
    if not config.metrics.listen:
        return None
    from criserver.metrics.registry import Metrics

    return Metrics()


async def _expose(metrics: Metrics, runtime: Runtime, stack: AsyncExitStack) -> None:
    from criserver.metrics.endpoint import Endpoint

    stack.callback(metrics.watch(runtime))
    address = parse_address(runtime.config.metrics.listen)
    assert address is not None  # it has been checked
    endpoint = Endpoint(address, metrics.exposition)
    await endpoint.start()
    stack.push_async_callback(endpoint.close)

"""ContainerStats, ListContainerStats and StreamContainerStats."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable

from api.cri import api_pb2 as cri
from criserver.container_list import selected_containers
from criserver.paging import chunks, pages
from criserver.runtime import Runtime
from criserver.stats.messages import fill_container
from criserver.stats.readings import Readings
from criserver.store.containers import Container


async def container_stats(
    runtime: Runtime, request: cri.ContainerStatsRequest
) -> cri.ContainerStatsResponse:
    """Measure one container; one that has exited has a writable layer and nothing else."""
    container = runtime.containers.mirror.get(request.container_id)
    (stats,) = await measured(runtime, [container])
    return cri.ContainerStatsResponse(stats=stats)


async def list_container_stats(
    runtime: Runtime, request: cri.ListContainerStatsRequest
) -> cri.ListContainerStatsResponse:
    """Measure the containers that match all parts of the filter."""
    found = await measured(runtime, selected_containers(runtime, request.filter))
    return cri.ListContainerStatsResponse(stats=found)


async def stream_container_stats(
    runtime: Runtime, request: cri.StreamContainerStatsRequest
) -> AsyncIterator[cri.StreamContainerStatsResponse]:
    """ListContainerStats in pieces, each measured when its turn has come."""
    for some in chunks(list(selected_containers(runtime, request.filter))):
        for page in pages(await measured(runtime, some)):
            yield cri.StreamContainerStatsResponse(container_stats=page)


async def measured(runtime: Runtime, containers: Iterable[Container]) -> list[cri.ContainerStats]:
    """Return the stats of containers."""
    targets = await runtime.collector.container_targets(containers)
    mountpoint = os.fspath(runtime.config.root)

    def read(readings: Readings) -> list[cri.ContainerStats]:
        made = []
        for target in targets:
            stats = cri.ContainerStats()
            fill_container(stats, target, readings.container(target), mountpoint)
            made.append(stats)
        return made

    return await runtime.collector.run(read)

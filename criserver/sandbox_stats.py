"""PodSandboxStats, ListPodSandboxStats and StreamPodSandboxStats."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator

from api.cri import api_pb2 as cri
from criserver.container_list import by_id, has_labels
from criserver.paging import chunks, pages
from criserver.runtime import Runtime
from criserver.stats.messages import fill_container, fill_sandbox, sandbox_attributes
from criserver.stats.readings import Readings, SandboxTarget
from criserver.store.sandboxes import Sandbox


async def pod_sandbox_stats(
    runtime: Runtime, request: cri.PodSandboxStatsRequest
) -> cri.PodSandboxStatsResponse:
    """Measure one pod and its containers; of one that is stopped only its attributes are left."""
    sandbox = runtime.sandboxes.mirror.get(request.pod_sandbox_id)
    if sandbox.state != cri.SANDBOX_READY:
        stopped = cri.PodSandboxStats()
        sandbox_attributes(stopped.attributes, sandbox)
        return cri.PodSandboxStatsResponse(stats=stopped)
    (stats,) = await _measured(runtime, [sandbox])
    return cri.PodSandboxStatsResponse(stats=stats)


async def list_pod_sandbox_stats(
    runtime: Runtime, request: cri.ListPodSandboxStatsRequest
) -> cri.ListPodSandboxStatsResponse:
    """Measure the READY pods that match all parts of the filter."""
    found = await _measured(runtime, _matching(runtime, request.filter))
    return cri.ListPodSandboxStatsResponse(stats=found)


async def stream_pod_sandbox_stats(
    runtime: Runtime, request: cri.StreamPodSandboxStatsRequest
) -> AsyncIterator[cri.StreamPodSandboxStatsResponse]:
    """ListPodSandboxStats in pieces, each measured when its turn has come."""
    for some in chunks(list(_matching(runtime, request.filter))):
        for page in pages(await _measured(runtime, some)):
            yield cri.StreamPodSandboxStatsResponse(pod_sandbox_stats=page)


def _matching(runtime: Runtime, wanted: cri.PodSandboxStatsFilter) -> Iterator[Sandbox]:
    for sandbox in by_id(runtime.sandboxes.mirror, wanted.id):
        if sandbox.state == cri.SANDBOX_READY and has_labels(
            sandbox.message.labels, wanted.label_selector
        ):
            yield sandbox


async def _measured(runtime: Runtime, sandboxes: Iterable[Sandbox]) -> list[cri.PodSandboxStats]:
    targets = await runtime.collector.sandbox_targets(sandboxes)
    mountpoint = os.fspath(runtime.config.root)

    def read(readings: Readings) -> list[cri.PodSandboxStats]:
        return [_read(readings, target, mountpoint) for target in targets]

    return await runtime.collector.run(read)


def _read(readings: Readings, target: SandboxTarget, mountpoint: str) -> cri.PodSandboxStats:
    stats = cri.PodSandboxStats()
    fill_sandbox(stats, target, readings.sandbox(target), readings.network(target))
    for each in target.containers:
        fill_container(stats.linux.containers.add(), each, readings.container(each), mountpoint)
    return stats

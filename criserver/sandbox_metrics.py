"""ListMetricDescriptors, ListPodSandboxMetrics and StreamPodSandboxMetrics."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

from api.cri import api_pb2 as cri
from criserver.paging import chunks, pages
from criserver.runtime import Runtime
from criserver.stats.metric_families import FAMILIES
from criserver.stats.metrics import Filesystem, fill_container_metrics, fill_sandbox_metrics
from criserver.stats.readings import Readings, SandboxTarget
from criserver.store.containers import State
from criserver.store.sandboxes import Sandbox
from runtimeshim.linux.block_devices import device_of


async def list_metric_descriptors(
    _runtime: Runtime, _request: cri.ListMetricDescriptorsRequest
) -> cri.ListMetricDescriptorsResponse:
    """Declare the metrics; those of a controller that the machine lacks have no values."""
    return cri.ListMetricDescriptorsResponse(
        descriptors=[family.descriptor() for family in FAMILIES]
    )


async def list_pod_sandbox_metrics(
    runtime: Runtime, _request: cri.ListPodSandboxMetricsRequest
) -> cri.ListPodSandboxMetricsResponse:
    """Report the metrics of every READY pod and its living containers."""
    answer = cri.ListPodSandboxMetricsResponse()
    await _measure(runtime, _ready(runtime), answer.pod_metrics)
    return answer


async def stream_pod_sandbox_metrics(
    runtime: Runtime, _request: cri.StreamPodSandboxMetricsRequest
) -> AsyncIterator[cri.StreamPodSandboxMetricsResponse]:
    """ListPodSandboxMetrics in pieces, each measured when its turn has come."""
    for some in chunks(list(_ready(runtime))):
        answer = cri.ListPodSandboxMetricsResponse()
        await _measure(runtime, some, answer.pod_metrics)
        for page in pages(answer.pod_metrics):
            yield cri.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=page)


def _ready(runtime: Runtime) -> Iterator[Sandbox]:
    return (each for each in runtime.sandboxes.mirror.made() if each.state == cri.SANDBOX_READY)


async def _measure(runtime: Runtime, sandboxes: Iterable[Sandbox], into: Any) -> None:
    """Add the metrics of sandboxes to a repeated field."""
    targets = await runtime.collector.sandbox_targets(sandboxes)

    def read(readings: Readings) -> None:
        filesystem = _filesystem(runtime.config.root)
        for target in targets:
            _read(readings, target, filesystem, into.add(pod_sandbox_id=target.sandbox.id))

    await runtime.collector.run(read)


def _read(
    readings: Readings,
    target: SandboxTarget,
    filesystem: Filesystem,
    into: cri.PodSandboxMetrics,
) -> None:
    reading = readings.sandbox(target, details=True)
    fill_sandbox_metrics(into, target, reading, readings.network(target), readings.messages)
    for each in target.containers:
        if each.container.state is State.EXITED:
            continue
        reading = readings.container(each, details=True)
        fill_container_metrics(
            into.container_metrics.add(),
            each,
            target,
            reading,
            readings.pids(each),
            filesystem,
            readings.messages,
        )


def _filesystem(root: Path) -> Filesystem:
    status = os.statvfs(root)
    return Filesystem(
        device=device_of(os.fspath(root)),
        size=status.f_blocks * status.f_frsize,
        inodes=status.f_files,
        inodes_free=status.f_favail,
    )

"""Readings as metrics. Seconds are whole ones: the CRI's values are integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from api.cri import api_pb2 as cri
from criserver.stats import metric_families as families
from criserver.stats.metric_messages import MetricMessages, Value
from criserver.stats.readings import ContainerTarget, Reading, SandboxTarget
from runtimeshim.linux.block_devices import device_name
from runtimeshim.linux.cgroups.stats import Cpu, DeviceIO, Memory
from runtimeshim.linux.network_counters import InterfaceCounters
from runtimeshim.linux.processes import descriptors, max_open_files

_NS = 10**9

# The kernel's word for "no limit" in a number of bytes, and cAdvisor's.
_MAX_LIMIT = 1 << 62

_PRESSURE = {
    "cpu": (families.CPU_WAITING, families.CPU_STALLED),
    "memory": (families.MEMORY_WAITING, families.MEMORY_STALLED),
    "io": (families.IO_WAITING, families.IO_STALLED),
}


class Filesystem(NamedTuple):
    """The file system of the writable layers: its device's name, bytes and inodes."""

    device: str
    size: int
    inodes: int
    inodes_free: int


def fill_sandbox_metrics(
    into: cri.PodSandboxMetrics,
    target: SandboxTarget,
    reading: Reading,
    interfaces: Sequence[InterfaceCounters],
    messages: MetricMessages,
) -> None:
    """Add a pod's own metrics: those of its cgroup and of its network. `container` is empty."""
    metadata = target.sandbox.message.metadata
    labels = [target.sandbox.id, "", metadata.namespace, metadata.name, ""]
    values = [*_of_cgroup(reading), *_of_network(interfaces)]
    made = messages.of(target.sandbox.id, labels, reading.timestamp, values)
    into.metrics.MergeFrom(made.metrics)


def fill_container_metrics(
    into: cri.ContainerMetrics,
    target: ContainerTarget,
    sandbox: SandboxTarget,
    reading: Reading,
    pids: Sequence[int],
    filesystem: Filesystem,
    messages: MetricMessages,
) -> None:
    """Write all metrics of a container; `pids` are its processes."""
    container, metadata = target.container, sandbox.sandbox.message.metadata
    config = container.message_config
    labels = [
        container.id,
        config.image.user_specified_image or config.image.image,
        metadata.namespace,
        metadata.name,
        config.metadata.name,
    ]
    values = chain(
        _of_life(target, reading.timestamp),
        _of_cgroup(reading),
        _of_devices(reading.details.io),
        _of_filesystem(target, filesystem),
        _of_processes(target, reading, pids),
        _of_spec(config.linux.resources),
    )
    into.CopyFrom(messages.of(container.id, labels, reading.timestamp, list(values)))
    into.container_id = container.id


def _of_life(target: ContainerTarget, timestamp: int) -> Iterator[Value]:
    yield families.LAST_SEEN, timestamp // _NS, ()
    started = target.container.started_at or target.container.created_at
    yield families.START_TIME, started // _NS, ()


def _of_cgroup(reading: Reading) -> Iterator[Value]:
    stats, details = reading.stats, reading.details
    if stats.cpu is not None:
        yield from _of_cpu(stats.cpu)
    if stats.memory is not None:
        yield from _of_memory(stats.memory)
        yield families.OOM_EVENTS, details.oom_kills, ()
    for resource, pressure in stats.pressure.items():
        waiting, stalled = _PRESSURE[resource]
        yield waiting, pressure.some.total // _NS, ()
        if pressure.full is not None:
            yield stalled, pressure.full.total // _NS, ()
    for pages in details.huge_pages:
        yield families.HUGETLB_USAGE, pages.usage, (pages.size,)
        if pages.peak is not None:
            yield families.HUGETLB_MAX, pages.peak, (pages.size,)


def _of_cpu(cpu: Cpu) -> Iterator[Value]:
    yield families.CPU_USER, cpu.user // _NS, ()
    yield families.CPU_SYSTEM, cpu.system // _NS, ()
    yield families.CPU_USAGE, cpu.total // _NS, ("total",)
    yield families.CFS_PERIODS, cpu.periods, ()
    yield families.CFS_THROTTLED, cpu.throttled_periods, ()
    yield families.CFS_SECONDS, cpu.throttled // _NS, ()


def _of_memory(memory: Memory) -> Iterator[Value]:
    yield families.MEMORY_CACHE, memory.cache, ()
    yield families.MEMORY_RSS, memory.rss, ()
    yield families.MEMORY_KERNEL, memory.kernel or 0, ()
    yield families.MEMORY_MAPPED, memory.mapped_file, ()
    yield families.MEMORY_SWAP, memory.swap or 0, ()
    yield families.MEMORY_FAILCNT, memory.failures, ()
    yield families.MEMORY_USAGE, memory.usage, ()
    # Kernels before 5.19 keep no peak on v2: what is in use now is the highest that is known.
    yield families.MEMORY_MAX, memory.usage if memory.peak is None else memory.peak, ()
    yield families.MEMORY_WORKING_SET, memory.working_set, ()
    yield families.MEMORY_ACTIVE_FILE, memory.active_file, ()
    yield families.MEMORY_INACTIVE_FILE, memory.inactive_file, ()
    yield families.MEMORY_FAILURES, memory.own_faults, ("pgfault", "container")
    yield families.MEMORY_FAILURES, memory.own_major_faults, ("pgmajfault", "container")
    yield families.MEMORY_FAILURES, memory.faults, ("pgfault", "hierarchy")
    yield families.MEMORY_FAILURES, memory.major_faults, ("pgmajfault", "hierarchy")


def _of_network(interfaces: Sequence[InterfaceCounters]) -> Iterator[Value]:
    for each in interfaces:
        name = (each.name,)
        yield families.NETWORK_RX_BYTES, each.rx_bytes, name
        yield families.NETWORK_RX_PACKETS, each.rx_packets, name
        yield families.NETWORK_RX_DROPPED, each.rx_dropped, name
        yield families.NETWORK_RX_ERRORS, each.rx_errors, name
        yield families.NETWORK_TX_BYTES, each.tx_bytes, name
        yield families.NETWORK_TX_PACKETS, each.tx_packets, name
        yield families.NETWORK_TX_DROPPED, each.tx_dropped, name
        yield families.NETWORK_TX_ERRORS, each.tx_errors, name


def _of_devices(devices: Sequence[DeviceIO]) -> Iterator[Value]:
    for each in devices:
        name = device_name(each.major, each.minor)
        yield families.FS_READ_BYTES, each.bytes.get("Read", 0), (name,)
        yield families.FS_WRITE_BYTES, each.bytes.get("Write", 0), (name,)
        yield families.FS_READS, each.operations.get("Read", 0), (name,)
        yield families.FS_WRITES, each.operations.get("Write", 0), (name,)
        for operation, value in each.bytes.items():
            yield families.BLKIO, value, (name, str(each.major), str(each.minor), operation)


def _of_filesystem(target: ContainerTarget, filesystem: Filesystem) -> Iterator[Value]:
    device = (filesystem.device,)
    yield families.FS_INODES_FREE, filesystem.inodes_free, device
    yield families.FS_INODES, filesystem.inodes, device
    yield families.FS_LIMIT, filesystem.size, device
    if target.writable is not None:
        yield families.FS_USAGE, target.writable.used_bytes, device


def _of_processes(
    target: ContainerTarget, reading: Reading, pids: Sequence[int]
) -> Iterator[Value]:
    yield families.PROCESSES, len(pids), ()
    if reading.stats.tasks is not None:
        yield families.THREADS, reading.stats.tasks, ()
    yield families.THREADS_MAX, reading.details.max_tasks or 0, ()
    held = descriptors(pids)
    yield families.FILE_DESCRIPTORS, held.open, ()
    yield families.SOCKETS, held.sockets, ()
    limit = max_open_files(target.container.pid) if target.container.pid else None
    if limit is not None:
        # -1, unlimited, wraps around to the largest number: the values have no sign.
        yield families.ULIMITS_SOFT, limit % (1 << 64), ("max_open_files",)


def _of_spec(resources: cri.LinuxContainerResources) -> Iterator[Value]:
    """The limits that were asked for, with the kernel's defaults for what was not."""
    yield families.SPEC_CPU_PERIOD, resources.cpu_period or 100_000, ()
    if resources.cpu_quota > 0:
        yield families.SPEC_CPU_QUOTA, resources.cpu_quota, ()
    yield families.SPEC_CPU_SHARES, resources.cpu_shares or 1024, ()
    yield families.SPEC_MEMORY, _spec_memory(resources.memory_limit_in_bytes), ()
    reserved = resources.unified.get("memory.low", "0")
    reservation = int(reserved) if reserved.isdigit() else 0
    yield families.SPEC_MEMORY_RESERVATION, _spec_memory(reservation), ()
    yield families.SPEC_MEMORY_SWAP, _spec_memory(resources.memory_swap_limit_in_bytes), ()


def _spec_memory(limit: int) -> int:
    return limit if 0 < limit <= _MAX_LIMIT else 0

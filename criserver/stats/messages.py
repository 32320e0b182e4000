"""Readings as the CRI's stats messages. What was not measured is left out, never zero."""

from __future__ import annotations

from api.cri import api_pb2 as cri
from criserver.stats.readings import ContainerTarget, Reading, SandboxTarget
from criserver.store.containers import Container
from criserver.store.sandboxes import Sandbox
from imageservice.snapshots import Usage
from podsandbox.network import INTERFACE
from runtimeshim.linux.cgroups.stats import Memory, Pressure, Stall
from runtimeshim.linux.network_counters import InterfaceCounters


def fill_container(
    into: cri.ContainerStats, target: ContainerTarget, reading: Reading, mountpoint: str
) -> None:
    """Write a container's stats; `mountpoint` is that of the images' file system."""
    container_attributes(into.attributes, target.container)
    _cpu(into.cpu, reading)
    _memory(into.memory, reading)
    _io(into.io, reading)
    memory = reading.stats.memory
    if memory is not None and memory.swap is not None:
        _swap(into.swap, memory, reading.timestamp)
    if target.writable is not None:
        _writable(into.writable_layer, target.writable, mountpoint)


def fill_sandbox(
    into: cri.PodSandboxStats,
    target: SandboxTarget,
    reading: Reading,
    interfaces: list[InterfaceCounters],
) -> None:
    """Write a pod's own stats, without those of its containers."""
    sandbox_attributes(into.attributes, target.sandbox)
    linux = into.linux
    _cpu(linux.cpu, reading)
    _memory(linux.memory, reading)
    _io(linux.io, reading)
    if reading.stats.tasks is not None:
        linux.process.timestamp = reading.timestamp
        linux.process.process_count.value = reading.stats.tasks
    if interfaces:
        _network(linux.network, interfaces, reading.timestamp)


def container_attributes(into: cri.ContainerAttributes, container: Container) -> None:
    """Write who the container is."""
    config = container.message_config
    into.id = container.id
    into.metadata.CopyFrom(config.metadata)
    into.labels.update(config.labels)
    into.annotations.update(config.annotations)


def sandbox_attributes(into: cri.PodSandboxAttributes, sandbox: Sandbox) -> None:
    """Write who the pod is."""
    config = sandbox.message
    into.id = sandbox.id
    into.metadata.CopyFrom(config.metadata)
    into.labels.update(config.labels)
    into.annotations.update(config.annotations)


def _cpu(into: cri.CpuUsage, reading: Reading) -> None:
    cpu = reading.stats.cpu
    if cpu is None:
        return
    into.timestamp = reading.timestamp
    into.usage_core_nano_seconds.value = cpu.total
    if reading.cpu_rate is not None:
        into.usage_nano_cores.value = reading.cpu_rate
    if (pressure := reading.stats.pressure.get("cpu")) is not None:
        _pressure(into.psi, pressure)


def _memory(into: cri.MemoryUsage, reading: Reading) -> None:
    memory = reading.stats.memory
    if memory is None:
        return
    into.timestamp = reading.timestamp
    into.working_set_bytes.value = memory.working_set
    into.usage_bytes.value = memory.usage
    into.rss_bytes.value = memory.rss
    into.page_faults.value = memory.faults
    into.major_page_faults.value = memory.major_faults
    if memory.limit is not None:
        into.available_bytes.value = max(memory.limit - memory.working_set, 0)
    if (pressure := reading.stats.pressure.get("memory")) is not None:
        _pressure(into.psi, pressure)


def _swap(into: cri.SwapUsage, memory: Memory, timestamp: int) -> None:
    into.timestamp = timestamp
    into.swap_usage_bytes.value = memory.swap or 0
    if memory.swap_limit is not None:
        into.swap_available_bytes.value = max(memory.swap_limit - (memory.swap or 0), 0)


def _io(into: cri.IoUsage, reading: Reading) -> None:
    """The message holds nothing but pressure, which only cgroup v2 accounts."""
    if (pressure := reading.stats.pressure.get("io")) is not None:
        into.timestamp = reading.timestamp
        _pressure(into.psi, pressure)


def _pressure(into: cri.PsiStats, pressure: Pressure) -> None:
    _stall(into.Some, pressure.some)
    if pressure.full is not None:
        _stall(into.Full, pressure.full)


def _stall(into: cri.PsiData, stall: Stall) -> None:
    into.Total = stall.total
    into.Avg10, into.Avg60, into.Avg300 = stall.avg10, stall.avg60, stall.avg300


def _writable(into: cri.FilesystemUsage, usage: Usage, mountpoint: str) -> None:
    into.timestamp = usage.timestamp
    into.fs_id.mountpoint = mountpoint
    into.used_bytes.value = usage.used_bytes
    into.inodes_used.value = usage.inodes


def _network(into: cri.NetworkUsage, interfaces: list[InterfaceCounters], timestamp: int) -> None:
    """The default interface is eth0, or the first; `interfaces` are the others (api.proto)."""
    default = next((each for each in interfaces if each.name == INTERFACE), interfaces[0])
    into.timestamp = timestamp
    _interface(into.default_interface, default)
    for counters in interfaces:
        if counters is not default:
            _interface(into.interfaces.add(), counters)


def _interface(into: cri.NetworkInterfaceUsage, counters: InterfaceCounters) -> None:
    into.name = counters.name
    into.rx_bytes.value = counters.rx_bytes
    into.rx_errors.value = counters.rx_errors
    into.tx_bytes.value = counters.tx_bytes
    into.tx_errors.value = counters.tx_errors

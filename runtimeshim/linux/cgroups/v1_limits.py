"""OCI linux.resources on cgroup v1: which file takes which value, and in which order."""

from __future__ import annotations

import errno
import os

from runtimeshim.linux.cgroups import devices, devices_io
from runtimeshim.linux.cgroups.files import CgroupError, read, write
from runtimeshim.linux.cgroups.resources import (
    Limit,
    entries,
    flag,
    integer,
    pids_limit,
    positive,
    section,
    text,
    write_hugetlb,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtimeshim.linux.cgroups.resources import Section

MEMORY_LIMIT = "memory.limit_in_bytes"
SWAP_LIMIT = "memory.memsw.limit_in_bytes"
UNLIMITED = -1


def cpu(directory: str, resources: Section) -> None:
    """Write shares, idle, realtime and CFS bandwidth limits."""
    values = section(resources, "cpu")
    idle = integer(values, "idle")
    if idle == 0:  # shares of an idle cgroup cannot be set
        write(f"{directory}/cpu.idle", "0")
    _write_number(directory, "cpu.shares", positive(values, "shares"))
    if idle:
        write(f"{directory}/cpu.idle", str(idle))
    _cpu_bandwidth(directory, values)
    _write_number(directory, "cpu.rt_period_us", positive(values, "realtimePeriod"))
    _write_number(directory, "cpu.rt_runtime_us", positive(values, "realtimeRuntime"))


def _cpu_bandwidth(directory: str, values: Section) -> None:
    """Write quota, period and burst.

    A period or burst that is wrong only beside the old quota is refused with EINVAL: when a new
    quota comes with it, it is written again after that.
    """
    quota = positive(values, "quota")
    again: list[tuple[str, str]] = []
    for file, value in (
        ("cpu.cfs_period_us", positive(values, "period")),
        ("cpu.cfs_burst_us", integer(values, "burst")),
    ):
        if value is None:
            continue
        try:
            write(f"{directory}/{file}", str(value))
        except CgroupError as err:
            if err.errno != errno.EINVAL or quota is None:
                raise
            again.append((file, str(value)))
    _write_number(directory, "cpu.cfs_quota_us", quota)
    for file, text_value in again:
        write(f"{directory}/{file}", text_value)


def _write_number(directory: str, file: str, value: int | None) -> None:
    if value is not None:
        write(f"{directory}/{file}", str(value))


def cpuset(directory: str, resources: Section) -> None:
    """Write the cpuset's CPUs and memory nodes."""
    values = section(resources, "cpu")
    for key in ("cpus", "mems"):
        value = text(values, key)
        if value:
            write(f"{directory}/cpuset.{key}", value)


def memory(directory: str, resources: Section) -> None:
    """Write the limits of memory, and of memory plus swap, and what else the controller takes."""
    values = section(resources, "memory")
    _memory_and_swap(directory, positive(values, "limit"), positive(values, "swap"))
    _write_number(directory, "memory.soft_limit_in_bytes", positive(values, "reservation"))
    _write_number(directory, "memory.swappiness", integer(values, "swappiness"))
    _write_number(directory, "memory.kmem.tcp.limit_in_bytes", positive(values, "kernelTCP"))
    if flag(values, "disableOOMKiller"):
        write(f"{directory}/memory.oom_control", "1")


def _memory_and_swap(directory: str, limit: int | None, swap: int | None) -> None:
    """Write both limits in the order in which the kernel's rule, memory ≤ memory+swap, holds."""
    accounted = os.path.exists(f"{directory}/{SWAP_LIMIT}")
    if not accounted and swap in (UNLIMITED, limit):
        swap = None  # nothing is accounted, and nothing would have been limited
    if limit == UNLIMITED and swap is None and accounted:
        swap = UNLIMITED  # or the old limit of the sum would still hold
    raising = (
        limit is not None
        and swap is not None
        and (swap == UNLIMITED or int(read(f"{directory}/{MEMORY_LIMIT}")) < swap)
    )
    if raising:
        _write_number(directory, SWAP_LIMIT, swap)
        _write_memory(directory, limit)
    else:
        _write_memory(directory, limit)
        _write_number(directory, SWAP_LIMIT, swap)


def _write_memory(directory: str, limit: int | None) -> None:
    try:
        _write_number(directory, MEMORY_LIMIT, limit)
    except CgroupError as err:
        if err.errno != errno.EBUSY:
            raise
        usage = read(f"{directory}/memory.usage_in_bytes")
        raise CgroupError(
            errno.EBUSY,
            f"memory limit {limit} is below what is in use ({usage} bytes)",
            directory,
        ) from err


def pids(directory: str, resources: Section) -> None:
    """Write how many tasks there may be."""
    write(f"{directory}/pids.max", pids_limit(resources))


def hugetlb(directory: str, resources: Section) -> None:
    """Write the huge page limits, of usage and of reservation."""
    write_hugetlb(directory, resources, "limit_in_bytes")


def device_rules(directory: str, resources: Section) -> None:
    """Make the cgroup an allowlist of device rules."""
    devices.apply_v1(directory, devices.allowlist(entries(resources, "devices")))


LIMITS = (
    Limit(
        "cpu",
        "cpu",
        ("shares", "quota", "period", "burst", "idle", "realtimePeriod", "realtimeRuntime"),
        cpu,
    ),
    Limit("cpu", "cpuset", ("cpus", "mems"), cpuset),
    Limit(
        "memory",
        "memory",
        ("limit", "swap", "reservation", "swappiness", "disableOOMKiller", "kernelTCP"),
        memory,
    ),
    Limit("pids", "pids", ("limit",), pids),
    Limit("hugepageLimits", "hugetlb", (), hugetlb),
    Limit("devices", "devices", (), device_rules),
    Limit("blockIO", "blkio", devices_io.BLOCK_IO, devices_io.block_io_v1),
    Limit("network", "net_cls", ("classID",), devices_io.net_cls),
    Limit("network", "net_prio", ("priorities",), devices_io.net_prio),
    Limit("rdma", "rdma", (), devices_io.rdma),
)

UNSUPPORTED = ("unified",)

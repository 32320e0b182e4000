"""What a container uses, in the form of `runc events`: from its cgroup, and nothing else.

Amounts are bytes, times nanoseconds. What the kernel does not count is not in the document.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any

from runtimeshim.linux.cgroups import CgroupError, CgroupManager
from runtimeshim.linux.cgroups.stats import (
    CgroupDetails,
    CgroupStats,
    DeviceIO,
    StatsReader,
    content_of,
    limit_of,
    number,
    pairs,
)

Document = dict[str, Any]

# runc's word for "no limit".
_UNLIMITED = 2**64 - 1

# v1: name in the document -> beginning of the names of its files
_V1_MEMORY = {
    "usage": "memory",
    "swap": "memory.memsw",
    "kernel": "memory.kmem",
    "kernelTCP": "memory.kmem.tcp",
}
_V2_MEMORY = {"usage": "memory", "swap": "memory.swap"}


def read(manager: CgroupManager, path: str) -> Document:
    """Return the statistics of a cgroup; one that went with its container has used nothing."""
    reader = StatsReader(manager)
    try:
        stats = reader.stats(path, monitoring=True)
    except CgroupError as err:
        if err.errno != errno.ENOENT:
            raise
        stats = CgroupStats()
    details = reader.details(path)
    directories = {
        controller: directory
        for names, directory in manager.directories(path)
        for controller in names.split(",")
    }
    found: Document = {
        "cpu": _cpu(stats, directories.get("cpuacct")),
        "memory": {},
        "pids": _pids(stats, details),
        "blkio": _blkio(details.io),
        "hugetlb": {},
    }
    if manager.version == 2:
        found["memory"] = _v2_memory(directories[""])
        found["hugetlb"] = _hugetlb(directories[""], "current", "max")
        return found
    if "memory" in directories:
        found["memory"] = _v1_memory(directories["memory"])
    if "hugetlb" in directories:
        found["hugetlb"] = _hugetlb(directories["hugetlb"], "usage_in_bytes", "max_usage_in_bytes")
    return found


def _cpu(stats: CgroupStats, accounts: str | None) -> Document:
    """`accounts` is the directory of v1's cpuacct, which alone counts by CPU."""
    cpu = stats.cpu
    if cpu is None:
        return {}
    usage: Document = {"total": cpu.total, "kernel": cpu.system, "user": cpu.user}
    if accounts is not None:
        per_cpu = content_of(f"{accounts}/cpuacct.usage_percpu")
        usage["percpu"] = [int(value) for value in per_cpu.split()]
    return {
        "usage": usage,
        "throttling": {
            "periods": cpu.periods,
            "throttledPeriods": cpu.throttled_periods,
            "throttledTime": cpu.throttled,
        },
    }


def _v1_memory(directory: str) -> Document:
    raw = pairs(content_of(f"{directory}/memory.stat"))
    found: Document = {"cache": raw.get("cache", 0), "raw": raw}
    for name, prefix in _V1_MEMORY.items():
        if os.path.exists(f"{directory}/{prefix}.usage_in_bytes"):
            found[name] = {
                "limit": _limit(f"{directory}/{prefix}.limit_in_bytes"),
                "usage": _number(f"{directory}/{prefix}.usage_in_bytes"),
                "max": _number(f"{directory}/{prefix}.max_usage_in_bytes"),
                "failcnt": _number(f"{directory}/{prefix}.failcnt"),
            }
    return found


def _v2_memory(directory: str) -> Document:
    raw = pairs(content_of(f"{directory}/memory.stat"))
    found: Document = {"cache": raw.get("file", 0), "raw": raw}
    for name, prefix in _V2_MEMORY.items():
        if os.path.exists(f"{directory}/{prefix}.current"):
            found[name] = {
                "limit": _limit(f"{directory}/{prefix}.max"),
                "usage": _number(f"{directory}/{prefix}.current"),
                "max": _number(f"{directory}/{prefix}.peak"),
                "failcnt": pairs(content_of(f"{directory}/{prefix}.events")).get("max", 0),
            }
    return found


def _pids(stats: CgroupStats, details: CgroupDetails) -> Document:
    """As in runc: 0 is for no limit here."""
    if stats.tasks is None:
        return {}
    return {"current": stats.tasks, "limit": details.max_tasks or 0}


def _blkio(devices: Sequence[DeviceIO]) -> Document:
    found: Document = {}
    for device in devices:
        for name, values in (
            ("ioServiceBytesRecursive", device.bytes),
            ("ioServicedRecursive", device.operations),
        ):
            found.setdefault(name, []).extend(_entries(device, values))
    return found


def _entries(device: DeviceIO, values: Mapping[str, int]) -> list[Document]:
    where = {"major": device.major, "minor": device.minor}
    return [{**where, "op": operation, "value": value} for operation, value in values.items()]


def _hugetlb(directory: str, usage: str, maximum: str) -> Document:
    """Return the huge pages by size; v2 keeps no peak, and runc shows the limit there."""
    found: Document = {}
    try:
        files = sorted(os.listdir(directory))
    except FileNotFoundError:  # a scope of systemd goes with its last process
        return found
    for name in files:
        kind, size, *rest = [*name.split("."), ""]
        if kind == "hugetlb" and rest[:-1] == [usage]:
            found[size] = {
                "usage": _number(f"{directory}/{name}"),
                "max": _number(f"{directory}/hugetlb.{size}.{maximum}"),
                "failcnt": _number(f"{directory}/hugetlb.{size}.failcnt"),
            }
    return found


def _number(file: str) -> int:
    return number(content_of(file)) or 0


def _limit(file: str) -> int:
    limit = limit_of(content_of(file))
    return _UNLIMITED if limit is None else limit

"""What a container uses, in the form of `runc events`: from its cgroup, and nothing else.

Amounts are bytes, times nanoseconds. What the kernel does not count is not in the document.
"""

from __future__ import annotations

import os
from typing import Any

from runtimeshim.linux.cgroups import CgroupManager

Document = dict[str, Any]

# From v2's microseconds, and v1's clock ticks.
_NS_PER_US = 1000
_NS_PER_TICK = 10**9 // os.sysconf("SC_CLK_TCK")

# v1 has this for "no limit", rounded down to a page; v2 says "max".
_MAX_LIMIT = 2**63 - 4096
_UNLIMITED = 2**64 - 1

# v1: name in the document -> beginning of the names of its files
_V1_MEMORY = {
    "usage": "memory",
    "swap": "memory.memsw",
    "kernel": "memory.kmem",
    "kernelTCP": "memory.kmem.tcp",
}
_V1_BLKIO = {
    "ioServiceBytesRecursive": "blkio.throttle.io_service_bytes_recursive",
    "ioServicedRecursive": "blkio.throttle.io_serviced_recursive",
}
_V2_IO = {
    "rbytes": ("ioServiceBytesRecursive", "Read"),
    "wbytes": ("ioServiceBytesRecursive", "Write"),
    "rios": ("ioServicedRecursive", "Read"),
    "wios": ("ioServicedRecursive", "Write"),
}


def read(manager: CgroupManager, path: str) -> Document:
    """Return the statistics of a cgroup."""
    if manager.version == 2:
        ((_, directory),) = manager.directories(path)
        return _v2(directory)
    directories = {
        controller: directory
        for names, directory in manager.directories(path)
        for controller in names.split(",")
    }
    return _v1(directories)


def _v1(directories: dict[str, str]) -> Document:
    found: Document = {"cpu": {}, "memory": {}, "pids": {}, "blkio": {}, "hugetlb": {}}
    if "cpuacct" in directories:
        found["cpu"]["usage"] = _v1_cpu(directories["cpuacct"])
    if "cpu" in directories:
        counted = _pairs(f"{directories['cpu']}/cpu.stat")
        found["cpu"]["throttling"] = _throttling(counted, counted.get("throttled_time", 0))
    if "memory" in directories:
        found["memory"] = _v1_memory(directories["memory"])
    if "pids" in directories:
        found["pids"] = _pids(directories["pids"])
    if "blkio" in directories:
        for name, file in _V1_BLKIO.items():
            found["blkio"][name] = _v1_blkio(f"{directories['blkio']}/{file}")
    if "hugetlb" in directories:
        found["hugetlb"] = _hugetlb(directories["hugetlb"], "usage_in_bytes", "max_usage_in_bytes")
    return found


def _v1_cpu(directory: str) -> Document:
    ticks = _pairs(f"{directory}/cpuacct.stat")
    return {
        "total": _number(f"{directory}/cpuacct.usage"),
        "percpu": [int(value) for value in _text(f"{directory}/cpuacct.usage_percpu").split()],
        "kernel": ticks.get("system", 0) * _NS_PER_TICK,
        "user": ticks.get("user", 0) * _NS_PER_TICK,
    }


def _v1_memory(directory: str) -> Document:
    raw = _pairs(f"{directory}/memory.stat")
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


def _v1_blkio(file: str) -> list[Document]:
    """Read lines like "8:0 Read 4096"; the last is a total without a device."""
    entries = []
    for line in _text(file).splitlines():
        fields = line.split()
        if len(fields) == 3:
            major, minor = map(int, fields[0].split(":"))
            entry = {"major": major, "minor": minor, "op": fields[1], "value": int(fields[2])}
            entries.append(entry)
    return entries


def _v2(directory: str) -> Document:
    counted = _pairs(f"{directory}/cpu.stat")
    return {
        "cpu": {
            "usage": {
                "total": counted.get("usage_usec", 0) * _NS_PER_US,
                "kernel": counted.get("system_usec", 0) * _NS_PER_US,
                "user": counted.get("user_usec", 0) * _NS_PER_US,
            },
            "throttling": _throttling(counted, counted.get("throttled_usec", 0) * _NS_PER_US),
        },
        "memory": _v2_memory(directory),
        "pids": _pids(directory),
        "blkio": _v2_io(f"{directory}/io.stat"),
        "hugetlb": _hugetlb(directory, "current", "max"),
    }


def _v2_memory(directory: str) -> Document:
    raw = _pairs(f"{directory}/memory.stat")
    found: Document = {"cache": raw.get("file", 0), "raw": raw}
    for name, prefix in (("usage", "memory"), ("swap", "memory.swap")):
        if os.path.exists(f"{directory}/{prefix}.current"):
            found[name] = {
                "limit": _limit(f"{directory}/{prefix}.max"),
                "usage": _number(f"{directory}/{prefix}.current"),
                "max": _number(f"{directory}/{prefix}.peak"),
                "failcnt": _pairs(f"{directory}/{prefix}.events").get("max", 0),
            }
    return found


def _v2_io(file: str) -> Document:
    """Read lines like "8:0 rbytes=4096 wbytes=0 rios=1 wios=0"."""
    found: Document = {}
    for line in _text(file).splitlines():
        device, *fields = line.split()
        major, minor = map(int, device.split(":"))
        for field in fields:
            key, _, value = field.partition("=")
            if key in _V2_IO:
                name, operation = _V2_IO[key]
                entry = {"major": major, "minor": minor, "op": operation, "value": int(value)}
                found.setdefault(name, []).append(entry)
    return found


def _throttling(counted: dict[str, int], throttled: int) -> Document:
    return {
        "periods": counted.get("nr_periods", 0),
        "throttledPeriods": counted.get("nr_throttled", 0),
        "throttledTime": throttled,
    }


def _pids(directory: str) -> Document:
    limit = _limit(f"{directory}/pids.max")
    # As in runc: 0 is for no limit here.
    return {
        "current": _number(f"{directory}/pids.current"),
        "limit": 0 if limit == _UNLIMITED else limit,
    }


def _hugetlb(directory: str, usage: str, maximum: str) -> Document:
    found: Document = {}
    for name in sorted(os.listdir(directory)):
        kind, size, *rest = [*name.split("."), ""]
        if kind == "hugetlb" and rest[:-1] == [usage]:
            found[size] = {
                "usage": _number(f"{directory}/{name}"),
                "max": _number(f"{directory}/hugetlb.{size}.{maximum}"),
                "failcnt": _number(f"{directory}/hugetlb.{size}.failcnt"),
            }
    return found


def _text(file: str) -> str:
    """Read a file; one that this kernel or controller does not have is empty."""
    try:
        with open(file, encoding="ascii") as source:
            return source.read()
    except FileNotFoundError:
        return ""


def _pairs(file: str) -> dict[str, int]:
    fields = (line.split() for line in _text(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in fields if len(pair) == 2 and pair[1].isdigit()}


def _number(file: str) -> int:
    content = _text(file).strip()
    return int(content) if content.isdigit() else 0


def _limit(file: str) -> int:
    content = _text(file).strip()
    limit = int(content) if content.isdigit() else _UNLIMITED
    return _UNLIMITED if limit >= _MAX_LIMIT else limit

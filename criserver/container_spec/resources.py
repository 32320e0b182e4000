"""The resource limits of a container's spec, and those of an update of a running container."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from api.cri import api_pb2
from criserver.container_spec.fields import invalid, text
from criserver.container_spec.inputs import HostFacts
from criserver.host_devices import Device

FIELD = "linux.resources"
UNLIMITED = -1
CPUSET = re.compile(r"[0-9,-]{0,4095}")  # a control file takes a page at most

DENY_ALL = {"allow": False, "access": "rwm"}
ALLOW_ALL = {"allow": True, "access": "rwm"}


def device_rules(devices: Iterable[Device], *, privileged: bool) -> list[dict[str, Any]]:
    """Return the device allowlist; the executor adds the devices that every container has."""
    if privileged:
        return [DENY_ALL, ALLOW_ALL]
    return [DENY_ALL, *(device.rule() for device in devices)]


def limits(wanted: api_pb2.LinuxContainerResources, host: HostFacts) -> dict[str, Any]:
    """Return OCI linux.resources without devices; 0 and "" mean unset and make no entry."""
    made: dict[str, Any] = {}
    for name, values in (
        ("cpu", _cpu(wanted)),
        ("memory", _memory(wanted, host.swap)),
        ("hugepageLimits", _hugepages(wanted) if host.hugetlb else []),
        ("unified", _unified(wanted, host)),
    ):
        if values:
            made[name] = values
    return made


def _cpu(wanted: api_pb2.LinuxContainerResources) -> dict[str, Any]:
    values = {
        "shares": _at_least("cpu_shares", wanted.cpu_shares, 0),
        "quota": _at_least("cpu_quota", wanted.cpu_quota, UNLIMITED),
        "period": _at_least("cpu_period", wanted.cpu_period, 0),
        "cpus": _cpuset("cpuset_cpus", wanted.cpuset_cpus),
        "mems": _cpuset("cpuset_mems", wanted.cpuset_mems),
    }
    return {key: value for key, value in values.items() if value}


def _cpuset(name: str, value: str) -> str:
    if not CPUSET.fullmatch(value):
        raise invalid(f"{FIELD}.{name}", f"{value[:256]!r} is not a list as of man 7 cpuset")
    return value


def _memory(wanted: api_pb2.LinuxContainerResources, swap: bool) -> dict[str, int]:
    """Return the limits; without a limit of its own, swap is off: the sum is as large as memory."""
    limit = _at_least("memory_limit_in_bytes", wanted.memory_limit_in_bytes, UNLIMITED)
    total = _at_least("memory_swap_limit_in_bytes", wanted.memory_swap_limit_in_bytes, UNLIMITED)
    made = {}
    if limit:
        made["limit"] = limit
    if swap and (total or limit):
        made["swap"] = total or limit
    return made


def _at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise invalid(f"{FIELD}.{name}", f"{value} is less than {least}")
    return value


def _hugepages(wanted: api_pb2.LinuxContainerResources) -> list[dict[str, Any]]:
    """Return the limits as asked; a host without the controller has none to enforce.

    The kubelet sends a limit of 0 for every page size, so its absence cannot be an error.
    """
    return [
        {
            "pageSize": text(f"{FIELD}.hugepage_limits[{index}].page_size", each.page_size),
            "limit": each.limit,
        }
        for index, each in enumerate(wanted.hugepage_limits)
    ]


def _unified(wanted: api_pb2.LinuxContainerResources, host: HostFacts) -> dict[str, str]:
    if wanted.unified and host.cgroup_version != 2:
        raise invalid(f"{FIELD}.unified", "needs cgroup v2, and this host has v1")
    for name, value in wanted.unified.items():
        if "/" in name or "\0" in name + value:
            raise invalid(f"{FIELD}.unified", f"{name!r} is not the name of a cgroup file")
    return dict(wanted.unified)

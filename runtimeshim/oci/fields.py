"""What a config.json may hold: the types and ranges of its fields.

The tables follow config.md and config-linux.md of the runtime-spec 1.3, section by section. What
the fields ask of each other is in oci/spec.py.
"""

from __future__ import annotations

import resource

from runtimeshim.oci import mount_options
from runtimeshim.oci.schema import (
    INT64,
    UINT16,
    UINT32,
    UINT64,
    Wrong,
    absolute,
    boolean,
    filled,
    integer,
    keyed,
    listed,
    one_of,
    quote,
    record,
    text,
    texts,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
CLOCKS = ("monotonic", "boottime")
HOOKS = (
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
)
POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
PERSONALITIES = {"LINUX": 0x0000, "LINUX32": 0x0008}
MEMORY_MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS = {
    "MPOL_F_STATIC_NODES": 1 << 15,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_NUMA_BALANCING": 1 << 13,
}
DEVICE_TYPES = ("c", "u", "b", "p")
RLIMITS = tuple(name for name in dir(resource) if name.startswith("RLIMIT_"))
RLIMITS_UNNAMED = {"RLIMIT_LOCKS": 10}  # in the kernel's list, and not in Python's

# The kernel reads uids as 32 bits; -1 means "no change" to setresuid (CVE-2024-40635).
MAX_ID = (1 << 31) - 1
# linux/if.h IFNAMSIZ, with its NUL; include/uapi/linux/utsname.h __NEW_UTS_LEN
MAX_INTERFACE_NAME = 15
MAX_HOST_NAME = 64
# include/linux/time_namespace.h: offsets beyond would overflow ktime
NANOSECONDS = 10**9

_int64 = integer(-INT64 - 1, INT64)
_uint64 = integer(0, UINT64)
_uint32 = integer(0, UINT32)
_uint16 = integer(0, UINT16)
_any_int = integer(-INT64 - 1, UINT64)
_id = integer(0, MAX_ID)
_device_number = integer(-1, UINT32)


def rlimit(name: str) -> int:
    """Return the number of a known "RLIMIT_…" name."""
    return RLIMITS_UNNAMED.get(name) or int(getattr(resource, name))


def _cpu_list(value: Any) -> None:
    """A list of CPUs or memory nodes as the kernel writes them: "0-3,7"."""
    text(value)
    try:
        parse_list(value)
    except ValueError:
        raise Wrong(f"{quote(value)} is no list like '0-3,7'") from None


def parse_list(value: str) -> set[int]:
    """Return the numbers of a list like "0-3,7". Raises ValueError."""
    numbers: set[int] = set()
    for part in value.split(",") if value else ():
        first, separator, last = part.strip().partition("-")
        start, end = int(first), int(last) if separator else int(first)
        if not 0 <= start <= end < 1 << 16:
            raise ValueError(part)
        numbers.update(range(start, end + 1))
    return numbers


def _version(value: Any) -> None:
    text(value)
    numbers = value.partition("-")[0].partition("+")[0].split(".")
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        raise Wrong(f"{quote(value)} is not a version like '1.3.0'")
    if int(numbers[0]) > 1:
        raise Wrong(f"{quote(value)} is a specification that this runtime does not know")


def _host_name(value: Any) -> None:
    text(value)
    if len(value.encode()) > MAX_HOST_NAME:
        raise Wrong(f"{quote(value)} is longer than {MAX_HOST_NAME} bytes")


def _interface(value: Any) -> None:
    filled(value)
    wrong = value in (".", "..") or set("/: \t\n") & set(value)
    if wrong or len(value.encode()) > MAX_INTERFACE_NAME:
        raise Wrong(f"{quote(value)} is no name of a network interface")


_BOX = record({"height": _uint16, "width": _uint16})
_USER = record(
    {
        "uid": _id,
        "gid": _id,
        "umask": integer(0, 0o777),
        "additionalGids": listed(_id),
    }
)
_CAPABILITIES = record(
    dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), texts)
)
_RLIMIT = record(
    {"type": one_of((*RLIMITS, *RLIMITS_UNNAMED)), "soft": _uint64, "hard": _uint64},
    "type",
    "soft",
    "hard",
)
PROCESS = record(
    {
        "terminal": boolean,
        "consoleSize": _BOX,
        "user": _USER,
        "args": texts,
        "env": texts,
        "cwd": absolute,
        "capabilities": _CAPABILITIES,
        "rlimits": listed(_RLIMIT),
        "noNewPrivileges": boolean,
        "apparmorProfile": text,
        "oomScoreAdj": integer(-1000, 1000),
        "scheduler": record(
            {
                "policy": one_of(POLICIES),
                "nice": integer(-20, 19),
                "priority": integer(0, 99),
                "flags": listed(one_of(SCHEDULER_FLAGS)),
                "runtime": _uint64,
                "deadline": _uint64,
                "period": _uint64,
            },
            "policy",
        ),
        "selinuxLabel": text,
        "ioPriority": record({"class": one_of(IO_CLASSES), "priority": integer(0, 7)}, "class"),
        "execCPUAffinity": record({"initial": _cpu_list, "final": _cpu_list}),
    },
    "cwd",
)
_MAPPING = record(
    {"containerID": _uint32, "hostID": _uint32, "size": integer(1, UINT32)},
    "containerID",
    "hostID",
    "size",
)
_MOUNT = record(
    {
        "destination": filled,
        "type": text,
        "source": text,
        "options": texts,
        "uidMappings": listed(_MAPPING),
        "gidMappings": listed(_MAPPING),
    },
    "destination",
)
_HOOK = record(
    {"path": absolute, "args": texts, "env": texts, "timeout": integer(1, 1 << 31)}, "path"
)
_NAMESPACE = record({"type": one_of(NAMESPACES), "path": text}, "type")
_DEVICE = record(
    {
        "path": absolute,
        "type": one_of(DEVICE_TYPES),
        "major": _device_number,
        "minor": _device_number,
        "fileMode": _uint32,
        "uid": _uint32,
        "gid": _uint32,
    },
    "path",
    "type",
)
_SECCOMP = record(
    {
        "defaultAction": text,
        "defaultErrnoRet": _uint16,
        "architectures": texts,
        "flags": texts,
        "listenerPath": text,
        "listenerMetadata": text,
        "syscalls": listed(
            record(
                {
                    "names": texts,
                    "action": text,
                    "errnoRet": _uint16,
                    "args": listed(
                        record(
                            {
                                "index": integer(0, 5),
                                "value": _uint64,
                                "valueTwo": _uint64,
                                "op": text,
                            },
                            "index",
                            "op",
                        )
                    ),
                },
                "names",
                "action",
            )
        ),
    },
    "defaultAction",
)
_BLOCK_DEVICE = {"major": _device_number, "minor": _device_number}
_THROTTLE = listed(record({**_BLOCK_DEVICE, "rate": _uint64}, "major", "minor", "rate"))
RESOURCES = record(
    {
        "devices": listed(
            record(
                {
                    "allow": boolean,
                    "type": one_of(("a", "b", "c")),
                    "major": _int64,
                    "minor": _int64,
                    "access": text,
                },
            )
        ),
        "memory": record(
            {
                **dict.fromkeys(("limit", "reservation", "swap", "kernel", "kernelTCP"), _int64),
                "swappiness": _uint64,
                "disableOOMKiller": boolean,
                "useHierarchy": boolean,
                "checkBeforeUpdate": boolean,
            }
        ),
        "cpu": record(
            {
                **dict.fromkeys(("shares", "burst", "period", "realtimePeriod"), _uint64),
                **dict.fromkeys(("quota", "realtimeRuntime", "idle"), _int64),
                "cpus": text,
                "mems": text,
            }
        ),
        "pids": record({"limit": _int64}),
        "blockIO": record(
            {
                "weight": _uint16,
                "leafWeight": _uint16,
                "weightDevice": listed(
                    record(
                        {**_BLOCK_DEVICE, "weight": _uint16, "leafWeight": _uint16},
                        "major",
                        "minor",
                    )
                ),
                "throttleReadBpsDevice": _THROTTLE,
                "throttleWriteBpsDevice": _THROTTLE,
                "throttleReadIOPSDevice": _THROTTLE,
                "throttleWriteIOPSDevice": _THROTTLE,
            }
        ),
        "hugepageLimits": listed(record({"pageSize": filled, "limit": _uint64}, "pageSize")),
        "network": record(
            {
                "classID": _uint32,
                "priorities": listed(record({"name": _interface, "priority": _uint32}, "name")),
            }
        ),
        "rdma": keyed(record({"hcaHandles": _uint32, "hcaObjects": _uint32})),
        "unified": keyed(text),
    }
)
_LINUX = record(
    {
        "namespaces": listed(_NAMESPACE),
        "uidMappings": listed(_MAPPING),
        "gidMappings": listed(_MAPPING),
        "timeOffsets": keyed(record({"secs": _int64, "nanosecs": integer(0, NANOSECONDS - 1)})),
        "devices": listed(_DEVICE),
        "netDevices": keyed(record({"name": _interface})),
        "cgroupsPath": text,
        "resources": RESOURCES,
        "intelRdt": record(
            {
                "closID": text,
                "schemata": texts,
                "l3CacheSchema": text,
                "memBwSchema": text,
                "enableMonitoring": boolean,
            }
        ),
        "memoryPolicy": record(
            {
                "mode": one_of(MEMORY_MODES),
                "nodes": _cpu_list,
                "flags": listed(one_of(MEMORY_FLAGS)),
            },
            "mode",
        ),
        "sysctl": keyed(text),
        "seccomp": _SECCOMP,
        "rootfsPropagation": one_of(("", *mount_options.PROPAGATION)),
        "maskedPaths": listed(absolute),
        "readonlyPaths": listed(absolute),
        "mountLabel": text,
        "personality": record({"domain": one_of(PERSONALITIES), "flags": texts}, "domain"),
    }
)
SPEC = record(
    {
        "ociVersion": _version,
        "root": record({"path": filled, "readonly": boolean}, "path"),
        "mounts": listed(_MOUNT),
        "process": PROCESS,
        "hostname": _host_name,
        "domainname": _host_name,
        "hooks": record(dict.fromkeys(HOOKS, listed(_HOOK))),
        "annotations": keyed(text),
        "linux": _LINUX,
    },
    "ociVersion",
    "root",
    "process",
)

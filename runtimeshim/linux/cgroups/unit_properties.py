"""OCI linux.resources as properties of systemd's units (systemd.resource-control(5))."""

from __future__ import annotations

import errno
import math

from runtimeshim.linux.cgroups import devices_io, v2_limits
from runtimeshim.linux.cgroups.files import CgroupError
from runtimeshim.linux.cgroups.resources import integer, positive, section, text
from runtimeshim.linux.dbus import Variant
from runtimeshim.linux.systemd import Property

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtimeshim.linux.cgroups.resources import Section

INFINITY = (1 << 64) - 1
SECOND = 1_000_000  # in µs
MAX_NUMBERS = 1 << 13  # of CPUs, in any kernel (arch/x86/Kconfig, NR_CPUS_RANGE_END)
CPUSET = {"cpus": "AllowedCPUs", "mems": "AllowedMemoryNodes"}
QUOTA_STEP = 10_000  # µs per second: systemd's resolution of CPUQuotaPerSecUSec
DEFAULT_PERIOD = 100_000  # µs
# What the kernel takes, in µs (linux/kernel/sched/core.c: max_cfs_runtime, max_cfs_quota_period).
# systemd would move a period into its range, and of a quota above it only its own log would tell.
MAX_QUOTA = (1 << 44) - 1
PERIODS = range(1_000, SECOND + 1)

# What runc has a unit take care of too; anything else of `unified` is written to its file alone.
UNIFIED = {
    "memory.min": "MemoryMin",
    "memory.low": "MemoryLow",
    "memory.high": "MemoryHigh",
    "memory.max": "MemoryMax",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
    "cpu.weight": "CPUWeight",
}


def properties(resources: Section) -> list[Property]:
    """Return OCI linux.resources as properties, as far as systemd has them.

    The kernel's files are written besides: properties are what systemd writes again at a
    daemon-reload, or when it changes something else of the unit.
    """
    found: dict[str, Variant] = {}
    for add in (_memory, _cpu, _cpuset, _pids, _block_io, _unified):
        add(found, resources)
    return list(found.items())


Found = dict[str, Variant]


def _number(value: int) -> Variant:
    if value >= INFINITY:
        raise CgroupError(errno.ERANGE, f"linux.resources: {value} does not fit in 64 bits")
    return Variant("t", INFINITY if value < 0 else value)


def _memory(found: Found, resources: Section) -> None:
    values = section(resources, "memory")
    limit = positive(values, "limit")
    for name, value in (
        ("MemoryMax", limit),
        ("MemoryLow", positive(values, "reservation")),
        ("MemorySwapMax", v2_limits.swap_alone(limit, positive(values, "swap"))),
    ):
        if value is not None:
            found[name] = _number(value)


def _cpu(found: Found, resources: Section) -> None:
    values = section(resources, "cpu")
    shares, idle = positive(values, "shares"), integer(values, "idle")
    if idle:
        found["CPUWeight"] = Variant("t", 0)  # systemd's for cpu.idle
    elif shares is not None:
        found["CPUWeight"] = Variant("t", v2_limits.weight(shares))
    _bandwidth(found, "cpu", positive(values, "quota"), positive(values, "period"))


def _bandwidth(found: Found, field: str, quota: int | None, period: int | None) -> None:
    """Set the CPU time, of which a negative quota is all, in each period; both are µs."""
    if period is not None:
        if period not in PERIODS:
            raise CgroupError(
                errno.EINVAL,
                f"linux.resources.{field}: the period {period} is not from {PERIODS[0]} to "
                f"{PERIODS[-1]} µs",
            )
        found["CPUQuotaPeriodUSec"] = Variant("t", period)
    if quota is not None:
        if quota > MAX_QUOTA:
            raise CgroupError(
                errno.EINVAL,
                f"linux.resources.{field}: the quota {quota} is above {MAX_QUOTA} µs",
            )
        found["CPUQuotaPerSecUSec"] = _number(quota_per_second(quota, period or DEFAULT_PERIOD))


def quota_per_second(quota: int, period: int) -> int:
    """Return µs of CPU time a second, rounded up as systemd would round it; -1 is no limit."""
    if quota < 0:
        return -1
    return math.ceil(quota * SECOND / period / QUOTA_STEP) * QUOTA_STEP


def _cpuset(found: Found, resources: Section) -> None:
    values = section(resources, "cpu")
    for key, name in CPUSET.items():
        if text(values, key):
            found[name] = Variant("ay", bitmap(text(values, key)))


def bitmap(numbers: str) -> bytes:
    """Return a list like "0-2,5" (man 7 cpuset, "List format") as bits, the lowest byte first."""
    mask = 0
    try:
        for part in numbers.split(","):
            first, _, last = part.strip().partition("-")
            low, high = int(first), int(last or first)
            if not 0 <= low <= high < MAX_NUMBERS:
                raise ValueError(f"{part} is out of range")
            mask |= (1 << high + 1) - (1 << low)
    except ValueError as err:
        raise CgroupError(errno.EINVAL, f"linux.resources.cpu: {numbers!r} is no list") from err
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def _pids(found: Found, resources: Section) -> None:
    limit = integer(section(resources, "pids"), "limit")
    if limit is not None:
        found["TasksMax"] = _number(max(limit, 1) if limit >= 0 else limit)


def _block_io(found: Found, resources: Section) -> None:
    """Of block I/O systemd writes again the weight alone: throttles of devices it leaves."""
    value = positive(section(resources, "blockIO"), "weight")
    if value is not None:
        found["IOWeight"] = Variant("t", devices_io.weight(value))


def _unified(found: Found, resources: Section) -> None:
    values = section(resources, "unified")
    for key, name in CPUSET.items():
        if f"cpuset.{key}" in values:  # an empty one takes the limit back
            numbers = text(values, f"cpuset.{key}").strip()
            found[name] = Variant("ay", bitmap(numbers) if numbers else b"")
    quota = text(values, "cpu.max").split()
    if len(quota) == 2:
        limit, period = (_from_file("cpu.max", value, int).value for value in quota)
        _bandwidth(found, "unified: cpu.max", -1 if quota[0] == "max" else limit, period)
    for file, name in UNIFIED.items():
        value = text(values, file)
        if value:
            found[name] = _from_file(file, value, int)


def _from_file(file: str, value: str, convert: Callable[[str], int]) -> Variant:
    try:
        return _number(-1 if value.strip() == "max" else convert(value))
    except ValueError as err:
        raise CgroupError(
            errno.EINVAL, f"linux.resources.unified: {file} is {value!r}, not a number or 'max'"
        ) from err

"""OCI linux.resources on cgroup v2: values converted from the v1 terms that the spec speaks in."""

from __future__ import annotations

import errno
import math
import os

from runtimeshim.linux.cgroups import device_filter, devices, devices_io
from runtimeshim.linux.cgroups.files import CgroupError, read, write
from runtimeshim.linux.cgroups.resources import (
    Limit,
    entries,
    flag,
    integer,
    limit,
    pids_limit,
    positive,
    section,
    text,
    write_hugetlb,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtimeshim.linux.cgroups.resources import Section

MIN_SHARES, MAX_SHARES = 2, 262144
MIN_WEIGHT, MAX_WEIGHT = 1, 10000


def weight(shares: int) -> int:
    """Convert v1 cpu.shares (2…262144, default 1024) to v2 cpu.weight (1…10000, default 100).

    The exponent is the quadratic in log2(shares) through the three points (minimum, default,
    maximum), as in runc 1.4, crun 1.24 and the kubelet of 1.36: a linear map would give the
    default of 1024 only a weight of 39.
    """
    if shares <= MIN_SHARES:
        return MIN_WEIGHT
    if shares >= MAX_SHARES:
        return MAX_WEIGHT
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def cpu(directory: str, resources: Section) -> None:
    """Write weight, idle and bandwidth."""
    values = section(resources, "cpu")
    idle = integer(values, "idle")
    if idle == 0:  # the weight of an idle cgroup cannot be set
        write(f"{directory}/cpu.idle", "0")
    shares = positive(values, "shares")
    if shares is not None:
        write(f"{directory}/cpu.weight", str(weight(shares)))
    if idle:
        write(f"{directory}/cpu.idle", str(idle))
    _cpu_bandwidth(directory, values)


def _cpu_bandwidth(directory: str, values: Section) -> None:
    """Write quota, period and burst; a burst that only the new quota allows is written again."""
    quota, period = positive(values, "quota"), positive(values, "period")
    burst = integer(values, "burst")
    late = False
    if burst is not None:
        try:
            write(f"{directory}/cpu.max.burst", str(burst))
        except CgroupError as err:
            if err.errno != errno.EINVAL or quota is None:
                raise
            late = True
    if quota is not None or period is not None:
        old_quota, old_period = read(f"{directory}/cpu.max").split()
        new_quota = old_quota if quota is None else limit(quota)
        write(f"{directory}/cpu.max", f"{new_quota} {period or old_period}")
    if late:
        write(f"{directory}/cpu.max.burst", str(burst))


def cpuset(directory: str, resources: Section) -> None:
    """Write the cpuset's CPUs and memory nodes."""
    values = section(resources, "cpu")
    for key in ("cpus", "mems"):
        value = text(values, key)
        if value:
            write(f"{directory}/cpuset.{key}", value)


def memory(directory: str, resources: Section) -> None:
    """Write the limits of memory and swap, and the reservation."""
    values = section(resources, "memory")
    limit_, swap = positive(values, "limit"), positive(values, "swap")
    if limit_ is not None and limit_ > 0 and flag(values, "checkBeforeUpdate"):
        _check_usage(directory, limit_)
    _write_swap(directory, swap_alone(limit_, swap))
    if limit_ is not None:
        write(f"{directory}/memory.max", limit(limit_))
    reservation = positive(values, "reservation")
    if reservation is not None:
        write(f"{directory}/memory.low", limit(reservation))


def swap_alone(limit_: int | None, swap: int | None) -> int | None:
    """Return the limit of swap alone from the spec's sum of memory and swap; -1 is unlimited.

    None leaves it as it is. The sum must not be smaller than the memory limit.
    """
    if swap is None:
        return -1 if limit_ == -1 else None  # unlimited memory frees the sum too, as on v1
    if swap < 0 or limit_ == -1:
        return swap
    if limit_ is None:
        raise CgroupError(errno.EINVAL, "linux.resources.memory.swap needs a memory.limit")
    if swap < limit_:
        raise CgroupError(
            errno.EINVAL,
            f"linux.resources.memory.swap {swap} counts memory too: it must be at least "
            f"memory.limit {limit_}",
        )
    return swap - limit_


def _write_swap(directory: str, swap: int | None) -> None:
    if swap is None:
        return
    file = f"{directory}/memory.swap.max"
    if swap <= 0 and not os.path.exists(file):
        return  # the kernel accounts no swap, and there is none to limit
    write(file, limit(swap))


def _check_usage(directory: str, wanted: int) -> None:
    """Refuse a limit below the usage: on v2 it would not fail but call the OOM killer."""
    usage = int(read(f"{directory}/memory.current"))
    if usage > wanted:
        raise CgroupError(
            errno.EBUSY,
            f"memory limit {wanted} is below what is in use ({usage} bytes)",
            directory,
        )


def pids(directory: str, resources: Section) -> None:
    """Write how many tasks there may be."""
    write(f"{directory}/pids.max", pids_limit(resources))


def hugetlb(directory: str, resources: Section) -> None:
    """Write the huge page limits, of usage and of reservation."""
    write_hugetlb(directory, resources, "max")


def device_rules(directory: str, resources: Section) -> None:
    """Make the cgroup an allowlist of device rules."""
    rules = devices.allowlist(entries(resources, "devices"))
    device_filter.attach(directory, device_filter.program(rules))


def unified(directory: str, resources: Section) -> None:
    """Write linux.resources.unified, after and over everything else, a line at a time."""
    values = section(resources, "unified")
    for name in values:
        if "/" in name or "." not in name:
            raise CgroupError(
                errno.EINVAL,
                f"linux.resources.unified: {name!r} is not a file name like 'memory.high'",
            )
        for line in text(values, name).splitlines():
            write(f"{directory}/{name}", line)


LIMITS = (
    Limit("cpu", "cpu", ("shares", "quota", "period", "burst", "idle"), cpu),
    Limit("cpu", "cpuset", ("cpus", "mems"), cpuset),
    Limit("memory", "memory", ("limit", "swap", "reservation"), memory),
    Limit("pids", "pids", ("limit",), pids),
    Limit("hugepageLimits", "hugetlb", (), hugetlb),
    Limit("devices", "devices", (), device_rules),
    Limit("blockIO", "io", devices_io.BLOCK_IO, devices_io.block_io_v2),
    Limit("rdma", "rdma", (), devices_io.rdma),
)

UNSUPPORTED = ("network",)

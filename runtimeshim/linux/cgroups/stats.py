"""What a cgroup with its descendants uses, read from the kernel: one reader for v1 and for v2.

Amounts are bytes, times nanoseconds. What the kernel does not count, or a controller that is not
there, is None; so is a limit that is none.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from runtimeshim.linux.cgroups import units
from runtimeshim.linux.cgroups.base import CgroupManager
from runtimeshim.linux.cgroups.files import CgroupError

# From v2's microseconds, and v1's clock ticks.
NS_PER_US = 1000
NS_PER_TICK = 10**9 // os.sysconf("SC_CLK_TCK")

# v1 writes "no limit" as the largest number of pages; all beyond this is one (cAdvisor has it too).
MAX_LIMIT = 1 << 62

# All of these files are smaller but memory.stat and, on machines with many disks, io.stat.
_READ_SIZE = 64 * 1024

_GONE = (errno.ENOENT, errno.ENODEV)


class Cpu(NamedTuple):
    """CPU time: used in all, of it in user mode and in the kernel, and taken by throttling."""

    total: int
    user: int = 0
    system: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled: int = 0


class Memory(NamedTuple):
    """Memory charged to the cgroup; `events` are page faults since its creation.

    `own_faults` and `own_major_faults` leave the descendants out where the kernel tells them apart.
    """

    usage: int
    working_set: int
    rss: int
    cache: int
    mapped_file: int
    inactive_file: int
    active_file: int
    faults: int
    major_faults: int
    own_faults: int
    own_major_faults: int
    limit: int | None = None
    peak: int | None = None
    failures: int = 0  # how often the limit was hit
    kernel: int | None = None
    swap: int | None = None
    swap_limit: int | None = None


class Stall(NamedTuple):
    """One line of a pressure file: percent of the last 10, 60, 300 seconds, and the sum."""

    avg10: float
    avg60: float
    avg300: float
    total: int


class Pressure(NamedTuple):
    """Pressure stall information (kernel, accounting/psi.rst); `full` is missing in old kernels."""

    some: Stall
    full: Stall | None


class DeviceIO(NamedTuple):
    """A device's transfers by operation ("Read", "Write", …, as v1 names them)."""

    major: int
    minor: int
    bytes: Mapping[str, int]
    operations: Mapping[str, int]


class HugePages(NamedTuple):
    """Huge pages of one size ("2MB")."""

    size: str
    usage: int
    peak: int | None


@dataclass(frozen=True, slots=True)
class CgroupStats:
    """The figures that clients ask for most."""

    cpu: Cpu | None = None
    memory: Memory | None = None
    tasks: int | None = None  # threads count, as in pids.current
    pressure: Mapping[str, Pressure] = field(default_factory=dict)  # "cpu", "memory", "io"


@dataclass(frozen=True, slots=True)
class CgroupDetails:
    """The figures that monitoring asks for beside those."""

    max_tasks: int | None = None
    io: tuple[DeviceIO, ...] = ()
    huge_pages: tuple[HugePages, ...] = ()
    oom_kills: int = 0


class StatsReader:
    """Reads the cgroups of one machine. A cgroup that is gone is a CgroupError with ENOENT."""

    def __init__(self, manager: CgroupManager) -> None:
        self._version = manager.version
        self._roots = {
            controller: directory
            for names, directory in manager.directories("/")
            for controller in names.split(",")
        }
        self._sizes = _huge_page_sizes(self._roots.get("hugetlb", self._roots.get("", "")))

    def stats(self, path: str, *, monitoring: bool = False) -> CgroupStats:
        """Return CPU, memory, tasks and pressure of the cgroup `path`.

        With `monitoring`, what that asks for is there in place of the limits of memory and swap:
        throttling, the parts of CPU time, peak, failures and kernel memory. Each is a file of its
        own, and there are hundreds of cgroups to be read.
        """
        if self._version == 1:
            return self._stats_v1(path, monitoring)
        directory = self._roots[""] + units.directory(path)
        counted = pairs(content_of(f"{directory}/cpu.stat"))
        if not counted and not os.path.exists(directory):
            raise CgroupError(errno.ENOENT, "the cgroup is gone", directory)
        return CgroupStats(
            _cpu_v2(counted) if "usage_usec" in counted else None,
            _memory_v2(directory, monitoring),
            number(content_of(f"{directory}/pids.current")),
            _pressures(directory),
        )

    def details(self, path: str) -> CgroupDetails:
        """Return the limits of tasks, device I/O, huge pages and OOM kills."""
        if self._version == 2:
            directory = self._roots[""] + units.directory(path)
            return CgroupDetails(
                number(content_of(f"{directory}/pids.max")),
                _io_v2(content_of(f"{directory}/io.stat")),
                _huge_pages_v2(directory, self._sizes),
                pairs(content_of(f"{directory}/memory.events")).get("oom_kill", 0),
            )
        return self._details_v1(path)

    def _stats_v1(self, path: str, monitoring: bool) -> CgroupStats:
        cpu = None
        if "cpuacct" in self._roots:
            total = number(self._v1("cpuacct", path, "cpuacct.usage"))
            if total is None:
                raise CgroupError(errno.ENOENT, "the cgroup is gone", self._roots["cpuacct"] + path)
            cpu = self._cpu_v1(path, total) if monitoring else Cpu(total)
        memory = self._roots.get("memory")
        return CgroupStats(
            cpu,
            None if memory is None else _memory_v1(memory + path, monitoring),
            number(self._v1("pids", path, "pids.current")),
        )

    def _cpu_v1(self, path: str, total: int) -> Cpu:
        ticks = pairs(self._v1("cpuacct", path, "cpuacct.stat"))
        throttling = pairs(self._v1("cpu", path, "cpu.stat"))
        return Cpu(
            total,
            ticks.get("user", 0) * NS_PER_TICK,
            ticks.get("system", 0) * NS_PER_TICK,
            throttling.get("nr_periods", 0),
            throttling.get("nr_throttled", 0),
            throttling.get("throttled_time", 0),
        )

    def _details_v1(self, path: str) -> CgroupDetails:
        return CgroupDetails(
            number(self._v1("pids", path, "pids.max")),
            _io_v1(
                self._v1("blkio", path, "blkio.throttle.io_service_bytes_recursive"),
                self._v1("blkio", path, "blkio.throttle.io_serviced_recursive"),
            ),
            _huge_pages_v1(self._roots.get("hugetlb", "") + path, self._sizes),
            pairs(self._v1("memory", path, "memory.oom_control")).get("oom_kill", 0),
        )

    def _v1(self, controller: str, path: str, name: str) -> bytes:
        """Return a file's content, empty without the controller."""
        root = self._roots.get(controller)
        return b"" if root is None else content_of(f"{root}{path}/{name}")


# -- files --------------------------------------------------------------------------------------


def content_of(path: str) -> bytes:
    """Return a file's content; empty when it, or its cgroup, is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as err:
        if err.errno in _GONE:
            return b""
        raise _failed(err, path) from err
    try:
        content = os.read(fd, _READ_SIZE)
        while len(content) % _READ_SIZE == 0 and (more := os.read(fd, _READ_SIZE)):
            content += more
    except OSError as err:
        if err.errno in (*_GONE, errno.EOPNOTSUPP):  # gone; a file that this cgroup does not fill
            return b""
        raise _failed(err, path) from err
    finally:
        os.close(fd)
    return content


def _failed(err: OSError, path: str) -> CgroupError:
    number = err.errno or errno.EIO
    return CgroupError(number, f"read: {os.strerror(number)}", path)


def number(content: bytes) -> int | None:
    """Return the number in a file; None for "max" and where there is no file."""
    return int(content) if content[:1].isdigit() else None


def limit_of(content: bytes) -> int | None:
    """Return the limit in a file; None when it is none."""
    value = number(content)
    return None if value is None or value > MAX_LIMIT else value


def pairs(content: bytes) -> dict[str, int]:
    """Parse lines of "key value"."""
    words = content.decode("ascii").split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


# -- CPU ----------------------------------------------------------------------------------------


def _cpu_v2(counted: Mapping[str, int]) -> Cpu:
    return Cpu(
        counted["usage_usec"] * NS_PER_US,
        counted.get("user_usec", 0) * NS_PER_US,
        counted.get("system_usec", 0) * NS_PER_US,
        counted.get("nr_periods", 0),
        counted.get("nr_throttled", 0),
        counted.get("throttled_usec", 0) * NS_PER_US,
    )


# -- memory -------------------------------------------------------------------------------------


def _memory_v1(directory: str, monitoring: bool) -> Memory | None:
    usage = number(content_of(f"{directory}/memory.usage_in_bytes"))
    raw = pairs(content_of(f"{directory}/memory.stat"))
    if usage is None or not raw:
        return None
    inactive = raw.get("total_inactive_file", 0)
    memory = Memory(
        usage=usage,
        working_set=max(usage - inactive, 0),
        rss=raw.get("total_rss", 0),
        cache=raw.get("total_cache", 0),
        mapped_file=raw.get("total_mapped_file", 0),
        inactive_file=inactive,
        active_file=raw.get("total_active_file", 0),
        faults=raw.get("total_pgfault", 0),
        major_faults=raw.get("total_pgmajfault", 0),
        own_faults=raw.get("pgfault", 0),
        own_major_faults=raw.get("pgmajfault", 0),
        swap=raw.get("total_swap"),  # there when the kernel accounts swap
    )
    if monitoring:
        return memory._replace(
            peak=number(content_of(f"{directory}/memory.max_usage_in_bytes")),
            failures=number(content_of(f"{directory}/memory.failcnt")) or 0,
            kernel=number(content_of(f"{directory}/memory.kmem.usage_in_bytes")),
        )
    limit = limit_of(content_of(f"{directory}/memory.limit_in_bytes"))
    # v1 limits memory and swap together.
    both = limit_of(content_of(f"{directory}/memory.memsw.limit_in_bytes"))
    return memory._replace(
        limit=limit, swap_limit=None if both is None else max(both - (limit or 0), 0)
    )


def _memory_v2(directory: str, monitoring: bool) -> Memory | None:
    usage = number(content_of(f"{directory}/memory.current"))
    raw = pairs(content_of(f"{directory}/memory.stat"))
    if usage is None or not raw:
        return None
    inactive = raw.get("inactive_file", 0)
    memory = Memory(
        usage=usage,
        working_set=max(usage - inactive, 0),
        # What the processes own; containerd, CRI-O and cAdvisor call it so, too.
        rss=raw.get("anon", 0),
        cache=raw.get("file", 0),
        mapped_file=raw.get("file_mapped", 0),
        inactive_file=inactive,
        active_file=raw.get("active_file", 0),
        faults=raw.get("pgfault", 0),
        major_faults=raw.get("pgmajfault", 0),
        own_faults=raw.get("pgfault", 0),
        own_major_faults=raw.get("pgmajfault", 0),
        swap=number(content_of(f"{directory}/memory.swap.current")),
    )
    if monitoring:
        return memory._replace(
            peak=number(content_of(f"{directory}/memory.peak")),
            failures=pairs(content_of(f"{directory}/memory.events")).get("max", 0),
            # "kernel" is the sum since Linux 5.18; before, stacks are the greater part.
            kernel=raw.get("kernel", raw.get("kernel_stack")),
        )
    return memory._replace(
        limit=limit_of(content_of(f"{directory}/memory.max")),
        swap_limit=limit_of(content_of(f"{directory}/memory.swap.max")),
    )


# -- pressure -----------------------------------------------------------------------------------


def _pressures(directory: str) -> dict[str, Pressure]:
    made = {}
    for resource in ("cpu", "memory", "io"):
        pressure = parse_pressure(content_of(f"{directory}/{resource}.pressure"))
        if pressure is not None:
            made[resource] = pressure
    return made


def parse_pressure(content: bytes) -> Pressure | None:
    """Parse a pressure file; None when it is empty: the kernel accounts no pressure."""
    stalls = {}
    for line in content.decode("ascii").splitlines():
        kind, *fields = line.split()
        values = dict(each.split("=", 1) for each in fields)
        stalls[kind] = Stall(
            float(values["avg10"]),
            float(values["avg60"]),
            float(values["avg300"]),
            int(values["total"]) * NS_PER_US,
        )
    return Pressure(stalls["some"], stalls.get("full")) if "some" in stalls else None


# -- devices and huge pages ---------------------------------------------------------------------


def _io_v1(transferred: bytes, operations: bytes) -> tuple[DeviceIO, ...]:
    amounts, counts = _by_device(transferred), _by_device(operations)
    return tuple(
        DeviceIO(*device, amounts.get(device, {}), counts.get(device, {}))
        for device in dict.fromkeys([*amounts, *counts])
    )


def _by_device(content: bytes) -> dict[tuple[int, int], dict[str, int]]:
    """Parse lines of "8:0 Read 4096"; the last one is a sum without a device."""
    found: dict[tuple[int, int], dict[str, int]] = {}
    for line in content.decode("ascii").splitlines():
        fields = line.split()
        if len(fields) == 3:
            major, minor = fields[0].split(":")
            found.setdefault((int(major), int(minor)), {})[fields[1]] = int(fields[2])
    return found


def _io_v2(content: bytes) -> tuple[DeviceIO, ...]:
    """Parse lines of "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0"."""
    found = []
    for line in content.decode("ascii").splitlines():
        device, *fields = line.split()
        if not fields:  # a device that the kernel lists without figures
            continue
        major, minor = device.split(":")
        values = dict(each.split("=", 1) for each in fields)
        found.append(
            DeviceIO(
                int(major),
                int(minor),
                {"Read": int(values.get("rbytes", 0)), "Write": int(values.get("wbytes", 0))},
                {"Read": int(values.get("rios", 0)), "Write": int(values.get("wios", 0))},
            )
        )
    return tuple(found)


def _huge_page_sizes(directory: str) -> tuple[str, ...]:
    """Return the sizes that the kernel accounts, "2MB" and so on.

    The root of v2 has no such files, but every machine has them in /sys.
    """
    try:
        names = os.listdir("/sys/kernel/mm/hugepages") if directory else []
    except FileNotFoundError:
        return ()
    sizes = sorted(int(name.removeprefix("hugepages-").removesuffix("kB")) for name in names)
    return tuple(_size_name(size) for size in sizes)


def _size_name(kilobytes: int) -> str:
    """Name a size as the cgroup files do: "64KB", "2MB", "1GB"."""
    if kilobytes >= 1 << 20:
        return f"{kilobytes >> 20}GB"
    return f"{kilobytes >> 10}MB" if kilobytes >= 1 << 10 else f"{kilobytes}KB"


def _huge_pages_v1(directory: str, sizes: tuple[str, ...]) -> tuple[HugePages, ...]:
    found = []
    for size in sizes:
        usage = number(content_of(f"{directory}/hugetlb.{size}.usage_in_bytes"))
        peak = number(content_of(f"{directory}/hugetlb.{size}.max_usage_in_bytes"))
        if usage is not None and peak is not None:
            found.append(HugePages(size, usage, peak))
    return tuple(found)


def _huge_pages_v2(directory: str, sizes: tuple[str, ...]) -> tuple[HugePages, ...]:
    """v2 keeps no peak."""
    usages = ((size, number(content_of(f"{directory}/hugetlb.{size}.current"))) for size in sizes)
    return tuple(HugePages(size, usage, None) for size, usage in usages if usage is not None)

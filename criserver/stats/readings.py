"""One reading of a container or a pod: what the kernel says now. Blocking; runs on a thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from criserver.stats.metric_messages import MetricMessages
from criserver.stats.rates import CpuRates
from criserver.store.containers import Container, State
from criserver.store.sandboxes import Sandbox
from imageservice.snapshots import Usage
from runtimeshim.linux.cgroups import CgroupError, CgroupManager
from runtimeshim.linux.cgroups.stats import CgroupDetails, CgroupStats, StatsReader
from runtimeshim.linux.network_counters import InterfaceCounters, read_counters

log = logging.getLogger(__name__)

NO_STATS = CgroupStats()
NO_DETAILS = CgroupDetails()


@dataclass(frozen=True)
class Reading:
    """The figures of one cgroup, with when they were read (ns since the epoch)."""

    timestamp: int
    stats: CgroupStats
    cpu_rate: int | None = None  # ns of CPU time per second
    details: CgroupDetails = NO_DETAILS


@dataclass(frozen=True)
class ContainerTarget:
    """A container to be measured."""

    container: Container
    cgroup: str
    writable: Usage | None  # not measured yet: None


@dataclass(frozen=True)
class SandboxTarget:
    """A sandbox to be measured, with the containers that are in the answer."""

    sandbox: Sandbox
    containers: list[ContainerTarget] = field(default_factory=list)

    @property
    def netns(self) -> str:
        """The pinned network namespace; "" on the host's network."""
        namespaces: dict[str, str] = (self.sandbox.runtime_values or {}).get("namespaces", {})
        return namespaces.get("network", "")

    @property
    def cgroup(self) -> str:
        """The pod's cgroup."""
        return str((self.sandbox.runtime_values or {}).get("cgroup_parent", ""))


class Readings:
    """Reads targets; used by one thread."""

    def __init__(self, manager: CgroupManager) -> None:
        self._manager = manager
        self._reader = StatsReader(manager)
        self.rates = CpuRates()
        self.messages = MetricMessages()

    def keep(self, keys: Collection[str]) -> None:
        """Forget what is kept of all other containers and pods."""
        self.rates.keep(keys)
        self.messages.keep(keys)

    def container(self, target: ContainerTarget, *, details: bool = False) -> Reading:
        """Read a container; one that has ended uses nothing."""
        if target.container.state is State.EXITED:
            return Reading(time.time_ns(), NO_STATS)
        return self._cgroup(target.container.id, target.cgroup, details)

    def sandbox(self, target: SandboxTarget, *, details: bool = False) -> Reading:
        """Read a pod's cgroup."""
        return self._cgroup(target.sandbox.id, target.cgroup, details)

    def network(self, target: SandboxTarget) -> list[InterfaceCounters]:
        """Read the counters of a pod's interfaces; none on the host's network."""
        if not target.netns:
            return []
        try:
            return read_counters(target.netns)
        except OSError as err:  # stopped meanwhile, most likely
            log.info("pod sandbox %s: its network is not measured: %s", target.sandbox.id, err)
            return []

    def pids(self, target: ContainerTarget) -> list[int]:
        """Return the processes of a container; none once it has ended."""
        return self._manager.pids(target.cgroup)

    def _cgroup(self, key: str, path: str, details: bool) -> Reading:
        timestamp = time.time_ns()
        try:
            stats = self._reader.stats(path, monitoring=details)
            more = self._reader.details(path) if details else NO_DETAILS
        except CgroupError as err:  # it has ended meanwhile, most likely
            log.info("%s is not measured: %s", key, err)
            return Reading(timestamp, NO_STATS)
        rate = self.rates.update(key, timestamp, stats.cpu.total) if stats.cpu else None
        return Reading(timestamp, stats, rate, more)

"""What the daemon has at the moment of a scrape: read from the stores, counted nowhere else."""

from __future__ import annotations

import asyncio
import platform
from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)

from api.cri import api_pb2 as cri
from criserver.container_spec import container_cgroup
from criserver.metrics.registries import Registries
from criserver.runtime import Runtime
from criserver.status import VERSION
from criserver.store.containers import State
from runtimeshim.linux import processes
from runtimeshim.linux.cgroups import CgroupError, CgroupManager


class StateCollector:
    """A collector of prometheus_client's, which asks it during the exposition: see `look`."""

    def __init__(self, runtime: Runtime, registries: Registries) -> None:
        self._runtime = runtime
        self._registries = registries
        self._families: list[Metric] = []

    async def look(self) -> None:
        """Take what there is; on the event loop, what reads the kernel's files on a thread."""
        cgroups = list(_live_cgroups(self._runtime))
        stuck = await asyncio.to_thread(_uninterruptible, self._runtime.cgroups, cgroups)
        self._families = [*self._families_now(), _stuck(stuck)]

    def collect(self) -> Iterator[Metric]:
        """Give what the last look has found."""
        yield from self._families

    def _families_now(self) -> Iterator[Metric]:
        runtime = self._runtime
        yield _build()
        yield _by_state("criserver_sandboxes", "Pod sandboxes.", _sandboxes(runtime))
        yield _by_state("criserver_containers", "Containers.", _containers(runtime))
        yield GaugeMetricFamily(
            "criserver_shims", "Shims that the daemon is connected to.", len(runtime.shims)
        )
        yield CounterMetricFamily(
            "criserver_shim_successions_total",
            "Shims that were killed, and whose container another one has taken up.",
            runtime.shims.successions,
        )
        yield CounterMetricFamily(
            "criserver_oom_events_total",
            "How often the kernel's OOM killer was seen in a container.",
            runtime.shims.oom_events,
        )
        yield from _spawner(runtime)
        yield from _events(runtime)
        yield from _leaks(runtime)
        yield self._received()

    def _received(self) -> Metric:
        family = CounterMetricFamily(
            "criserver_pull_bytes_total",
            "Bytes of images that have come from registries.",
            labels=("registry",),
        )
        totals: Counter[str] = Counter()
        for domain, size in self._runtime.images.received().items():
            totals[self._registries.label(domain)] += size
        for name, size in totals.items():
            family.add_metric((name,), size)
        return family


def _build() -> Metric:
    family = InfoMetricFamily("criserver_build", "The daemon: its version and its interpreter's.")
    family.add_metric((), {"version": VERSION, "python": platform.python_version()})
    return family


def _by_state(name: str, text: str, counts: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("state",))
    for state, count in counts.items():
        family.add_metric((state,), count)
    return family


def _sandboxes(runtime: Runtime) -> dict[str, int]:
    made = runtime.sandboxes.mirror.made()
    ready = sum(sandbox.state == cri.SANDBOX_READY for sandbox in made)
    return {"ready": ready, "notready": len(made) - ready}


def _containers(runtime: Runtime) -> dict[str, int]:
    found = Counter(container.state for container in runtime.containers.mirror.made())
    return {state.name.lower(): found[state] for state in State}


def _spawner(runtime: Runtime) -> Iterator[Metric]:
    spawner = runtime.spawner
    yield GaugeMetricFamily(
        "criserver_spawner_up", "1 while the daemon has its spawner, else 0.", spawner.connected
    )
    yield CounterMetricFamily(
        "criserver_spawner_starts_total", "Spawners that the daemon has started.", spawner.starts
    )


def _events(runtime: Runtime) -> Iterator[Metric]:
    events = runtime.events
    yield GaugeMetricFamily(
        "criserver_event_listeners", "Clients that listen to GetContainerEvents.", events.listeners
    )
    yield GaugeMetricFamily(
        "criserver_event_queue_length",
        "Events that wait for the slowest listener, or are kept for the next one.",
        events.backlog,
    )
    yield CounterMetricFamily(
        "criserver_events_dropped_total",
        "Events that a listener has lost, or that were given up before one came.",
        events.dropped,
    )


def _leaks(runtime: Runtime) -> Iterator[Metric]:
    leaks = runtime.leaks
    found = GaugeMetricFamily(
        "criserver_leaks",
        "What belongs to no pod and was left where it is, by the auditor's last sweep.",
        labels=("kind",),
    )
    for kind, count in leaks.found.items():
        found.add_metric((kind,), count)
    removed = CounterMetricFamily(
        "criserver_leaks_removed_total",
        "What belonged to nobody and the auditor has removed.",
        labels=("kind",),
    )
    for kind, count in leaks.removed.items():
        removed.add_metric((kind,), count)
    yield from (found, removed)
    yield GaugeMetricFamily(
        "criserver_audit_timestamp_seconds",
        "When the auditor's last sweep ended, in seconds since the epoch; 0 before the first.",
        leaks.swept_at,
    )


def _stuck(count: int) -> Metric:
    return GaugeMetricFamily(
        "criserver_processes_uninterruptible",
        "Containers' processes that sleep in the kernel where no signal reaches them (state D).",
        count,
    )


def _live_cgroups(runtime: Runtime) -> Iterator[str]:
    """Give the cgroups of the containers that have not ended."""
    for container in runtime.containers.mirror.made():
        if container.state is not State.EXITED:
            sandbox = runtime.sandboxes.mirror.exact(container.sandbox_id)
            parent = (sandbox.runtime_values or {}).get("cgroup_parent", "")
            yield container_cgroup(parent, container.id)


def _uninterruptible(manager: CgroupManager, cgroups: list[str]) -> int:
    return sum(processes.uninterruptible(_pids(manager, cgroup)) for cgroup in cgroups)


def _pids(manager: CgroupManager, cgroup: str) -> list[int]:
    try:
        return manager.pids(cgroup)
    except CgroupError:  # it has just ended
        return []

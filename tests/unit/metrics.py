"""The metrics of a daemon that exists in memory only, with every series that there can be."""

from __future__ import annotations

import sqlite3
from types import SimpleNamespace
from typing import Any

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from api import stages
from api.cri import api_pb2 as cri
from api.errors import ImagePullError
from criserver.events import Events, publish_changes
from criserver.leaks import Leaks
from criserver.metrics.registry import Metrics
from criserver.rpcs import Call
from criserver.shims import Shims
from criserver.store.containers import ContainerStore
from criserver.store.sandboxes import SandboxStore

POD = cri.PodSandboxConfig(
    metadata=cri.PodSandboxMetadata(name="web", namespace="prod", uid="u1"),
    linux=cri.LinuxPodSandboxConfig(),
)
CONFIG = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="app"))
USER = '{"uid": 0, "gid": 0, "groups": [0]}'


class NoCgroups:
    """A machine without a process in any container's cgroup."""

    def pids(self, _path: str) -> list[int]:
        return []


class Observed:
    """A daemon's parts, watched by `metrics` until `close`."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level="IMMEDIATE")
        self.sandboxes = SandboxStore(self._connection)
        self.containers = ContainerStore(self._connection)
        self.events = Events()
        publish_changes(self.events, self.sandboxes, self.containers)
        self.runtime: Any = SimpleNamespace(
            sandboxes=self.sandboxes,
            containers=self.containers,
            shims=Shims(self.containers),
            spawner=SimpleNamespace(connected=True, starts=1),
            events=self.events,
            leaks=Leaks(),
            images=SimpleNamespace(received=lambda: {"registry.test": 7}),
            cgroups=NoCgroups(),
        )
        self.metrics = Metrics()
        self._stop = self.metrics.watch(self.runtime)

    def close(self) -> None:
        self._stop()
        self._connection.close()

    async def families(self) -> dict[str, Metric]:
        """What is exposed now, by name as it is written, which for counters ends in _total."""
        text, _ = await self.metrics.exposition("")
        found = {}
        for family in text_string_to_metric_families(text.decode()):
            suffix = "_total" if family.type == "counter" else ""
            found[family.name + suffix] = family
        return found

    async def value(self, name: str, **labels: str) -> float | None:
        """The value of one series, None if there is none."""
        text, _ = await self.metrics.exposition("")
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return None

    def pod(self) -> None:
        """A pod with one container, which runs."""
        self.sandboxes.reserve("s", POD, "")
        self.sandboxes.created("s", {"cgroup_parent": "/s"}, 1)
        self.containers.reserve("c", "app", "s", CONFIG)
        self.containers.created("c", image_id="i", user=USER, created_at=2, pid=9)
        self.containers.started("c", 3)

    def everything(self) -> None:
        """Have each metric have a series."""
        self.pod()
        self.containers.exited("c", 1, 4, oom=False)
        rpc(self.metrics, "/runtime.v1.RuntimeService/Version")
        fail_pull("registry.test/x:1", ImagePullError("RegistryUnavailable: no answer"))
        self.metrics.cni.ran("bridge", "ADD", 0.1, False)
        self.runtime.leaks.report({"mount": 1}, {"link": 2})


def rpc(metrics: Metrics, path: str, code: str = "OK") -> None:
    """One RPC from its begin to its end."""
    call = Call(path, cri.VersionRequest(), None)
    metrics.rpcs.began(call)
    call.end(code)
    metrics.rpcs.ended(call)


def fail_pull(image: str, error: Exception) -> None:
    """A pull that fails in a stage."""
    try:
        with stages.operation("PullImage", image), stages.stage("resolve"):
            raise error
    except type(error):
        pass

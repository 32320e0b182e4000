"""The part of the daemon that measures: targets from the stores, readings on a thread."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from criserver.container_spec import container_cgroup
from criserver.stats.readings import ContainerTarget, Readings, SandboxTarget
from criserver.stats.writable_layers import WritableLayers
from criserver.store.containers import Container, ContainerStore
from criserver.store.sandboxes import Sandbox, SandboxStore
from imageservice.snapshots import Usage
from runtimeshim.linux.cgroups import CgroupManager

T = TypeVar("T")


class Collector:
    """Measures containers and pods; its methods are called on the event loop.

    One thread does it, so that neither a slow file nor a thousand of them hold up other RPCs; it
    is also the one that enters the pods' network namespaces, where nothing else may run.
    """

    def __init__(
        self,
        manager: CgroupManager,
        sandboxes: SandboxStore,
        containers: ContainerStore,
        measure: Callable[[str], Awaitable[Usage]],
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._writable = WritableLayers(measure)
        self._readings = Readings(manager)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stats")

    async def run(self, work: Callable[[Readings], T]) -> T:
        """Run `work` on the thread, one at a time; what is kept of the removed goes."""
        containers = {container.id for container in self._containers.mirror.made()}
        alive = containers | {sandbox.id for sandbox in self._sandboxes.mirror.made()}
        self._writable.keep(containers)

        def on_the_thread() -> T:
            self._readings.keep(alive)
            return work(self._readings)

        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, context.run, on_the_thread)

    async def container_targets(self, containers: Iterable[Container]) -> list[ContainerTarget]:
        """Return what has to be known of containers to measure them."""
        found = list(containers)
        usages = await self._writable.get([container.id for container in found])
        parents: dict[str, str] = {}
        for container in found:
            if container.sandbox_id not in parents:
                parents[container.sandbox_id] = self._parent(container.sandbox_id)
        return [
            ContainerTarget(
                container,
                container_cgroup(parents[container.sandbox_id], container.id),
                usages.get(container.id),
            )
            for container in found
        ]

    async def sandbox_targets(self, sandboxes: Iterable[Sandbox]) -> list[SandboxTarget]:
        """Return what has to be known of pods, and of their containers, to measure them."""
        targets = {sandbox.id: SandboxTarget(sandbox) for sandbox in sandboxes}
        wanted = (c for c in self._containers.mirror.made() if c.sandbox_id in targets)
        for target in await self.container_targets(wanted):
            targets[target.container.sandbox_id].containers.append(target)
        return list(targets.values())

    async def close(self) -> None:
        """End the thread and what runs in the background."""
        await self._writable.close()
        self._thread.shutdown(wait=True)

    def _parent(self, sandbox_id: str) -> str:
        made = self._sandboxes.mirror.exact(sandbox_id).runtime_values or {}
        return str(made.get("cgroup_parent", ""))

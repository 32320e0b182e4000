"""The shims of the containers that live, and the task that waits for each container's end."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from criserver.bundle import read_spec
from criserver.store.containers import ContainerStore, State
from runtimeshim import exit_record
from runtimeshim.client import ExitRecord, Shim, ShimError, connect_shim
from runtimeshim.linux import cgroups

log = logging.getLogger(__name__)

LOST = "the container's shim died and left no exit record"

# A fork takes milliseconds; a spawner that has died as well is started anew in the meantime.
ADOPTION_SECONDS = 10.0
ADOPTION_INTERVAL_SECONDS = 0.05

# How often a database that cannot be written (a full disk) is tried again.
RECORD_INTERVAL_SECONDS = 1.0


class Shims:
    """Connections to shims by container id. The exit record reaches the store from here alone."""

    def __init__(self, containers: ContainerStore) -> None:
        self._containers = containers
        self._shims: dict[str, Shim] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self.successions = 0
        """How often another shim has taken the place of one that was killed."""
        self.oom_events = 0
        """How often the kernel's OOM killer was seen in a container."""
        self._out_of_memory: set[str] = set()  # containers that live and have seen it

    def __len__(self) -> int:
        return len(self._shims)

    def adopt(self, container_id: str, shim: Shim) -> None:
        """Take over a shim: from here on its container's end is recorded."""
        self._use(container_id, shim)
        watch = asyncio.create_task(self._watch(container_id, shim), name=f"exit {container_id}")
        self._watches[container_id] = watch
        watch.add_done_callback(lambda task: self._watched(container_id, task))

    def _use(self, container_id: str, shim: Shim) -> None:
        self._shims[container_id] = shim
        shim.on_oom = lambda kills: self._oom(container_id, kills)

    def _oom(self, container_id: str, kills: int) -> None:
        self.oom_events += 1
        self._out_of_memory.add(container_id)
        log.warning(
            "container %s: out of memory, %d of its processes killed so far", container_id, kills
        )

    def get(self, container_id: str) -> Shim | None:
        """Return the container's shim; None once the container has ended."""
        return self._shims.get(container_id)

    async def ended(self, container_id: str) -> None:
        """Return when the container's end is in the store and its shim is gone."""
        watch = self._watches.get(container_id)
        if watch is not None:
            await asyncio.wait({watch})

    async def signal(self, container_id: str, number: int) -> None:
        """Signal the container's init, by a successor of the shim if that has been killed.

        One that has ended needs none. Raises ShimError for what the kernel refuses.
        """
        while (shim := self._shims.get(container_id)) is not None:
            try:
                await shim.kill(number)
            except ShimError as err:
                if err.kind != "gone":
                    raise
            else:
                return
            while self._shims.get(container_id) is shim:  # noqa: ASYNC110 - adopted, or given up
                await asyncio.sleep(ADOPTION_INTERVAL_SECONDS)

    async def close(self) -> None:
        """Disconnect from all shims; they and their containers go on."""
        for watch in self._watches.values():
            watch.cancel()
        if self._watches:
            await asyncio.wait(list(self._watches.values()))
        for shim in self._shims.values():
            shim.close()
        self._shims.clear()

    async def _watch(self, container_id: str, shim: Shim) -> None:
        record = await self._end(container_id, shim)
        if record is None:
            log.warning("container %s is lost", container_id)
            await asyncio.to_thread(kill_remains, shim.bundle)
            await self._recorded(container_id, lambda: self.lost(container_id))
            return
        if record.oom_killed and container_id not in self._out_of_memory:
            self.oom_events += 1  # the end of its only process was quicker than the notification
        await self._recorded(container_id, lambda: self._containers.exited(container_id, *record))
        container = self._containers.mirror.exact(container_id)
        log.info("container %s exited: code %d", container_id, container.exit_code)
        await self._shims[container_id].delete()

    async def _end(self, container_id: str, shim: Shim) -> ExitRecord | None:
        """Wait for the container's end, by the shim or by those that adopt it; None: it is lost."""
        while True:
            try:
                return await shim.wait()
            except ShimError as err:
                log.warning("container %s: %s", container_id, err)
            found = await _successor(shim.bundle)
            if not isinstance(found, Shim):
                return found
            log.warning("container %s: adopted by another shim", container_id)
            shim = found
            self.successions += 1
            self._use(container_id, shim)

    async def _recorded(self, container_id: str, record: Callable[[], object]) -> None:
        """Record an end, and try again until the database can be written: nobody tells it twice.

        Raises what is no fault of the database.
        """
        while True:
            try:
                record()
            except sqlite3.OperationalError as err:
                log.warning("the end of container %s cannot be recorded now: %s", container_id, err)
                await asyncio.sleep(RECORD_INTERVAL_SECONDS)
            else:
                return

    def lost(self, container_id: str) -> None:
        """Record that nobody knows how the container ended."""
        if self._containers.mirror.exact(container_id).state is not State.EXITED:
            self._containers.lost(container_id, LOST, time.time_ns())

    def _watched(self, container_id: str, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        self._watches.pop(container_id, None)
        self._out_of_memory.discard(container_id)
        self._shims.pop(container_id, None)
        if (error := task.exception()) is not None:
            log.error("the end of container %s could not be recorded", container_id, exc_info=error)


async def _successor(bundle: Path) -> Shim | ExitRecord | None:
    """Return the shim that the spawner forks for a container whose own was killed.

    Or the exit record of one that has come and gone; None when ADOPTION_SECONDS bring neither.
    """
    deadline = asyncio.get_running_loop().time() + ADOPTION_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        try:
            return await connect_shim(bundle)
        except ShimError:
            record = await asyncio.to_thread(exit_record.read, bundle)
            if record is not None:
                return record
        await asyncio.sleep(ADOPTION_INTERVAL_SECONDS)
    return None


def kill_remains(bundle: Path) -> None:
    """Kill what is left of a container whose shim is lost, so that its state is the truth."""
    spec = read_spec(bundle)
    path = (spec or {}).get("linux", {}).get("cgroupsPath", "")
    if not path:
        return
    manager = cgroups.manager()
    try:
        manager.kill(path)
        manager.delete(path)
    except OSError as err:
        log.warning("the rest of %s in cgroup %s could not be killed: %s", bundle.name, path, err)

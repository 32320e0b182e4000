"""What containers have written, measured in the background: a walk takes as long as it takes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection

from api.errors import CRIError
from imageservice.snapshots import Usage

log = logging.getLogger(__name__)

# How old a figure may be before the next request has it measured anew: the kubelet asks every 10 s.
MAX_AGE_NS = 10 * 10**9

# What a request waits for figures of containers that have none at all.
WAIT_SECONDS = 0.1


class WritableLayers:
    """The last figure of each container; used on the event loop's thread only."""

    def __init__(self, measure: Callable[[str], Awaitable[Usage]]) -> None:
        self._measure = measure
        self._usages: dict[str, Usage] = {}
        self._wanted: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None

    async def get(self, container_ids: Collection[str]) -> dict[str, Usage]:
        """Return what is known, and have what is old or unknown measured."""
        oldest = time.time_ns() - MAX_AGE_NS
        known = self._usages
        self._wanted.update(
            (each, None)
            for each in container_ids
            if each not in known or known[each].timestamp < oldest
        )
        if self._wanted and self._task is None:
            self._task = asyncio.create_task(self._refresh(), name="writable layers")
            self._task.add_done_callback(self._refreshed)
        if self._task is not None and any(each not in known for each in container_ids):
            await asyncio.wait({self._task}, timeout=WAIT_SECONDS)
        return {each: known[each] for each in container_ids if each in known}

    def keep(self, container_ids: Collection[str]) -> None:
        """Forget all others."""
        for container_id in self._usages.keys() - container_ids:
            del self._usages[container_id]

    async def close(self) -> None:
        """Measure nothing any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _refresh(self) -> None:
        """Measure what is wanted, one at a time: they share a disk."""
        while self._wanted:
            container_id = next(iter(self._wanted))
            try:
                self._usages[container_id] = await self._measure(container_id)
            except (CRIError, OSError) as err:
                log.info("container %s: its writable layer is not measured: %s", container_id, err)
            finally:
                self._wanted.pop(container_id, None)

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._wanted.clear()
            log.error("writable layers cannot be measured", exc_info=error)

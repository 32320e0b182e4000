"""How long each container that is being stopped has left before SIGKILL.

A later, shorter timeout wins (CRI: a StopContainer with timeout 0 during a grace period kills now).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Stops:
    """The ends of the grace periods, in loop time, by container id."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}
        self._running: dict[str, asyncio.Timeout] = {}

    def request(self, container_id: str, timeout: float) -> None:
        """Ask that the grace period ends within `timeout` seconds; the shortest request wins."""
        end = asyncio.get_running_loop().time() + timeout
        self._ends[container_id] = min(end, self._ends.get(container_id, end))
        running = self._running.get(container_id)
        if running is not None:
            running.reschedule(self._ends[container_id])

    def over(self, container_id: str) -> bool:
        """Tell whether there is no time left."""
        return self._ends[container_id] <= asyncio.get_running_loop().time()

    def done(self, container_id: str) -> None:
        """Forget the requests: the stop has come to its end."""
        self._ends.pop(container_id, None)

    @asynccontextmanager
    async def grace(self, container_id: str) -> AsyncIterator[None]:
        """Bound the body by the grace period, however it is shortened; its end is no error."""
        try:
            async with asyncio.timeout_at(self._ends[container_id]) as running:
                self._running[container_id] = running
                yield
        except TimeoutError:
            return
        finally:
            self._running.pop(container_id, None)

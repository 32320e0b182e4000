"""The DEL of one attachment, tried until it succeeds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from api.stages import operation
from podsandbox.network.cni_protocol import CNIPluginError
from runtimeshim.client import SpawnerError

# A failed DEL is tried again after this long, then after twice as long, up to the limit.
_FIRST_RETRY_SECONDS = 1.0
_LAST_RETRY_SECONDS = 300.0

_log = logging.getLogger(__name__)


class Deletion:
    """A task that goes on until `delete` has succeeded; whoever cannot wait for that need not."""

    def __init__(
        self,
        sandbox_id: str,
        delete: Callable[[], Awaitable[None]],
        gate: asyncio.Semaphore | None = None,
    ) -> None:
        """Begin at once, or as soon as `gate` lets it."""
        self._sandbox_id = sandbox_id
        self._delete = delete
        self._gate: contextlib.AbstractAsyncContextManager[None] = gate or contextlib.nullcontext()
        self._wanted = asyncio.Event()
        self._tried = asyncio.Event()
        self.has_failed = False
        self.task = asyncio.create_task(self._run())

    async def attempt(self) -> None:
        """Wait for the end of one attempt, the one under way or a new one, whatever comes of it."""
        self._tried.clear()
        self._wanted.set()
        tried = asyncio.create_task(self._tried.wait())
        try:
            await asyncio.wait({self.task, tried}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            tried.cancel()
        if self.task.done() and not self.task.cancelled():
            self.task.result()  # raises a fault of ours

    async def _run(self) -> None:
        delay = _FIRST_RETRY_SECONDS
        while True:
            try:
                async with self._gate:
                    self._wanted.clear()
                    with operation("DetachNetwork", self._sandbox_id):
                        await self._delete()
            except (CNIPluginError, SpawnerError) as err:
                self.has_failed = True
                _log.warning("sandbox %s: %s; tried again in %g s", self._sandbox_id, err, delay)
            else:
                return
            self._tried.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), delay)
            delay = min(2 * delay, _LAST_RETRY_SECONDS)

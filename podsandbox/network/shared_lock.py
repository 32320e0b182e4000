"""A lock that many may share, or one has alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from api.stages import stage, waiting_for


class SharedLock:
    """Who wants it alone waits for a moment without others, and keeps nobody from coming."""

    def __init__(self, alone_for: str) -> None:
        """alone_for: what one has it alone for, in the words of whoever waits meanwhile."""
        self._alone_for = alone_for
        self._changed = asyncio.Condition()
        self._sharing = 0
        self._alone = False

    @contextlib.asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Hold it with others."""
        async with self._changed:
            if self._alone:
                with stage("lock", self._alone_for):
                    waiting_for(lambda: f"{self._alone_for} runs, and nothing may run beside it")
                    await self._changed.wait_for(lambda: not self._alone)
            self._sharing += 1
        try:
            yield
        finally:
            self._sharing -= 1
            await self._tell()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Hold it without others."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone and not self._sharing)
            self._alone = True
        try:
            yield
        finally:
            self._alone = False
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

"""One syncfs for many: whoever asks while one is under way shares the next."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from runtimeshim.linux import syscalls


class Syncer:
    """Makes what was written below `root` survive a power loss.

    Syncs have numbers. A ticket is the number of the last one begun: everything written before the
    ticket was drawn is safe once a later one has ended.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._begun = 0
        self._done = 0
        self._running: asyncio.Task[None] | None = None

    def ticket(self) -> int:
        """Return a ticket for what has been written up to now."""
        return self._begun

    async def cover(self, ticket: int) -> None:
        """Wait until what the ticket stands for is on disk; raises OSError from syncfs."""
        while self._done <= ticket:
            if self._running is None:
                self._running = asyncio.create_task(self._sync())
            await asyncio.shield(self._running)

    async def _sync(self) -> None:
        self._begun += 1
        number = self._begun
        try:
            await asyncio.to_thread(_syncfs, self._root)
            self._done = number
        finally:
            self._running = None


def _syncfs(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)

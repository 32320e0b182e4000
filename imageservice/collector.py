"""Deletes from disk what has left the database."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Coroutine, Sequence
from pathlib import Path

from imageservice.content import ContentStore
from imageservice.layers import Layers
from imageservice.objects import Garbage

log = logging.getLogger(__name__)

# Whoever removes something is answered before its files are deleted.
DELETE_SECONDS = 0.05


class Collector:
    """Blobs lose their names at once, so that a new pull does not find one that is going."""

    def __init__(self, content: ContentStore, layers: Layers) -> None:
        self._content = content
        self._layers = layers
        self._deletions: set[asyncio.Task[None]] = set()
        self._directories: list[Path] = []  # to be deleted

    def delete_later(self, directory: Path) -> None:
        """Delete a directory in the background, after those that were handed over before.

        Its name has to say that it is in nobody's use: the next start deletes what a crash leaves.
        What is on its way already is not deleted twice.
        """
        if directory in self._directories:
            return
        self._directories.append(directory)
        if len(self._directories) == 1:
            self._begin(self._delete_directories())

    async def _delete_directories(self) -> None:
        """One at a time: what waits for the disk, or for a thread, is not to wait for these."""
        await asyncio.sleep(DELETE_SECONDS)
        while self._directories:
            try:
                await asyncio.to_thread(shutil.rmtree, self._directories[0])
            except OSError as err:
                log.warning("the next start deletes what is left of a root filesystem: %s", err)
            del self._directories[0]

    async def discard(self, garbage: Garbage) -> None:
        """Delete layers and blobs. To be called without an await after the database's step."""
        await self._delete(garbage, self._set_aside(garbage))

    def discard_later(self, garbage: Garbage) -> None:
        """As `discard`, in the background: what a crash leaves of it, the next start deletes."""
        self._begin(self._delete(garbage, self._set_aside(garbage)))

    def _begin(self, deletion: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(deletion)
        self._deletions.add(task)
        task.add_done_callback(self._deleted)

    def _set_aside(self, garbage: Garbage) -> list[Path]:
        return [path for digest in garbage.blobs if (path := self._content.set_aside(digest))]

    async def _delete(self, garbage: Garbage, blobs: Sequence[Path]) -> None:
        if blobs:
            await asyncio.to_thread(_unlink_all, blobs)
        await self._layers.remove(garbage.layers)

    def _deleted(self, task: asyncio.Task[None]) -> None:
        self._deletions.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("the next start deletes what is left of removed images: %s", error)

    async def settle(self) -> None:
        """Wait until nothing is being deleted in the background."""
        while self._deletions:
            await asyncio.wait(self._deletions)


def _unlink_all(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()

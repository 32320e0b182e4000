"""Deletes from disk what has left the database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from imageservice.content import ContentStore
from imageservice.layers import Layers
from imageservice.store import Garbage


class Collector:
    """Blobs lose their names at once, so that a new pull does not find one that is going."""

    def __init__(self, content: ContentStore, layers: Layers) -> None:
        self._content = content
        self._layers = layers

    async def discard(self, garbage: Garbage) -> None:
        """Delete layers and blobs. To be called without an await after the database's step."""
        blobs = [path for digest in garbage.blobs if (path := self._content.set_aside(digest))]
        if blobs:
            await asyncio.to_thread(_unlink_all, blobs)
        await self._layers.remove(garbage.layers)


def _unlink_all(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()

"""What lies in the image store's directories and tables, and belongs to nothing: for audits.

A start of the daemon removes all of this (service.recover); here it is found while pulls go on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import ClassVar, NamedTuple

from imageservice.content import ContentStore
from imageservice.layers import Layers
from imageservice.reference import is_digest
from imageservice.snapshots import Snapshots
from imageservice.store import ImageStore
from imageservice.views import Views

WRITABLE, LAYER, BLOB, PARTIAL, VIEW = "writable layer", "layer", "blob", "partial blob", "view"

# A file in the content store that nobody has written to for so long is of no work under way; a
# pull that broke off may have left it, and the next one takes it up or it expires.
QUIET_SECONDS = 3600.0


class ImageStray(NamedTuple):
    """One thing; `owner` is a container's id, "" for none. See criserver.audit.Stray."""

    kind: str
    name: str
    mark: str = ""
    owner: str = ""


class There(NamedTuple):
    """What is on the disk at one moment: names with their inodes."""

    containers: dict[str, str]
    layers: dict[str, str]
    blobs: dict[str, str]
    ingests: dict[str, str]


class ImageStrays:
    """Finds and removes them. `look` comes before `compare`, so that what is new has its record."""

    KINDS: ClassVar = (WRITABLE, LAYER, BLOB, PARTIAL, VIEW)

    def __init__(
        self,
        store: ImageStore,
        content: ContentStore,
        layers: Layers,
        snapshots: Snapshots,
        views: Views,
        is_idle: Callable[[], bool],
    ) -> None:
        """`is_idle` tells whether no image is being pulled or imported."""
        self._is_idle = is_idle
        self._store = store
        self._content = content
        self._layers = layers
        self._snapshots = snapshots
        self._views = views

    def look(self) -> There:
        """List the directories. Raises OSError."""
        quiet = time.time() - QUIET_SECONDS
        return There(
            _names(self._snapshots.directory),
            _names(self._layers.directory),
            _names(self._content.blobs, quiet),
            _names(self._content.ingests, quiet),
        )

    def compare(self, there: There, containers: Collection[str]) -> list[ImageStray]:
        """Return what is there and has no record; `containers` are the ids of all that exist."""
        return [
            *self._writable(there.containers, containers),
            *self._unpacked(there.layers),
            *self._files(there),
            *(
                ImageStray(VIEW, holder, "", holder)
                for holder in self._views.unheld(set(containers))
            ),
        ]

    def _writable(self, names: dict[str, str], containers: Collection[str]) -> list[ImageStray]:
        there = {name: mark for name, mark in names.items() if not name.startswith(".")}
        rows = dict.fromkeys(self._store.snapshots(), "")
        return [
            ImageStray(WRITABLE, name, mark, name)
            for name, mark in (rows | there).items()
            if name not in containers
        ]

    def _unpacked(self, names: dict[str, str]) -> list[ImageStray]:
        known = self._store.layer_numbers() | self._layers.busy
        return [
            ImageStray(LAYER, name, mark)
            for name, mark in names.items()
            if name.isdigit() and int(name) not in known
        ]

    def _files(self, there: There) -> list[ImageStray]:
        if not self._is_idle():  # what has come has no record before all of the image has
            return []
        known = self._store.known_blobs()
        return [
            ImageStray(BLOB, name, mark)
            for name, mark in there.blobs.items()
            if f"sha256:{name}" not in known and not self._content.is_reserved(f"sha256:{name}")
        ] + [
            ImageStray(PARTIAL, name, mark)
            for name, mark in there.ingests.items()
            if not is_digest(f"sha256:{name}")
        ]

    async def remove(self, kind: str, name: str) -> None:
        """Remove what `compare` has found; idempotent. Raises OSError or api.errors."""
        match kind:
            case "writable layer":
                await self._snapshots.remove(name)
            case "layer":
                if int(name) not in self._store.layer_numbers() | self._layers.busy:
                    await self._layers.remove([int(name)])
            case "blob":
                # From then on it is verified again when it is wanted, and expires if it is not.
                if self._is_idle() and f"sha256:{name}" not in self._store.known_blobs():
                    self._content.demote(f"sha256:{name}")
            case "partial blob":
                (self._content.ingests / name).unlink(missing_ok=True)
            case "view":
                await self._views.forget(name)


def _names(directory: Path, before: float | None = None) -> dict[str, str]:
    """Return {name: inode} of what is in a directory; `before`: not written to since."""
    with os.scandir(directory) as entries:
        if before is None:
            return {entry.name: str(entry.inode()) for entry in entries}
        return {e.name: str(e.inode()) for e in entries if _written(e) < before}


def _written(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:  # it has just been renamed
        return time.time()

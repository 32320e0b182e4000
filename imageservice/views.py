"""Read-only views of images: the image volumes of containers, and images mounted on the host.

A view is the lower directories of a read-only overlay. Whoever mounts it holds the image's layers
by a row of `views`: a container until its root filesystem is removed, a mount until it is undone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from api.errors import (
    CRIError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from imageservice.collector import Collector
from imageservice.layers import Layers
from imageservice.objects import Image
from imageservice.store import ImageStore
from runtimeshim.client import Spawner, SpawnerError, WorkerError
from runtimeshim.linux import mounts

SUBPATH_WORKER = "image_subpath"
MOUNT_WORKER = "image_mount"
WORKER_SECONDS = 60.0
# fsconfig(2) takes strings of 255 bytes.
MAX_OPTION = 255
_MOUNT = "mount:"


class Views:
    """Gives out lower directories, and notes who has them."""

    def __init__(
        self, store: ImageStore, layers: Layers, collector: Collector, spawner: Spawner
    ) -> None:
        self._store = store
        self._layers = layers
        self._collector = collector
        self._spawner = spawner

    async def volume(self, image: Image, container_id: str, sub_path: str) -> tuple[str, ...]:
        """Return overlayfs' lower directories, top first, that show `sub_path` of the image.

        The container's root filesystem must have been prepared: its removal ends this as well.
        Raises InvalidArgumentError for a path that is no directory of the image.
        """
        lowerdirs = self._layers.lowerdirs(image.layers)
        self._store.add_view(container_id, image)
        if sub_path.strip("/"):
            lowerdirs = await self._below(lowerdirs, sub_path)
        too_long = [path for path in lowerdirs if len(os.fsencode(path)) > MAX_OPTION]
        if too_long:
            raise InvalidArgumentError(f"the path {sub_path[:256]!r} in the image is too long")
        return self._layers.with_empty(lowerdirs)

    async def _below(self, lowerdirs: Sequence[str], sub_path: str) -> tuple[str, ...]:
        if "\0" in sub_path:
            raise InvalidArgumentError("the path in the image holds a NUL")
        args = {"lowerdirs": list(lowerdirs), "path": sub_path}
        try:
            answer, _ = await self._spawner.run_worker(SUBPATH_WORKER, args, timeout=WORKER_SECONDS)
        except WorkerError as err:
            if err.errno is None:
                raise InternalError(f"cannot look {sub_path[:256]!r} up: {err}") from err
            raise InvalidArgumentError(
                f"{sub_path[:256]!r} is not a directory of the image: {os.strerror(err.errno)}"
            ) from err
        except (SpawnerError, TimeoutError) as err:
            raise UnavailableError(f"cannot look {sub_path[:256]!r} up: {err}") from err
        return tuple(answer["lowerdirs"])

    # -- on the host --------------------------------------------------------------------------

    async def mount(self, image: Image, target: Path) -> None:
        """Mount the image read-only at `target`, an existing directory.

        Raises InvalidArgumentError, or FailedPreconditionError for a target that is in use.
        """
        holder = f"{_MOUNT}{target}"
        if holder in self._store.view_holders():
            raise FailedPreconditionError(f"an image is mounted at {target}: unmount that first")
        lowerdirs = self._layers.with_empty(self._layers.lowerdirs(image.layers))
        self._store.add_view(holder, image)
        try:
            await self._mount(lowerdirs, target)
        except CRIError:
            await self._collector.discard(self._store.remove_views(holder))
            raise

    async def _mount(self, lowerdirs: Sequence[str], target: Path) -> None:
        args = {"lowerdirs": list(lowerdirs), "target": str(target)}
        try:
            await self._spawner.run_worker(MOUNT_WORKER, args, timeout=WORKER_SECONDS)
        except WorkerError as err:
            raise InvalidArgumentError(f"cannot mount at {target}: {err}") from err
        except (SpawnerError, TimeoutError) as err:
            raise UnavailableError(f"cannot mount at {target}: {err}") from err

    async def unmount(self, target: Path) -> None:
        """Undo `mount`; raises FailedPreconditionError when no image is mounted there, or busy."""
        holder = f"{_MOUNT}{target}"
        if holder not in self._store.view_holders():
            raise FailedPreconditionError(f"no image is mounted at {target}")
        try:
            await asyncio.to_thread(_unmount, target)
        except OSError as err:
            raise FailedPreconditionError(f"cannot unmount {target}: {err.strerror}") from err
        await self._collector.discard(self._store.remove_views(holder))

    async def sweep(self, containers: set[str]) -> None:
        """Forget the views of containers and mounts that are no more."""
        for holder in self.unheld(containers):
            await self.forget(holder)

    def unheld(self, containers: set[str]) -> set[str]:
        """Return the holders of views that are none of these containers and no mount any more."""
        holders = self._store.view_holders() - containers
        return holders and holders - {f"{_MOUNT}{path}" for path in _overlays()}

    async def forget(self, holder: str) -> None:
        """End the views of a holder; layers that nobody else needs go."""
        await self._collector.discard(self._store.remove_views(holder))


def _unmount(target: Path) -> None:
    if str(target) in _overlays():
        mounts.umount(os.fspath(target), mounts.UMOUNT_NOFOLLOW)


def _overlays() -> set[str]:
    """Return where this process sees an overlay mounted (man 5 proc, mountinfo)."""
    found = set()
    with Path("/proc/self/mountinfo").open("rb") as lines:
        for line in lines:
            fields, _, tail = line.partition(b" - ")
            if tail.startswith(b"overlay "):
                point = fields.split(b" ")[4]
                found.add(os.fsdecode(point.decode("unicode_escape").encode("latin-1")))
    return found

"""Root filesystems of containers: the image's layers below, a writable layer of their own above.

The overlay itself is mounted by the container's init; here are only its directories, and those of
the anonymous volumes that the image wants.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from api.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from imageservice.collector import Collector
from imageservice.files_worker import MAX_FILE
from imageservice.layers import Layers
from imageservice.objects import Image
from imageservice.placement import spread_subdirectories
from imageservice.store import ImageStore
from runtimeshim.client import Rootfs, Spawner, SpawnerError, WorkerError

FILES_WORKER = "image_files"
FILES_SECONDS = 60.0
VOLUMES_WORKER = "image_volumes"
VOLUMES_SECONDS = 600.0  # for gigabytes of an image that are to be copied on a slow disk
# Images whose user database is kept in memory, of at most two MAX_FILE each.
MAX_DATABASES = 64
# How old the figure of a writable layer may be: the kubelet asks every 10 s. One that took long to
# find, of a container that has written a million files, is kept for as many times as long.
USAGE_SECONDS = 10.0
USAGE_FACTOR = 20
_ID = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_TRASH = ".removed-"


@dataclass(frozen=True)
class UserDatabase:
    """An image's /etc/passwd and /etc/group; b"" for a file that is missing or no regular file."""

    passwd: bytes = b""
    group: bytes = b""


@dataclass(frozen=True)
class Usage:
    """A writable layer: bytes on disk, inodes, when that was (ns since the epoch).

    duration: how long it took to find out, in ns.
    """

    used_bytes: int
    inodes: int
    timestamp: int
    duration: int = 0

    def is_stale(self, now: int) -> bool:
        """Tell whether the figure is too old; now: ns since the epoch."""
        age = max(int(USAGE_SECONDS * 1e9), USAGE_FACTOR * self.duration)
        return not self.timestamp <= now <= self.timestamp + age


class Snapshots:
    """The directories below `root`/containers."""

    def __init__(
        self,
        root: Path,
        store: ImageStore,
        layers: Layers,
        collector: Collector,
        spawner: Spawner,
        *,
        volatile: bool = False,
    ) -> None:
        self.directory = root / "containers"
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        spread_subdirectories(self.directory)
        self._store = store
        self._layers = layers
        self._collector = collector
        self._spawner = spawner
        self._volatile = volatile
        self._databases: dict[str, UserDatabase] = {}
        self._usage: dict[str, Usage] = {}
        self._measuring = asyncio.Lock()

    def _path(self, container_id: str) -> Path:
        if not _ID.fullmatch(container_id) or container_id.startswith("."):
            raise InvalidArgumentError(f"{container_id!r} is not a container id")
        return self.directory / container_id

    def prepare(self, image: Image, container_id: str) -> Rootfs:
        """Make a writable layer above `image`; a layer left by an earlier try is replaced.

        Raises InternalError when one of the image's layers is missing.
        """
        path = self._path(container_id)
        if image.is_artifact:
            raise FailedPreconditionError(
                f"{image.id} is an artifact ({image.config['artifactType']}), which can be mounted "
                "as an image volume but not run"
            )
        lowerdirs = self._layers.lowerdirs(image.layers)
        self._store.add_snapshot(container_id, image)  # from here on the layers stay
        if path.exists():
            shutil.rmtree(path)
        upper, work = path / "upper", path / "work"
        path.mkdir(mode=0o700)
        work.mkdir(mode=0o700)
        upper.mkdir(mode=0o755)
        # The upper directory is the root that the container sees.
        top = os.stat(lowerdirs[0])
        os.chown(upper, top.st_uid, top.st_gid)
        os.chmod(upper, stat.S_IMODE(top.st_mode))
        return Rootfs(lowerdirs, str(upper), str(work), volatile=self._volatile)

    async def add_volumes(
        self, rootfs: Rootfs, container_id: str, paths: Sequence[str]
    ) -> dict[str, str]:
        """Make a volume for each path in the image; returns their directories on the host.

        They begin with what the image has there, and go with the writable layer. Raises
        InvalidArgumentError where that is no directory, InternalError or UnavailableError when
        they cannot be made.
        """
        if not paths:
            return {}
        directory = self._path(container_id) / "volumes"
        directory.mkdir(mode=0o700)
        volumes = {path: str(directory / str(number)) for number, path in enumerate(paths)}
        for volume in volumes.values():
            os.mkdir(volume, 0o755)
        args = {"lowerdirs": list(rootfs.lowerdirs), "volumes": volumes}
        try:
            answer, _ = await self._spawner.run_worker(
                VOLUMES_WORKER, args, timeout=VOLUMES_SECONDS
            )
        except SpawnerError as err:
            raise UnavailableError(f"the volumes of the image cannot be made now: {err}") from err
        except (WorkerError, TimeoutError) as err:
            raise InternalError(f"the volumes of the image cannot be made: {err}") from err
        if (path := answer.get("not_a_directory")) is not None:
            raise InvalidArgumentError(
                f"the image wants a volume at {path[:256]!r}, which is not a directory in it"
            )
        return volumes

    async def remove(self, container_id: str) -> None:
        """Remove a writable layer, its volumes, and layers that nobody else needs. Idempotent.

        Its files are deleted in the background: they can be many, and the disk be busy.
        """
        path = self._path(container_id)
        trash = self.directory / f"{_TRASH}{secrets.token_hex(8)}"
        try:
            os.rename(path, trash)
        except FileNotFoundError:
            pass
        else:
            self._collector.delete_later(trash)
        self._usage.pop(container_id, None)
        await self._collector.discard(self._store.remove_snapshot(container_id))

    async def sweep(self, containers: Collection[str]) -> None:
        """Remove the writable layers of all other containers."""
        keep = set(containers)
        there = {path.name for path in self.directory.iterdir()}
        for name in there:
            if name.startswith(_TRASH):
                self._collector.delete_later(self.directory / name)
            elif name not in keep:
                await self.remove(name)
        for name in self._store.snapshots() - keep - there:
            await self.remove(name)

    # -- users --------------------------------------------------------------------------------

    async def user_database(self, image: Image) -> UserDatabase:
        """Return the image's passwd and group.

        Raises InternalError when it cannot be read, UnavailableError without a spawner.
        """
        database = self._databases.get(image.id)
        if database is None:
            database = await self._read_users(image)
            if len(self._databases) >= MAX_DATABASES:
                del self._databases[next(iter(self._databases))]
            self._databases[image.id] = database
        return database

    async def _read_users(self, image: Image) -> UserDatabase:
        lowerdirs = list(self._layers.lowerdirs(image.layers))
        args = {"lowerdirs": lowerdirs, "files": ["etc/passwd", "etc/group"]}
        try:
            answer, fds = await self._spawner.run_worker(FILES_WORKER, args, timeout=FILES_SECONDS)
        except SpawnerError as err:
            raise UnavailableError(f"cannot read an image's users now: {err}") from err
        except (WorkerError, TimeoutError) as err:
            raise InternalError(f"cannot read the users of image {image.id}: {err}") from err
        with os.fdopen(fds[0], "rb") as file:
            file.seek(0)
            passwd, group = (file.read(min(n, MAX_FILE)) if n else b"" for n in answer["lengths"])
        return UserDatabase(passwd, group)

    # -- usage --------------------------------------------------------------------------------

    async def usage(self, container_id: str) -> Usage:
        """Return what the container has written, some USAGE_SECONDS old at most."""
        return (await self._usages([container_id]))[0]

    async def total_usage(self) -> tuple[int, int]:
        """Return bytes and inodes of all writable layers."""
        usages = await self._usages(list(self._store.snapshots()))
        return sum(u.used_bytes for u in usages), sum(u.inodes for u in usages)

    async def _usages(self, container_ids: Sequence[str]) -> list[Usage]:
        """Measure what is stale, one caller at a time; what has been removed counts nothing."""
        async with self._measuring:
            now = time.time_ns()
            stale = {
                container_id: self._path(container_id)
                for container_id in container_ids
                if (known := self._usage.get(container_id)) is None or known.is_stale(now)
            }
            if stale:
                found = await asyncio.to_thread(_measure_all, stale)
                here = filter(self._store.has_snapshot, found)
                self._usage.update({key: found[key] for key in here})
            else:
                found = {}
            known_or_found = {**self._usage, **found}
            return [known_or_found.get(key) or Usage(0, 0, now) for key in container_ids]


def _measure_all(paths: Mapping[str, Path]) -> dict[str, Usage]:
    return {container_id: _measure(path) for container_id, path in paths.items()}


def _measure(path: Path) -> Usage:
    """Walk what a container writes to: its writable layer and its volumes.

    What goes away meanwhile is not counted. Hard links count once.
    """
    began = time.monotonic_ns()
    size = inodes = 0
    seen: set[int] = set()
    pending = [os.fspath(path / name) for name in ("upper", "volumes")]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                        if status.st_ino in seen:
                            continue
                        seen.add(status.st_ino)
                    size += status.st_blocks * 512
                    inodes += 1
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return Usage(size, inodes, time.time_ns(), time.monotonic_ns() - began)

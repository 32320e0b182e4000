"""Blobs on their way from a registry, or the content store, through a worker into a directory.

download ─┬─ sha256 ─ file in content/ingest ─ named by its digest
          └─ pipe ─ worker: decompress ─ sha256 of the diff ─ tar ─ layers/N/fs
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.errors import CRIError, ImagePullError, UnavailableError
from imageservice.content import ContentStore, Tap
from imageservice.errors import BadContentError, DiskError, StalePartialError
from imageservice.fetch import BlobSource, Fetcher, WantedBlob
from imageservice.flights import Seat
from runtimeshim.client import Spawner, SpawnerError, WorkerError

log = logging.getLogger(__name__)

UNPACK_WORKER = "unpack_layer"
PARENTS_WORKER = "layer_parents"
# A stalled download ends by itself; this ends a worker that hangs for another reason.
UNPACK_SECONDS = 6 * 3600.0
PARENTS_SECONDS = 600.0
# What a worker raises for an archive that is wrong, and for reasons that are not the archive's.
_ARCHIVE_ERRORS = ("TarError", "CoveredError", "CompressionError")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM)


@dataclass(frozen=True)
class Unpacked:
    """A blob unpacked into layers/`number`/fs, which is nobody's layer yet.

    diff_id: the digest of the tar. size: bytes on disk. root_described: whether the tar has an
    entry for the layer's own directory. listing: an fd of what lists other directories that it does
    not describe, None without any.
    """

    number: int
    path: Path
    diff_id: str
    size: int
    inodes: int
    root_described: bool
    ignored_xattrs: int
    listing: int | None

    def close(self) -> None:
        """Let go of the listing."""
        if self.listing is not None:
            os.close(self.listing)


class Unpacker:
    """Fetches blobs that are not there, and unpacks them as they come."""

    def __init__(self, content: ContentStore, fetcher: Fetcher, spawner: Spawner) -> None:
        self._content = content
        self._fetcher = fetcher
        self._spawner = spawner

    async def unpack(
        self, wanted: WantedBlob, source: BlobSource | None, number: int, path: Path
    ) -> Unpacked:
        """Unpack a blob into the empty directory `path`. Raises CRIError."""
        answer, fds = await self._fetch_and_unpack(wanted, source, path)
        return Unpacked(number, path, **answer, listing=fds[0] if fds else None)

    async def _fetch_and_unpack(
        self, wanted: WantedBlob, source: BlobSource | None, path: Path
    ) -> tuple[dict[str, Any], list[int]]:
        """Return the worker's answer, having fetched the blob on the way if it was not there."""
        digest = wanted.blob.digest
        while not self._content.has(digest):
            tap = Tap()
            seat = self._fetcher.enter(wanted, source, tap)
            if seat.first:
                return await self._unpack_tapped(wanted, seat, tap, path)
            tap.close_reader()
            tap.close()
            try:
                await seat.result()
            except CRIError as err:
                log.info("another pull failed to fetch %s: %s", wanted, err)
        fd = os.open(self._content.path(digest), os.O_RDONLY)
        try:
            return await self._run_unpack(wanted, fd, path)
        finally:
            os.close(fd)

    async def _unpack_tapped(
        self, wanted: WantedBlob, seat: Seat[None], tap: Tap, path: Path
    ) -> tuple[dict[str, Any], list[int]]:
        """Unpack while the blob is being fetched."""
        unpacked = asyncio.create_task(self._run_unpack(wanted, tap.read_fd, path))
        # Without a reader a blocked write to the pipe ends.
        unpacked.add_done_callback(lambda _: tap.close_reader())
        fetched = asyncio.create_task(seat.result())
        try:
            await asyncio.wait((fetched, unpacked), return_when=asyncio.FIRST_EXCEPTION)
            if not fetched.done() and self._fetcher.is_ending(wanted):
                # Its digest says more than what the worker makes of wrong or too few bytes.
                await asyncio.wait((fetched,))
            if fetched.done() and fetched.exception() is not None:
                # The pipe has ended, so the worker does; its error is only a consequence.
                await asyncio.to_thread(tap.close)
                await asyncio.wait((unpacked,))
                fetched.result()
            return await unpacked
        except DiskError:
            self._fetcher.spoil(wanted.blob.digest)
            raise
        except BadContentError as err:
            if self._fetcher.spoil(wanted.blob.digest):
                raise StalePartialError(str(err)) from err
            raise
        finally:
            for task in (fetched, unpacked):
                task.cancel()
            await asyncio.gather(fetched, unpacked, return_exceptions=True)
            await seat.close()
            if not tap.closed:
                await asyncio.to_thread(tap.close)

    async def _run_unpack(
        self, wanted: WantedBlob, source: int, path: Path
    ) -> tuple[dict[str, Any], list[int]]:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return await self._run(wanted, UNPACK_WORKER, {}, [source, fd], UNPACK_SECONDS)
        finally:
            os.close(fd)

    async def adopt_parents(
        self, wanted: WantedBlob, unpacked: Unpacked, parents: Sequence[Path]
    ) -> None:
        """Give directories that the tar does not describe the attributes of those below.

        parents: the directories of the layers below, nearest first.
        """
        if unpacked.listing is None:
            return
        fd = os.open(unpacked.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            args = {"parents": [str(parent) for parent in parents]}
            fds = [fd, unpacked.listing]
            await self._run(wanted, PARENTS_WORKER, args, fds, PARENTS_SECONDS)
        finally:
            os.close(fd)

    async def _run(
        self, wanted: WantedBlob, worker: str, args: dict[str, Any], fds: list[int], timeout: float
    ) -> tuple[dict[str, Any], list[int]]:
        try:
            return await self._spawner.run_worker(worker, args, fds, timeout=timeout)
        except WorkerError as err:
            raise worker_failed(wanted, err) from err
        except TimeoutError as err:
            raise ImagePullError(
                f"{wanted}: unpacking was ended after {timeout:g} s without a result"
            ) from err
        except SpawnerError as err:
            raise UnavailableError(f"cannot unpack {wanted.image}: {err}") from err


def worker_failed(wanted: WantedBlob, err: WorkerError) -> ImagePullError:
    """Tell an archive that is wrong from a machine that is in trouble."""
    if err.errno in _DISK_ERRORS:
        return DiskError(f"{wanted}: {err.message}: free, or repair, the disk below it")
    if err.kind in _ARCHIVE_ERRORS or err.errno is not None:
        return wanted.bad(err.message)
    return ImagePullError(f"{wanted}: {err.message}")

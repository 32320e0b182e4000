"""Unpacked layers: fetched, unpacked by a worker of the spawner, checked, synced, committed.

    download ─┬─ sha256 ─ file in content/ingest ─ named by its digest
              └─ pipe ─ worker: decompress ─ sha256 of the diff ─ tar ─ layers/N/fs

A layer counts once its row is in the database. Before that its directory is nobody's.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from api.errors import CRIError, ImagePullError, InternalError, UnavailableError
from imageservice import artifact
from imageservice.artifact import File
from imageservice.content import ContentStore, Tap
from imageservice.errors import BadContentError, DiskError, StalePartialError
from imageservice.fetch import BlobSource, Fetcher, WantedLayer
from imageservice.flights import Flights, Seat
from imageservice.parent_attributes import copy_attributes
from imageservice.placement import spread_subdirectories
from imageservice.progress import LayerProgress, LayerState
from imageservice.store import ImageStore, Layer
from imageservice.syncing import Syncer
from runtimeshim.client import Spawner, SpawnerError, WorkerError

log = logging.getLogger(__name__)

UNPACK_WORKER = "unpack_layer"
PARENTS_WORKER = "layer_parents"
VERIFY_WORKER = "verify_layer"
# A stalled download ends by itself; this ends a worker that hangs for another reason.
UNPACK_SECONDS = 6 * 3600.0
PARENTS_SECONDS = 600.0
# What a worker raises for an archive that is wrong, and for reasons that are not the archive's.
_ARCHIVE_ERRORS = ("TarError", "CoveredError", "CompressionError")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM)
REMOVE_TRIES = 50
# Why a layer is damaged.
GONE = "its directory is missing"
REMOVE_PAUSE_SECONDS = 0.02


class Layers:
    """The directories below `root`/layers."""

    def __init__(
        self,
        root: Path,
        store: ImageStore,
        content: ContentStore,
        spawner: Spawner,
        syncer: Syncer,
        parallel: int,
    ) -> None:
        self.directory = root / "layers"
        self.busy: set[int] = set()  # numbers of directories that are being made or removed
        self._store = store
        self._content = content
        self._spawner = spawner
        self._syncer = syncer
        self._flights = Flights()
        self._fetcher = Fetcher(content)
        self._slots = asyncio.Semaphore(parallel)
        # The lower directory of an image without layers: overlayfs needs one.
        (self.directory / "empty" / "fs").mkdir(mode=0o755, parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        spread_subdirectories(self.directory)
        self._next = 1 + max([*self._on_disk(), *store.layer_numbers()], default=0)

    def _on_disk(self) -> list[int]:
        return [int(path.name) for path in self.directory.iterdir() if path.name.isdigit()]

    def path(self, number: int) -> Path:
        """Return the directory with the content of layer `number`."""
        return self.directory / str(number) / "fs"

    def lowerdirs(self, chain_ids: Sequence[str]) -> tuple[str, ...]:
        """Return overlayfs' lower directories for layers given base first; the top comes first.

        Raises InternalError when one is missing.
        """
        if not chain_ids:
            return (str(self.directory / "empty" / "fs"),)
        return tuple(str(self.path(self._known(chain).number)) for chain in reversed(chain_ids))

    def with_empty(self, lowerdirs: Sequence[str]) -> tuple[str, ...]:
        """Return lower directories of a read-only overlay, which has to have two at least."""
        return (*lowerdirs, str(self.directory / "empty" / "fs"))

    def _known(self, chain_id: str) -> Layer:
        layer = self._store.layer(chain_id)
        if layer is None:
            raise InternalError(f"layer {chain_id} is not in the store: pull its image again")
        damage = self._store.health.damaged.get(chain_id)
        if damage is not None:
            raise InternalError(f"layer {chain_id} is damaged ({damage}): pull its image again")
        return layer

    def are_whole(self, chain_ids: Sequence[str]) -> bool:
        """Tell whether none is damaged; a layer without its directory is so from now on."""
        for chain_id in chain_ids:
            layer = self._store.layer(chain_id)
            if layer is None:
                return False
            if not self.path(layer.number).exists():
                self._store.health.mark(chain_id, GONE)
        return self._store.health.is_whole(chain_ids)

    def mark_missing(self) -> list[str]:
        """Note as damaged, and return, the chain ids of layers whose directory is not there."""
        there = set(self._on_disk())
        gone = [layer.chain_id for layer in self._store.layers() if layer.number not in there]
        for chain_id in gone:
            self._store.health.mark(chain_id, GONE)
        return gone

    def progress(self, wanted: WantedLayer, existed: bool) -> LayerProgress:
        """Return how far the layer is; existed: it was here before it was wanted."""
        digest, size = wanted.blob.digest, wanted.blob.size
        fetched = self._fetcher.fetched(digest)
        if fetched is not None:
            return LayerProgress(digest, size, fetched, LayerState.FETCHING)
        if self._store.has_layer(wanted.chain_id):
            state = LayerState.EXISTS if existed else LayerState.DONE
            return LayerProgress(digest, size, size, state)
        if self._content.has(digest):
            return LayerProgress(digest, size, size, LayerState.UNPACKING)
        return LayerProgress(digest, size, 0, LayerState.WAITING)

    # -- making -------------------------------------------------------------------------------

    async def ensure(self, wanted: WantedLayer, source: BlobSource | None) -> None:
        """Make the layer unless it is there; joins whoever is at it.

        Without a source the blob must be in the content store. Raises CRIError.
        """
        while True:
            while not self._store.has_layer(wanted.chain_id):
                seat = self._flights.enter(wanted.chain_id, lambda: self._make(wanted, source))
                try:
                    await seat.result()
                except StalePartialError as err:
                    log.warning("fetched again from its beginning: %s", err)
                except CRIError:
                    if seat.first:
                        raise
                    # Another pull's source failed: try with our own.
            if self._content.has(wanted.blob.digest):
                return
            await self._keep_blob(wanted, source)
            await self._check_again(wanted)

    async def ensure_files(
        self, image: str, chain_id: str, files: Sequence[File], source: BlobSource | None
    ) -> None:
        """Make the directory of an artifact's files unless it is there. Raises CRIError."""
        wanted = [WantedLayer(image, chain_id, "", chain_id, file.blob) for file in files]
        while True:
            await asyncio.gather(*(self._file(each, source) for each in wanted))
            if not self._store.has_layer(chain_id):
                work = functools.partial(self._make_files, chain_id, files)
                await self._flights.enter(chain_id, work).result()
            layer = self._known(chain_id)
            differences = await self.compare(layer, "")
            if not differences:
                return
            self._store.health.mark(chain_id, differences[0])

    async def _file(self, wanted: WantedLayer, source: BlobSource | None) -> None:
        async with self._slots:
            await self._keep_blob(wanted, source)

    async def _make_files(self, chain_id: str, files: Sequence[File]) -> None:
        number, path = self._new_directory()
        try:
            blobs = [self._content.path(file.blob.digest) for file in files]
            size, inodes = await asyncio.to_thread(artifact.link_files, files, blobs, path)
            await self._syncer.cover(self._syncer.ticket())
            layer = Layer(chain_id, "", chain_id, number, size, inodes)
            self._store.commit_layer(layer, *(file.blob for file in files))
        except OSError as err:
            raise ImagePullError(f"cannot store the files of {chain_id}: {err}") from err
        finally:
            if not self._store.has_layer(chain_id):
                await asyncio.shield(asyncio.to_thread(_remove_all, [path.parent]))
            self.busy.discard(number)

    async def _keep_blob(self, wanted: WantedLayer, source: BlobSource | None) -> None:
        """Fetch the blob of a layer that is there: it came as another, or was damaged since."""
        while not self._content.has(wanted.blob.digest):
            tap = Tap()
            tap.close_reader()
            seat = self._fetcher.enter(wanted, source, tap)
            try:
                await seat.result()
            except StalePartialError as err:
                log.warning("fetched again from its beginning: %s", err)
            except CRIError:
                if seat.first:
                    raise
            finally:
                tap.close()

    def spoil(self, digests: Collection[str]) -> None:
        """Have nothing kept of blobs under way that end before their end."""
        for digest in digests:
            self._fetcher.spoil(digest)

    async def _check_again(self, wanted: WantedLayer) -> None:
        """Verify a layer whose blob was lost: what damaged the one may have damaged the other."""
        layer = self._store.layer(wanted.chain_id)
        if layer is None:
            return
        differences = await self.compare(layer, wanted.blob.digest)
        if differences and self._store.layer(wanted.chain_id) == layer:
            log.warning("%s is damaged and made anew: %s", wanted, differences[0])
            self._store.health.mark(wanted.chain_id, differences[0])

    async def compare(self, layer: Layer, digest: str) -> list[str]:
        """Return how a layer on disk differs from its blob, which has been verified.

        Raises UnavailableError when the spawner is away.
        """
        if artifact.is_files(layer.chain_id):
            blobs = self._content.path("")
            return await asyncio.to_thread(artifact.damage_of, self.path(layer.number), blobs)
        fds: list[int] = []
        try:
            fds.append(os.open(self._content.path(digest), os.O_RDONLY))
            fds.append(os.open(self.path(layer.number), os.O_RDONLY | os.O_DIRECTORY))
            answer, _ = await self._spawner.run_worker(
                VERIFY_WORKER, {}, fds, timeout=UNPACK_SECONDS
            )
        except FileNotFoundError:
            return [GONE]
        except SpawnerError as err:
            raise UnavailableError(f"cannot verify layer {layer.chain_id}: {err}") from err
        except (WorkerError, TimeoutError) as err:
            return [f"it cannot be read: {err}"]
        finally:
            for fd in fds:
                os.close(fd)
        if answer["diff_id"] != layer.diff_id and not answer["findings"]:
            return [f"its blob unpacks to {answer['diff_id']}, not {layer.diff_id}"]
        return list(answer["findings"])

    def _new_directory(self) -> tuple[int, Path]:
        """Make the empty directory of a new layer; returns its number too."""
        number = self._next
        self._next += 1
        self.busy.add(number)
        path = self.path(number)
        path.mkdir(mode=0o755, parents=True)
        path.chmod(0o755)
        return number, path

    async def _make(self, wanted: WantedLayer, source: BlobSource | None) -> None:
        number, path = self._new_directory()
        try:
            async with self._slots:
                answer, listing = await self._unpack(wanted, source, path)
            try:
                await self._finish(wanted, path, answer, listing)
            finally:
                for fd in listing:
                    os.close(fd)
            self._commit(wanted, number, answer)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(_remove_all, [path.parent]))
            raise
        finally:
            self.busy.discard(number)

    async def _finish(
        self, wanted: WantedLayer, path: Path, answer: dict[str, Any], listing: list[int]
    ) -> None:
        if answer["diff_id"] != wanted.diff_id:
            raise wanted.bad(
                f"it unpacks to the diff id {answer['diff_id']}, "
                f"but the image's configuration says {wanted.diff_id}"
            )
        if answer["ignored_xattrs"]:
            log.warning(
                "%s: %d extended attributes were left out: they are reserved, or the filesystem "
                "has none",
                wanted,
                answer["ignored_xattrs"],
            )
        await self._parent_done(wanted)
        await self._adopt_parents(wanted, path, answer, listing)
        await self._syncer.cover(self._syncer.ticket())

    def _commit(self, wanted: WantedLayer, number: int, answer: dict[str, Any]) -> None:
        layer = Layer(
            wanted.chain_id,
            wanted.parent,
            wanted.diff_id,
            number,
            answer["size"],
            answer["inodes"],
        )
        self._store.commit_layer(layer, wanted.blob)

    async def _parent_done(self, wanted: WantedLayer) -> None:
        """Wait for the layer below, which every pull of this one makes as well."""
        failure: CRIError | None = None
        while wanted.parent and not self._store.has_layer(wanted.parent):
            seat = self._flights.join(wanted.parent)
            if seat is None:
                raise failure or wanted.bad(f"the layer {wanted.parent} below it was not made")
            try:
                await seat.result()
            except CRIError as err:
                failure = err
                await asyncio.sleep(0)  # our own pull may try it with its own source

    async def _adopt_parents(
        self, wanted: WantedLayer, path: Path, answer: dict[str, Any], listing: list[int]
    ) -> None:
        """Give directories that the tar does not describe the attributes of those below."""
        if not wanted.parent:
            return
        parents = [str(parent) for parent in self._below(wanted.parent)]
        if not answer["root_described"]:
            await asyncio.to_thread(_copy_root, Path(parents[0]), path)
        if listing:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                await self._run(
                    wanted, PARENTS_WORKER, {"parents": parents}, [fd, *listing], PARENTS_SECONDS
                )
            finally:
                os.close(fd)

    def _below(self, chain_id: str) -> list[Path]:
        paths = []
        while chain_id:
            layer = self._known(chain_id)
            paths.append(self.path(layer.number))
            chain_id = layer.parent
        return paths

    # -- unpacking ----------------------------------------------------------------------------

    async def _unpack(
        self, wanted: WantedLayer, source: BlobSource | None, path: Path
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
        self, wanted: WantedLayer, seat: Seat[None], tap: Tap, path: Path
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
            await asyncio.to_thread(tap.close)

    async def _run_unpack(
        self, wanted: WantedLayer, source: int, path: Path
    ) -> tuple[dict[str, Any], list[int]]:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return await self._run(wanted, UNPACK_WORKER, {}, [source, fd], UNPACK_SECONDS)
        finally:
            os.close(fd)

    async def _run(
        self, wanted: WantedLayer, worker: str, args: dict[str, Any], fds: list[int], timeout: float
    ) -> tuple[dict[str, Any], list[int]]:
        try:
            return await self._spawner.run_worker(worker, args, fds, timeout=timeout)
        except WorkerError as err:
            raise _worker_failed(wanted, err) from err
        except TimeoutError as err:
            raise ImagePullError(
                f"{wanted}: unpacking was ended after {timeout:g} s without a result"
            ) from err
        except SpawnerError as err:
            raise UnavailableError(f"cannot unpack {wanted.image}: {err}") from err

    # -- removal ------------------------------------------------------------------------------

    async def remove(self, numbers: Collection[int]) -> None:
        """Delete the directories of layers that have left the database."""
        if not numbers:
            return
        paths = [self.directory / str(number) for number in numbers]
        self.busy.update(numbers)
        try:
            await asyncio.shield(asyncio.to_thread(_remove_all, paths))
        finally:
            self.busy.difference_update(numbers)

    async def sweep(self) -> None:
        """Delete directories that an earlier daemon left unfinished."""
        known = self._store.layer_numbers()
        await self.remove([number for number in self._on_disk() if number not in known])

    async def close(self) -> None:
        """Break off what is under way."""
        await self._flights.close()
        await self._fetcher.close()


def _worker_failed(wanted: WantedLayer, err: WorkerError) -> ImagePullError:
    """Tell an archive that is wrong from a machine that is in trouble."""
    if err.errno in _DISK_ERRORS:
        return DiskError(f"{wanted}: {err.message}: free, or repair, the disk below it")
    if err.kind in _ARCHIVE_ERRORS or err.errno is not None:
        return wanted.bad(err.message)
    return ImagePullError(f"{wanted}: {err.message}")


def _remove_all(paths: Sequence[Path]) -> None:
    for path in paths:
        for _ in range(REMOVE_TRIES):
            try:
                shutil.rmtree(path)
                break
            except FileNotFoundError:
                if path.exists():  # what is in it goes away at the same time
                    continue
                break
            except OSError as err:
                # A worker that was killed may be in its last call, and make one more name.
                if err.errno != errno.ENOTEMPTY:
                    raise
                time.sleep(REMOVE_PAUSE_SECONDS)
        else:
            shutil.rmtree(path)


def _copy_root(source: Path, target: Path) -> None:
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (source, target)]
    try:
        copy_attributes(*fds)
    finally:
        for fd in fds:
            os.close(fd)

"""Unpacked layers: fetched and unpacked (imageservice.unpacking), checked, synced, committed.

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
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from api.errors import CRIError, ImagePullError, InternalError, UnavailableError
from api.stages import stage
from imageservice import artifact
from imageservice.artifact import File
from imageservice.content import ContentStore, Tap
from imageservice.errors import StalePartialError
from imageservice.fetch import BlobSource, Fetcher, WantedBlob, WantedLayer
from imageservice.flights import Flights
from imageservice.objects import Layer
from imageservice.parent_attributes import copy_attributes
from imageservice.placement import spread_subdirectories
from imageservice.progress import LayerProgress, LayerState
from imageservice.store import ImageStore
from imageservice.syncing import Syncer
from imageservice.unpacking import UNPACK_SECONDS, Unpacked, Unpacker
from runtimeshim.client import Spawner, SpawnerError, WorkerError

log = logging.getLogger(__name__)

VERIFY_WORKER = "verify_layer"
REMOVE_TRIES = 50
# Why a layer is damaged.
GONE = "its directory is missing"
REMOVE_PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class _Ahead:
    """The unpacking of a blob that may become a layer, and where the blob comes from."""

    source: BlobSource
    task: asyncio.Task[Unpacked]


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
        self._unpacker = Unpacker(content, self._fetcher, spawner)
        self._ahead: dict[str, _Ahead] = {}  # by digest: what nobody has taken over yet
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
        wanted = [WantedBlob(image, file.blob) for file in files]
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

    async def _file(self, wanted: WantedBlob, source: BlobSource | None) -> None:
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

    async def _keep_blob(self, wanted: WantedBlob, source: BlobSource | None) -> None:
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
        unpacking = self._begun_ahead(wanted, source)
        if unpacking is None:
            unpacking = asyncio.create_task(self._unpack(wanted, source))
        try:
            unpacked = await unpacking
            await self._finish(wanted, unpacked)
            self._commit(wanted, unpacked)
        except BaseException:
            await asyncio.shield(self._undo(unpacking))
            raise
        unpacked.close()
        self.busy.discard(unpacked.number)

    @asynccontextmanager
    async def ahead(self, blobs: Sequence[WantedBlob], source: BlobSource) -> AsyncIterator[None]:
        """Begin to unpack blobs before it is known which layers they are.

        `ensure` goes on with what was begun by the same source; the rest is undone in the end, but
        for what has come of the blobs.
        """
        begun: dict[str, _Ahead] = {}
        for wanted in blobs:
            digest = wanted.blob.digest
            under_way = digest in self._ahead or self._fetcher.fetched(digest) is not None
            if not under_way and not self._content.has(digest):
                task = asyncio.create_task(self._unpack_ahead(wanted, source))
                begun[digest] = self._ahead[digest] = _Ahead(source, task)
        try:
            yield
        finally:
            left = {digest for digest, each in begun.items() if self._ahead.get(digest) is each}
            for digest in left:
                del self._ahead[digest]
            if left:
                await asyncio.shield(self._undo_all({d: begun[d].task for d in left}))

    async def _undo_all(self, tasks: Mapping[str, asyncio.Task[Unpacked]]) -> None:
        await asyncio.gather(*map(self._undo, tasks.values()))
        unknown = tasks.keys() - self._store.known_blobs().keys()
        for digest in self._store.collect((), unknown).blobs:
            self._content.demote(digest)

    def _begun_ahead(
        self, wanted: WantedLayer, source: BlobSource | None
    ) -> asyncio.Task[Unpacked] | None:
        """Take over what was begun of the blob; another pull's source may fail it, so only ours."""
        found = self._ahead.get(wanted.blob.digest)
        if found is None or found.source is not source:
            return None
        del self._ahead[wanted.blob.digest]
        return found.task

    async def _unpack_ahead(self, wanted: WantedBlob, source: BlobSource) -> Unpacked:
        with stage("ahead", wanted.blob.digest):
            return await self._unpack(wanted, source)

    async def _unpack(self, wanted: WantedBlob, source: BlobSource | None) -> Unpacked:
        """Unpack a blob into a new directory, which is busy from then on."""
        async with self._slots:
            number, path = self._new_directory()
            try:
                return await self._unpacker.unpack(wanted, source, number, path)
            except BaseException:
                await asyncio.shield(self._drop(number, path))
                raise

    async def _undo(self, unpacking: asyncio.Task[Unpacked]) -> None:
        """End an unpacking, and remove what it made."""
        unpacking.cancel()
        await asyncio.wait((unpacking,))
        if not unpacking.cancelled() and unpacking.exception() is None:
            unpacked = unpacking.result()
            unpacked.close()
            await self._drop(unpacked.number, unpacked.path)

    async def _drop(self, number: int, path: Path) -> None:
        try:
            await asyncio.to_thread(_remove_all, [path.parent])
        finally:
            self.busy.discard(number)

    async def _finish(self, wanted: WantedLayer, unpacked: Unpacked) -> None:
        if unpacked.diff_id != wanted.diff_id:
            raise wanted.bad(
                f"it unpacks to the diff id {unpacked.diff_id}, "
                f"but the image's configuration says {wanted.diff_id}"
            )
        if unpacked.ignored_xattrs:
            log.warning(
                "%s: %d extended attributes were left out: they are reserved, or the filesystem "
                "has none",
                wanted,
                unpacked.ignored_xattrs,
            )
        await self._parent_done(wanted)
        await self._adopt_parents(wanted, unpacked)
        await self._syncer.cover(self._syncer.ticket())

    def _commit(self, wanted: WantedLayer, unpacked: Unpacked) -> None:
        layer = Layer(
            wanted.chain_id,
            wanted.parent,
            wanted.diff_id,
            unpacked.number,
            unpacked.size,
            unpacked.inodes,
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

    async def _adopt_parents(self, wanted: WantedLayer, unpacked: Unpacked) -> None:
        """Give directories that the tar does not describe the attributes of those below."""
        if not wanted.parent:
            return
        parents = self._below(wanted.parent)
        if not unpacked.root_described:
            await asyncio.to_thread(_copy_root, parents[0], unpacked.path)
        await self._unpacker.adopt_parents(wanted, unpacked, parents)

    def _below(self, chain_id: str) -> list[Path]:
        paths = []
        while chain_id:
            layer = self._known(chain_id)
            paths.append(self.path(layer.number))
            chain_id = layer.parent
        return paths

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

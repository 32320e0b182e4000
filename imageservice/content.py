"""Blobs by digest: hashed while they are written, and named only when the digest was right.

A file in blobs/ is complete and verified. It counts after a restart if the database knows it: the
row is written after the file has been synced. A file in ingest/ that is named by a digest holds the
first bytes of that blob, from a transfer that broke or a daemon that ended; whoever wants the blob
next goes on from there. The other files there are somebody's of this daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from imageservice.errors import BadContentError
from imageservice.manifest import Descriptor
from imageservice.reference import is_digest

# Bytes collected while a thread hashes and writes those before: bounds memory.
FLUSH_SIZE = 512 * 1024
# Bytes that are worth handing to a thread that is idle: each time costs some 0.2 ms of processor.
MIN_FLUSH = 128 * 1024
# The kernel's default limit for a pipe (fs.pipe-max-size).
PIPE_SIZE = 1 << 20


class Tap:
    """A pipe that a blob's bytes flow through on their way to the store.

    Its reader may go away at any time: the store gets its bytes nevertheless.
    """

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(self._write_fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Write all of `data`, blocking while the pipe is full. For threads."""
        with self._lock:
            if self._write_fd < 0:
                return
            try:
                _write_all(self._write_fd, data)
            except BrokenPipeError:
                self._close_locked()

    @property
    def closed(self) -> bool:
        """Tell whether the writing end is closed, so that `close` has nothing to wait for."""
        return self._write_fd < 0

    def close(self) -> None:
        """Close the writing end, after a write that is under way. For threads; idempotent."""
        with self._lock:
            self._close_locked()

    def _close_locked(self) -> None:
        if self._write_fd >= 0:
            os.close(self._write_fd)
            self._write_fd = -1

    def close_reader(self) -> None:
        """Close the daemon's own reading end: a blocked write ends. Idempotent."""
        if self.read_fd >= 0:
            os.close(self.read_fd)
            self.read_fd = -1


class Ingest:
    """A blob on its way in. Bytes are hashed, stored and tapped by one thread at a time.

    What an earlier one left of the blob, in this daemon or one before, is where it goes on: see
    `replay`. An ingest that ends without having been committed leaves its bytes for the next.
    """

    def __init__(self, store: ContentStore, wanted: Descriptor, tap: Tap | None) -> None:
        """Open it; for the holder of `ContentStore.reserve` only."""
        self._store = store
        self._wanted = wanted
        self._tap = tap
        self._path = store.partial_path(wanted.digest)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._hash = hashlib.sha256()
        self._chunks: list[bytes] = []
        self._collected = 0
        self._job: Future[None] | None = None
        self._keep = True
        self._committed = False
        self.offset = 0  # bytes taken so far
        self.replayed = 0  # bytes that were there before

    async def replay(self) -> None:
        """Take the bytes that an earlier ingest left; none if they are too many to be right."""
        length = os.fstat(self._fd).st_size
        if length > self._wanted.size:
            os.ftruncate(self._fd, 0)
        elif length:
            self.replayed = length
            self._job = self._store.threads.submit(self._take_again, length)
            await _done(self._job)
            self.offset = length

    def _take_again(self, length: int) -> None:
        position = 0
        while position < length:
            chunk = os.read(self._fd, min(FLUSH_SIZE, length - position))
            if not chunk:
                raise OSError(f"{self._path} became shorter while it was read")
            self._hash.update(chunk)
            if self._tap is not None:
                self._tap.write(chunk)
            position += len(chunk)

    def discard(self) -> None:
        """Have `close` delete what has come: it is of no use to anybody."""
        self._keep = False

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes; raises BadContentError when there are more than announced."""
        self.offset += len(chunk)
        if self.offset > self._wanted.size:
            self.discard()
            raise BadContentError(
                f"{self._wanted.digest} has more than the {self._wanted.size} bytes announced"
            )
        self._chunks.append(chunk)
        self._collected += len(chunk)
        idle = self._job is None or self._job.done()
        if self._collected >= (MIN_FLUSH if idle else FLUSH_SIZE):
            await self._flush()

    async def _flush(self) -> None:
        """Hand the collected bytes to a thread, once it is done with those before."""
        if self._job is not None:
            await _done(self._job)
        chunks, self._chunks, self._collected = self._chunks, [], 0
        self._job = self._store.threads.submit(self._take, chunks)

    def _take(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            self._hash.update(chunk)
            _write_all(self._fd, chunk)
            if self._tap is not None:
                self._tap.write(chunk)

    async def commit(self) -> None:
        """Verify and give the blob its name; raises BadContentError, and keeps nothing then."""
        if self._chunks:
            await self._flush()
        if self._job is not None:
            await _done(self._job)
        digest = f"sha256:{self._hash.hexdigest()}"
        if self.offset != self._wanted.size or digest != self._wanted.digest:
            self.discard()
            raise BadContentError(
                f"{self._wanted.digest} of {self._wanted.size} bytes came as {self.offset} bytes "
                f"with the digest {digest}"
            )
        os.rename(self._path, self._store.path(digest))
        self._committed = True

    async def close(self) -> None:
        """Let go of file and tap; what has come stays, for the next ingest of the blob."""
        if self._committed:  # so that no thread is at either
            if self._tap is not None:
                self._tap.close()
            os.close(self._fd)
            return
        if self._tap is not None:
            await asyncio.wrap_future(self._store.threads.submit(self._tap.close))
        if self._job is not None:
            try:
                await _done(self._job)
            except OSError:  # whoever wrote has it, or has gone
                self.discard()
        await asyncio.wrap_future(self._store.threads.submit(self._dispose))

    def _dispose(self) -> None:
        try:
            if self._keep:
                for chunk in self._chunks:
                    _write_all(self._fd, chunk)
        except OSError:  # the disk is full: what is missing comes again
            self._keep = False
        empty = os.fstat(self._fd).st_size == 0
        os.close(self._fd)
        if empty or not self._keep:
            self._path.unlink(missing_ok=True)


async def _done(job: Future[None]) -> None:
    """Wait for a thread, which is not stopped when the wait is cancelled."""
    await asyncio.shield(asyncio.wrap_future(job))


class ContentStore:
    """The blobs below `root`/content."""

    def __init__(self, root: Path, threads: int) -> None:
        self.blobs = root / "content" / "blobs" / "sha256"
        self.ingests = root / "content" / "ingest"
        for directory in (self.blobs, self.ingests):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._reserved: dict[str, asyncio.Lock] = {}
        self._claims: Counter[str] = Counter()
        # A thread may block on a full pipe, so these are not asyncio's own.
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="blob")

    def path(self, digest: str) -> Path:
        """Return where the blob is or will be."""
        return self.blobs / digest.removeprefix("sha256:")

    def has(self, digest: str) -> bool:
        """Tell whether the blob is there, complete and verified."""
        return self.path(digest).exists()

    @asynccontextmanager
    async def reserve(self, digest: str) -> AsyncIterator[None]:
        """Hold the right to bring the blob in: whoever was at it has let go of its file."""
        lock = self._reserved.setdefault(digest, asyncio.Lock())
        self._claims[digest] += 1
        try:
            async with lock:
                yield
        finally:
            self._claims[digest] -= 1
            if not self._claims[digest]:
                del self._claims[digest], self._reserved[digest]

    def is_reserved(self, digest: str) -> bool:
        """Tell whether somebody is bringing the blob in."""
        return digest in self._reserved

    def partial_path(self, digest: str) -> Path:
        """Return where the blob's first bytes are while there are not all."""
        return self.ingests / digest.removeprefix("sha256:")

    def new_ingest_path(self) -> Path:
        """Return a fresh name for a file that is deleted when its maker is gone."""
        return self.ingests / secrets.token_hex(8)

    def put(self, digest: str, data: bytes) -> None:
        """Store a small blob whose digest the caller has verified."""
        path = self.new_ingest_path()
        path.write_bytes(data)
        os.rename(path, self.path(digest))
        self.partial_path(digest).unlink(missing_ok=True)  # of a daemon that ended before its sync

    def put_if_damaged(self, digest: str, data: bytes) -> None:
        """Store a small blob unless it is there with this content."""
        try:
            whole = self.path(digest).read_bytes() == data
        except FileNotFoundError:
            whole = False
        if not whole:
            self.put(digest, data)

    def set_aside(self, digest: str) -> Path | None:
        """Take a blob's name away at once; returns the file, which is still to be deleted."""
        path = self.new_ingest_path()
        try:
            os.rename(self.path(digest), path)
        except FileNotFoundError:
            return None
        return path

    def demote(self, digest: str) -> None:
        """Make a complete blob a partial one, which lacks nothing: it is verified when wanted."""
        with contextlib.suppress(FileNotFoundError):
            self.path(digest).rename(self.partial_path(digest))

    def sweep(self, known: Collection[str]) -> None:
        """Take up what an earlier daemon left; to be called before anything else.

        Blobs that the database lacks are partial ones from now on: nobody has seen to it that they
        survive a power loss, so they are verified again when they are wanted.
        """
        for path in self.ingests.iterdir():
            if not is_digest(f"sha256:{path.name}"):
                path.unlink()
        for path in self.blobs.iterdir():
            if (digest := f"sha256:{path.name}") not in known:
                self.demote(digest)

    def expire(self, older_than: float) -> list[int]:
        """Delete partial blobs to which nothing was added for `older_than` seconds.

        Returns the sizes, in bytes, of what is gone.
        """
        limit = time.time() - older_than
        gone: list[int] = []
        for path in self.ingests.iterdir():
            digest = f"sha256:{path.name}"
            if is_digest(digest) and digest not in self._reserved:
                with contextlib.suppress(FileNotFoundError):  # just finished, and so renamed
                    status = path.stat()
                    if status.st_mtime <= limit:
                        path.unlink()
                        gone.append(status.st_size)
        return gone

    def damaged(self, known: Mapping[str, int]) -> list[str]:
        """Return those of the known blobs (digest -> size) that are not there, or not whole.

        The content itself is not read: imageservice.verify does that.
        """
        with os.scandir(self.blobs) as entries:
            there = {entry.name: entry.stat().st_size for entry in entries}
        return [d for d, size in known.items() if there.get(d.removeprefix("sha256:")) != size]

    def close(self) -> None:
        """End the threads."""
        self.threads.shutdown(wait=True)


def _write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    if written < len(data):
        view = memoryview(data)
        while written < len(data):
            written += os.write(fd, view[written:])

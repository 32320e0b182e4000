"""Blobs by digest: hashed while they are written, and named only when the digest was right.

A file in blobs/ is complete and verified. It counts after a restart if the database knows it: the
row is written after the file has been synced.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import secrets
import threading
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from imageservice.errors import BadContentError
from imageservice.manifest import Descriptor

# Bytes collected while a thread hashes and writes those before: bounds memory.
FLUSH_SIZE = 512 * 1024
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
    """A blob on its way in. Bytes are hashed, stored and tapped by one thread at a time."""

    def __init__(self, store: ContentStore, wanted: Descriptor, tap: Tap | None) -> None:
        self._store = store
        self._wanted = wanted
        self._tap = tap
        self._path = store.new_ingest_path()
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()
        self._chunks: list[bytes] = []
        self._collected = 0
        self._job: Future[None] | None = None
        self.offset = 0  # bytes taken so far

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes; raises BadContentError when there are more than announced."""
        self.offset += len(chunk)
        if self.offset > self._wanted.size:
            raise BadContentError(
                f"{self._wanted.digest} has more than the {self._wanted.size} bytes announced"
            )
        self._chunks.append(chunk)
        self._collected += len(chunk)
        # An idle thread gets what there is, a busy one what has come by the time it is done.
        if self._job is None or self._job.done() or self._collected >= FLUSH_SIZE:
            await self._flush()

    async def _flush(self) -> None:
        """Hand the collected bytes to a thread, once it is done with those before."""
        if self._job is not None:
            await asyncio.wrap_future(self._job)
        chunks, self._chunks, self._collected = self._chunks, [], 0
        self._job = self._store.threads.submit(self._take, chunks)

    def _take(self, chunks: list[bytes]) -> None:
        with self._lock:
            for chunk in chunks:
                if self._fd < 0:
                    return
                self._hash.update(chunk)
                _write_all(self._fd, chunk)
                if self._tap is not None:
                    self._tap.write(chunk)

    async def commit(self) -> None:
        """Verify and give the blob its name; raises BadContentError."""
        await self._flush()
        assert self._job is not None
        await asyncio.wrap_future(self._job)
        digest = f"sha256:{self._hash.hexdigest()}"
        if self.offset != self._wanted.size or digest != self._wanted.digest:
            raise BadContentError(
                f"{self._wanted.digest} of {self._wanted.size} bytes came as {self.offset} bytes "
                f"with the digest {digest}"
            )
        os.rename(self._path, self._store.path(digest))

    async def close(self) -> None:
        """Let go of file and tap, and of what was not committed."""
        await asyncio.wrap_future(self._store.threads.submit(self._dispose))

    def _dispose(self) -> None:
        if self._tap is not None:
            self._tap.close()
        with self._lock:
            os.close(self._fd)
            self._fd = -1
        self._path.unlink(missing_ok=True)


class ContentStore:
    """The blobs below `root`/content."""

    def __init__(self, root: Path, threads: int) -> None:
        self._blobs = root / "content" / "blobs" / "sha256"
        self._ingests = root / "content" / "ingest"
        for directory in (self._blobs, self._ingests):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A thread may block on a full pipe, so these are not asyncio's own.
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="blob")

    def path(self, digest: str) -> Path:
        """Return where the blob is or will be."""
        return self._blobs / digest.removeprefix("sha256:")

    def has(self, digest: str) -> bool:
        """Tell whether the blob is there, complete and verified."""
        return self.path(digest).exists()

    def new_ingest_path(self) -> Path:
        """Return a fresh name for a blob on its way in."""
        return self._ingests / secrets.token_hex(8)

    def put(self, digest: str, data: bytes) -> None:
        """Store a small blob whose digest the caller has verified."""
        path = self.new_ingest_path()
        path.write_bytes(data)
        os.rename(path, self.path(digest))

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

    def sweep(self, known: Collection[str]) -> None:
        """Remove what an earlier daemon left: partial blobs, and those the database lacks."""
        for path in self._ingests.iterdir():
            path.unlink()
        for path in self._blobs.iterdir():
            if f"sha256:{path.name}" not in known:
                path.unlink()

    def damaged(self, known: Mapping[str, int]) -> list[str]:
        """Return those of the known blobs (digest -> size) that are not there, or not whole.

        The content itself is not read: imageservice.verify does that.
        """
        with os.scandir(self._blobs) as entries:
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

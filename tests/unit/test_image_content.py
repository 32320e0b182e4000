"""Blobs get their names only when their bytes are right; syncs are shared."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imageservice import syncing
from imageservice.content import ContentStore, Ingest, Tap
from imageservice.errors import BadContentError
from imageservice.manifest import Descriptor, digest_of
from imageservice.syncing import Syncer

DATA = bytes(range(256)) * 20_000


@pytest.fixture
def content(tmp_path: Path) -> Iterator[ContentStore]:
    store = ContentStore(tmp_path, threads=4)
    yield store
    store.close()


def wanted(data: bytes = DATA) -> Descriptor:
    return Descriptor("layer", digest_of(data), len(data))


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


async def fill(ingest: Ingest, data: bytes, size: int = 100_000) -> None:
    for start in range(0, len(data), size):
        await ingest.write(data[start : start + size])


async def test_a_blob_is_there_when_it_is_committed(content: ContentStore, tmp_path: Path) -> None:
    ingest = Ingest(content, wanted(), None)
    await fill(ingest, DATA)
    assert not content.has(wanted().digest)
    await ingest.commit()
    await ingest.close()
    assert content.path(wanted().digest).read_bytes() == DATA
    assert files(tmp_path) == [content.path(wanted().digest)]


@pytest.mark.parametrize(
    "data", [b"", DATA[:-1], DATA[:-1] + b"x"], ids=["nothing", "short", "different"]
)
async def test_a_blob_with_other_bytes_never_appears(
    content: ContentStore, tmp_path: Path, data: bytes
) -> None:
    ingest = Ingest(content, wanted(), None)
    await fill(ingest, data)
    with pytest.raises(BadContentError, match=wanted().digest):
        await ingest.commit()
    await ingest.close()
    assert files(tmp_path) == []


async def test_more_bytes_than_announced_are_refused_at_once(content: ContentStore) -> None:
    ingest = Ingest(content, wanted(b"abc"), None)
    with pytest.raises(BadContentError, match="more than"):
        await fill(ingest, b"abcd")
    await ingest.close()


async def test_a_tap_gets_the_same_bytes(content: ContentStore) -> None:
    tap = Tap()
    seen: list[bytes] = []

    def read() -> None:
        while chunk := os.read(tap.read_fd, 65536):
            seen.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    ingest = Ingest(content, wanted(), tap)
    await fill(ingest, DATA)
    await ingest.commit()
    await ingest.close()
    await asyncio.to_thread(reader.join)
    tap.close_reader()
    assert b"".join(seen) == DATA


async def test_a_blob_outlives_the_reader_of_its_tap(content: ContentStore) -> None:
    tap = Tap()
    ingest = Ingest(content, wanted(), tap)
    filling = asyncio.create_task(fill(ingest, DATA))
    await asyncio.sleep(0)
    tap.close_reader()  # the pipe is full or will be: the writer must not hang
    await filling
    await ingest.commit()
    await ingest.close()
    assert content.has(wanted().digest)


async def test_a_sweep_leaves_what_can_be_of_use(content: ContentStore, tmp_path: Path) -> None:
    content.put(digest_of(b"known"), b"known")
    content.put(digest_of(b"unknown"), b"unknown")
    content.new_ingest_path().write_bytes(b"somebody's")
    content.partial_path(digest_of(b"partial")).write_bytes(b"part")
    content.sweep({digest_of(b"known")})
    left = [
        content.path(digest_of(b"known")),
        content.partial_path(digest_of(b"unknown")),
        content.partial_path(digest_of(b"partial")),
    ]
    assert sorted(files(tmp_path)) == sorted(left)


async def test_partial_blobs_that_nobody_goes_on_with_expire(
    content: ContentStore, tmp_path: Path
) -> None:
    old, new = (content.partial_path(digest_of(data)) for data in (b"old", b"new"))
    busy = content.partial_path(wanted().digest)
    for path, age in ((old, 100), (new, 0), (busy, 100)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    async with content.reserve(wanted().digest):
        content.expire(50)
    assert sorted(files(tmp_path)) == sorted((new, busy))
    content.expire(50)
    assert files(tmp_path) == [new]


@pytest.mark.parametrize("length", [1, 1_000_000, len(DATA)], ids=["a bit", "some", "all"])
async def test_an_ingest_goes_on_where_the_last_one_ended(
    content: ContentStore, tmp_path: Path, length: int
) -> None:
    first = Ingest(content, wanted(), None)
    await fill(first, DATA[:length], size=length)
    await first.close()
    assert content.partial_path(wanted().digest).stat().st_size == length
    tap = Tap()
    seen = asyncio.create_task(asyncio.to_thread(read_all, tap.read_fd))
    second = Ingest(content, wanted(), tap)
    await second.replay()
    assert (second.offset, second.replayed) == (length, length)
    await fill(second, DATA[length:])
    await second.commit()
    await second.close()
    assert await seen == DATA
    tap.close_reader()
    assert files(tmp_path) == [content.path(wanted().digest)]


def read_all(fd: int) -> bytes:
    return b"".join(iter(lambda: os.read(fd, 65536), b""))


async def test_bytes_that_cannot_be_the_blobs_are_not_gone_on_with(
    content: ContentStore, tmp_path: Path
) -> None:
    partial = content.partial_path(wanted().digest)
    partial.write_bytes(DATA + b"more")
    ingest = Ingest(content, wanted(), None)
    await ingest.replay()
    assert (ingest.offset, partial.stat().st_size) == (0, 0)
    await ingest.close()
    assert files(tmp_path) == []


async def test_a_wrong_beginning_is_found_out_at_the_end(
    content: ContentStore, tmp_path: Path
) -> None:
    content.partial_path(wanted().digest).write_bytes(b"x" * 10)
    ingest = Ingest(content, wanted(), None)
    await ingest.replay()
    await fill(ingest, DATA[10:])
    with pytest.raises(BadContentError, match=wanted().digest):
        await ingest.commit()
    await ingest.close()
    assert files(tmp_path) == []


async def test_what_is_discarded_does_not_stay(content: ContentStore, tmp_path: Path) -> None:
    ingest = Ingest(content, wanted(), None)
    await fill(ingest, DATA[:1000])
    ingest.discard()
    await ingest.close()
    assert files(tmp_path) == []


async def test_a_blob_is_brought_in_by_one_at_a_time(content: ContentStore) -> None:
    order = []

    async def bring(name: str) -> None:
        async with content.reserve(wanted().digest):
            order.append(f"{name} begins")
            await asyncio.sleep(0)
            order.append(f"{name} ends")

    await asyncio.gather(bring("a"), bring("b"))
    assert order == ["a begins", "a ends", "b begins", "b ends"]


async def test_a_blob_set_aside_is_gone_at_once(content: ContentStore) -> None:
    content.put(digest_of(b"a"), b"a")
    aside = content.set_aside(digest_of(b"a"))
    assert aside is not None
    assert not content.has(digest_of(b"a"))
    assert content.set_aside(digest_of(b"a")) is None


class Disk:
    """Stands in for syncfs: each call waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.fail = False
        self.gate = threading.Semaphore(0)
        monkeypatch.setattr(syncing, "_syncfs", self.sync)

    def sync(self, path: Path) -> None:
        self.calls += 1
        self.gate.acquire()
        if self.fail:
            raise OSError(5, "Input/output error")


async def until_called(disk: Disk, calls: int) -> None:
    while disk.calls < calls:  # noqa: ASYNC110 - the call is in a thread
        await asyncio.sleep(0.001)


async def test_a_sync_that_began_before_a_write_does_not_cover_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, syncer = Disk(monkeypatch), Syncer(tmp_path)
    early = asyncio.create_task(syncer.cover(syncer.ticket()))
    await until_called(disk, 1)
    late = [asyncio.create_task(syncer.cover(syncer.ticket())) for _ in range(5)]
    disk.gate.release()
    await early
    await until_called(disk, 2)
    assert not any(task.done() for task in late)
    disk.gate.release()
    await asyncio.gather(*late)
    assert disk.calls == 2


async def test_what_is_covered_already_costs_no_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, syncer = Disk(monkeypatch), Syncer(tmp_path)
    disk.gate.release()
    ticket = syncer.ticket()
    await syncer.cover(ticket)
    await syncer.cover(ticket)
    assert disk.calls == 1


async def test_a_failed_sync_covers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, syncer = Disk(monkeypatch), Syncer(tmp_path)
    disk.fail = True
    disk.gate.release()
    with pytest.raises(OSError, match="Input/output"):
        await syncer.cover(syncer.ticket())
    disk.fail = False
    disk.gate.release()
    await syncer.cover(0)
    assert disk.calls == 2


async def test_the_real_filesystem_can_be_synced(tmp_path: Path) -> None:
    syncer = Syncer(tmp_path)
    await syncer.cover(syncer.ticket())

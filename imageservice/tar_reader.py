"""Entries of a tar, from a stream that is read once and forwards only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from imageservice import tar
from imageservice.tar import BLOCK, ZERO_BLOCK, Entry, TarError

# Entries of one layer: bounds the time and the inodes that one layer can cost.
MAX_ENTRIES = 1_000_000
# Consecutive PAX and long-name headers before the entry that they describe.
MAX_META_HEADERS = 16


class Stream(Protocol):
    """What a tar is read from."""

    def read(self, length: int) -> bytes:
        """Return exactly `length` bytes; raises TarError where the stream ends before."""

    def at_end(self) -> bool:
        """Tell whether not one more byte comes."""

    def pieces(self, length: int) -> Iterator[memoryview]:
        """Give `length` bytes in pieces without copying; raises TarError at an early end."""


class TarReader:
    """Iterates over entries; the caller takes an entry's data before it asks for the next."""

    def __init__(self, stream: Stream, *, max_entries: int = MAX_ENTRIES) -> None:
        self._stream = stream
        self._max_entries = max_entries
        self._remaining = 0  # of the current entry's data
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        count = 0
        while (entry := self._next()) is not None:
            count += 1
            if count > self._max_entries:
                raise TarError(f"more than {self._max_entries} entries")
            yield entry

    def data(self) -> Iterator[memoryview]:
        """Give the current entry's data, as much of it as was not yet taken."""
        length, self._remaining = self._remaining, 0
        return self._stream.pieces(length)

    def small_data(self) -> bytes:
        """Return the rest of the current entry's data, which the caller knows to be small."""
        length, self._remaining = self._remaining, 0
        return self._stream.read(length)

    def _next(self) -> Entry | None:
        records: list[tuple[bytes, bytes]] = []
        name = link = b""
        for _ in range(MAX_META_HEADERS):
            entry = self._header()
            if entry is None:
                if records or name or link:
                    raise TarError("the archive ends after an extended header")
                return None
            if entry.kind not in tar.META_KINDS:
                return self._complete(entry, records, name, link)
            data = self._meta(entry)
            if entry.kind == tar.GNU_LONGNAME:
                name = tar.cut(data)
            elif entry.kind == tar.GNU_LONGLINK:
                link = tar.cut(data)
            elif entry.kind != tar.PAX_GLOBAL:  # defaults that nobody relies on: ignored, as in Go
                records = tar.parse_pax(data)
        raise TarError(f"more than {MAX_META_HEADERS} extended headers before an entry")

    def _header(self) -> Entry | None:
        self._skip()
        if self._stream.at_end():
            return None
        block = self._stream.read(BLOCK)
        if block == ZERO_BLOCK:
            return None
        entry = tar.parse_header(block)
        self._expect(entry.size)
        return entry

    def _expect(self, size: int) -> None:
        self._remaining = size
        self._padding = -size % BLOCK

    def _skip(self) -> None:
        for _ in self._stream.pieces(self._remaining + self._padding):
            continue
        self._remaining = self._padding = 0

    def _meta(self, entry: Entry) -> bytes:
        if entry.size > tar.MAX_META:
            raise TarError(
                f"an extended header of {entry.size} bytes is over the limit of {tar.MAX_META}"
            )
        return self.small_data()

    def _complete(
        self, entry: Entry, records: list[tuple[bytes, bytes]], name: bytes, link: bytes
    ) -> Entry:
        if name:
            entry.name = name
        if link:
            entry.linkname = link
        if entry.kind == tar.GNU_SPARSE:
            self._old_sparse(entry)
        if records:
            tar.apply_pax(entry, records)
            if entry.kind == tar.REGULAR and entry.name.endswith(b"/"):
                entry.kind = tar.DIRECTORY
            self._expect(entry.size)
        if entry.sparse_in_data:
            self._sparse_from_data(entry)
        tar.check_entry(entry)
        return entry

    def _old_sparse(self, entry: Entry) -> None:
        """Read extension blocks, which stand between header and data, 21 extents each."""
        assert entry.sparse is not None
        while entry.extended:
            block = self._stream.read(BLOCK)
            more = tar.parse_old_sparse(block, 21)
            entry.sparse.extend(more)
            if len(entry.sparse) > tar.MAX_SPARSE:
                raise TarError(f"a sparse file has more than {tar.MAX_SPARSE} extents")
            entry.extended = block[504] != 0

    def _sparse_from_data(self, entry: Entry) -> None:
        """Read the map of GNU format 1.0: decimal lines, padded to a block, before the data."""
        text = b""
        numbers: list[int] = []
        wanted = 1
        taken = 0
        while len(numbers) < wanted:
            if taken + BLOCK > entry.size:
                raise TarError(f"entry {entry.name!r} has a sparse map longer than its data")
            text += self._stream.read(BLOCK)
            taken += BLOCK
            lines = text.split(b"\n")
            text = lines.pop()
            for line in lines:
                if len(numbers) < wanted:
                    numbers.append(_line_number(entry, line))
                if len(numbers) == 1:
                    wanted = 1 + 2 * min(numbers[0], tar.MAX_SPARSE + 1)
            if wanted > 1 + 2 * tar.MAX_SPARSE:
                raise TarError(f"a sparse file has more than {tar.MAX_SPARSE} extents")
        entry.sparse = list(zip(numbers[1::2], numbers[2::2], strict=True))
        entry.size -= taken
        self._remaining -= taken


def _line_number(entry: Entry, line: bytes) -> int:
    if not line.isdigit() or len(line) > 20:
        raise TarError(f"entry {entry.name!r} has a sparse map that is not numbers")
    return int(line)

"""Decompression of a stream in bounded pieces: gzip by igzip, zstd, or none at all.

The format is told by the first bytes, as every runtime does: media types lie.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import zstandard
from isal import igzip_lib

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# Skippable frames (zstd:chunked begins with none, seekable formats may): 0x184D2A5?.
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
# Output per step: bounds memory whatever the ratio of the input.
PIECE = 64 * 1024
# zstd --ultra --long=27, the most that its command line unpacks without being told to.
MAX_ZSTD_WINDOW = 1 << 27

# The package's stubs declare it as an instance.
_IsalError: type[Exception] = igzip_lib.error  # type: ignore[assignment]

Read = Callable[[], bytes]  # the next compressed bytes, b"" at the end


class CompressionError(Exception):
    """The compressed stream is damaged, cut short, or followed by something else."""


def is_gzip(head: bytes) -> bool:
    """Tell by the first two bytes."""
    return head[:2] == GZIP_MAGIC


def is_zstd(head: bytes) -> bool:
    """Tell by the first four bytes."""
    return head[:4] == ZSTD_MAGIC or (head[1:4] == _ZSTD_SKIPPABLE and head[0] & 0xF0 == 0x50)


def decompressed(read: Read) -> Iterator[bytes]:
    """Give the plain bytes of whatever `read` delivers.

    Raises CompressionError.
    """
    head = b""
    while len(head) < 4 and (more := read()):
        head += more
    if is_gzip(head):
        yield from _gunzip(head, read)
    elif is_zstd(head):
        yield from _unzstd(head, read)
    else:
        yield from _plain(head, read)


def _plain(head: bytes, read: Read) -> Iterator[bytes]:
    while head:
        yield head
        head = read()


def _gunzip(data: bytes, read: Read) -> Iterator[bytes]:
    while data:
        while len(data) < len(GZIP_MAGIC) and (more := read()):
            data += more
        if not is_gzip(data):
            raise CompressionError("the gzip stream is followed by something else")
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        yield from _member(member, data, read)
        data = member.unused_data or read()


def _member(member: igzip_lib.IgzipDecompressor, data: bytes, read: Read) -> Iterator[bytes]:
    while True:
        try:
            piece = member.decompress(data, PIECE)
        except _IsalError as err:
            raise CompressionError(f"the gzip stream is damaged: {err}") from err
        if piece:
            yield piece
        if member.eof:
            return
        data = b""
        if member.needs_input:
            data = read()
            if not data:
                raise CompressionError("the gzip stream ends early")


class _Source(io.BytesIO):
    """The file-like object that zstandard reads from; only read() is used."""

    def __init__(self, head: bytes, read: Read) -> None:
        super().__init__()
        self._rest = head
        self._read = read

    def read(self, size: int | None = -1) -> bytes:
        if not self._rest:
            self._rest = self._read()
        if size is None or size < 0:
            size = len(self._rest)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


def _unzstd(head: bytes, read: Read) -> Iterator[bytes]:
    source = _Source(head, read)
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
    # The reader does not tell an early end from an end: the digest of the diff does.
    reader = decompressor.stream_reader(source, read_across_frames=True)
    while True:
        try:
            piece = reader.read(PIECE)
        except zstandard.ZstdError as err:
            raise CompressionError(f"the zstd stream is damaged: {err}") from err
        if not piece:
            return
        yield piece

"""A layer's plain bytes as a tar stream, with the digest of all of them: its diff id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from imageservice.tar import TarError


class LayerStream:
    """Hands out bytes from `chunks` by length and hashes every chunk once.

    `limit` bounds the sum of all bytes: a decompression bomb ends there.
    """

    def __init__(self, chunks: Iterator[bytes], limit: int) -> None:
        self._chunks = chunks
        self._limit = limit
        self._chunk = b""
        self._view = memoryview(b"")
        self._position = 0
        self._hash = hashlib.sha256()
        self.length = 0

    def _next(self) -> bool:
        chunk = next(self._chunks, b"")
        self._hash.update(chunk)
        self.length += len(chunk)
        if self.length > self._limit:
            raise TarError(f"the layer unpacks to more than {self._limit} bytes")
        self._chunk = chunk
        self._view = memoryview(chunk)
        self._position = 0
        return bool(chunk)

    def at_end(self) -> bool:
        """Tell whether not one more byte comes."""
        return self._position == len(self._chunk) and not self._next()

    def read(self, length: int) -> bytes:
        """Return exactly `length` bytes; raises TarError where the stream ends before."""
        end = self._position + length
        if end <= len(self._chunk):
            piece = self._chunk[self._position : end]
            self._position = end
            return piece
        return b"".join(self.pieces(length))

    def pieces(self, length: int) -> Iterator[memoryview]:
        """Give `length` bytes in pieces without copying; raises TarError at an early end."""
        while length:
            if self._position == len(self._chunk) and not self._next():
                raise TarError("the archive ends early")
            piece = self._view[self._position : self._position + length]
            self._position += len(piece)
            length -= len(piece)
            yield piece

    def drain(self) -> None:
        """Read to the end: what follows the archive belongs to the digest as well."""
        while self._next():
            continue

    def digest(self) -> str:
        """Return the digest of all bytes read so far."""
        return f"sha256:{self._hash.hexdigest()}"

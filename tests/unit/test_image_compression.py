"""Layers are decompressed in bounded pieces, and damage is an error."""

from __future__ import annotations

import gzip
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from imageservice.compression import PIECE, CompressionError, decompressed

PLAIN = b"the quick brown fox " * 5000
GZIP = gzip.compress(PLAIN, mtime=0)
ZSTD = zstandard.ZstdCompressor().compress(PLAIN)
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"


def feed(data: bytes, size: int) -> Callable[[], bytes]:
    pieces = iter([data[start : start + size] for start in range(0, len(data), size)])
    return lambda: next(pieces, b"")


@pytest.mark.parametrize("size", [1, 3, 1000, 1 << 20])
@pytest.mark.parametrize(
    ("data", "plain"),
    [
        (GZIP, PLAIN),
        (ZSTD, PLAIN),
        (PLAIN, PLAIN),
        (b"", b""),
        (b"ab", b"ab"),
        (GZIP + GZIP, PLAIN * 2),
        (ZSTD + ZSTD, PLAIN * 2),
        (SKIPPABLE + ZSTD + SKIPPABLE, PLAIN),
        (gzip.compress(b""), b""),
    ],
    ids=["gzip", "zstd", "plain", "empty", "tiny", "members", "frames", "skippable", "gzip empty"],
)
def test_the_plain_bytes_come_out(data: bytes, plain: bytes, size: int) -> None:
    assert b"".join(decompressed(feed(data, size))) == plain


@pytest.mark.parametrize(
    "data",
    [
        GZIP[:-1],
        GZIP[: len(GZIP) // 2],
        GZIP + b"garbage",
        GZIP + b"\0" * 512,
        GZIP[:-8] + b"\0" * 8,
        GZIP[:30] + b"\xff" * 8 + GZIP[38:],
        ZSTD[:9] + b"\xff" * 8 + ZSTD[17:],
        ZSTD + b"garbage",
    ],
    ids=["cut", "half", "garbage", "zeros", "checksum", "damaged", "zstd damaged", "zstd garbage"],
)
def test_damage_is_an_error(data: bytes) -> None:
    with pytest.raises(CompressionError):
        list(decompressed(feed(data, 100)))


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_bomb_comes_in_small_pieces(compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(bytes(50 << 20))
    assert max(map(len, decompressed(feed(bomb, len(bomb))))) <= PIECE


def test_a_zstd_window_beyond_the_limit_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = writer.compress(PLAIN) + writer.flush()
    with pytest.raises(CompressionError):
        list(decompressed(feed(data, 100)))


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x1f\x8b", GZIP[:12], ZSTD[:5]]))
def test_any_bytes_come_out_or_are_an_error(data: bytes, head: bytes) -> None:
    try:
        for piece in decompressed(feed(head + data, 7)):
            assert len(piece) <= PIECE
    except CompressionError:
        return

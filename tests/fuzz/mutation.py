"""Inputs out of inputs: the same seed of the random source gives the same inputs."""

from __future__ import annotations

import random
from collections.abc import Sequence

MAX_INPUT = 64 * 1024
# What parsers of text and of tar turn on.
_WORDS = (
    b"\0", b"\xff", b"..", b"/", b"../../../etc", b"//", b":", b"@", b'"', b"'", b"[", b"]", b"\n",
    b"=", b"0", b"-1", b"18446744073709551616", b".wh.", b".wh..wh..opq", b"path=", b"size=",
    b"linkpath=", b"GNU.sparse.major=1", b"\x80" + bytes(11), b"ustar\0" + b"00", b"true", b"{}",
    b"https://", b"sha256:",
)  # fmt: skip
_TAR_FIELDS = ((0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (156, 1), (157, 100),
               (257, 8), (345, 155), (386, 96))  # fmt: skip


def mutated(source: random.Random, seeds: Sequence[bytes], *, blocks: bool) -> bytes:
    """Return a seed with some changes; `blocks`: often changes of tar headers, checksums right."""
    data = bytearray(source.choice(seeds))
    for _ in range(source.randint(1, 6)):
        if blocks and len(data) >= 512 and source.random() < 0.6:
            _change_header(source, data)
        else:
            _change(source, data, seeds)
    return bytes(data[:MAX_INPUT])


def _change(source: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    start = source.randint(0, len(data))
    end = min(len(data), start + source.choice((0, 1, 1, 4, 16, 512)))
    match source.randrange(6):
        case 0:
            data[start:end] = b""
        case 1:
            data[start:end] = source.randbytes(end - start)
        case 2:
            data[start:end] = source.choice(_WORDS)
        case 3:
            data[start:start] = data[source.randint(0, start) : start]
        case 4:
            other = source.choice(seeds)
            cut = source.randint(0, len(other))
            data[start:start] = other[cut : cut + source.choice((1, 30, 512, 2048))]
        case _:
            del data[start:]


def _change_header(source: random.Random, data: bytearray) -> None:
    """Change one field of a header, and put the checksum right, so that it is believed."""
    block = 512 * source.randrange(len(data) // 512)
    offset, length = source.choice(_TAR_FIELDS)
    value = source.choice(
        (
            source.choice(_WORDS),
            source.randbytes(length),
            b"%o\0" % source.getrandbits(40),
            b"01234567xgLKS"[source.randrange(13) :],
        )
    )
    data[block + offset : block + offset + length] = value[:length].ljust(length, b"\0")
    data[block + 148 : block + 156] = b" " * 8
    data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + 512])

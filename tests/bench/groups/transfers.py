"""The client's side of a transfer: it counts what comes and reads the frames' heads alone."""

from __future__ import annotations

import struct

from tests.integration import stream_clients
from tests.integration.stream_clients import V4, Connection, Spdy

MIB = 1 << 20
MB = 1_000_000
BUFFER = bytearray(MIB)
PIECE = stream_clients.PIECE


class Incomplete(Exception):
    """The connection ended before everything was through."""


class Streams(Spdy):
    """A SPDY connection with an error stream and one of another type, whose data is counted."""

    def __init__(self, url: str, kind: str, protocol: str = V4, **headers: str) -> None:
        self.counted = 0
        super().__init__(url, protocol)
        self.error = self.open(streamtype="error", **headers)
        self.data_stream = self.open(streamtype=kind, **headers)

    def take_one(self) -> None:
        """As Spdy's, but data is counted and not kept."""
        word, tail = struct.unpack(">II", self.connection.exactly(8))
        size = tail & 0xFFFFFF
        if word & 0x80000000 or word == getattr(self, "error", 1):
            self.connection.buffer = struct.pack(">II", word, tail) + self.connection.buffer
            super().take_one()
            return
        self.counted += skip(self.connection, size)
        if tail >> 24 & 1:
            self.ended.add(word)


def skip(connection: Connection, size: int) -> int:
    """Read over so many bytes; returns how many."""
    held = min(size, len(connection.buffer))
    connection.buffer = connection.buffer[held:]
    left = size - held
    while left:
        got = connection.sock.recv_into(BUFFER, min(left, len(BUFFER)))
        if not got:
            raise EOFError
        left -= got
    return size


def frame_head(connection: Connection) -> tuple[int, int]:
    """The opcode and the length of a frame from a server, which masks nothing (RFC 6455, 5.2)."""
    first, size = connection.exactly(2)
    if size == 126:
        (size,) = struct.unpack(">H", connection.exactly(2))
    elif size == 127:
        (size,) = struct.unpack(">Q", connection.exactly(8))
    return first & 15, size


def rate(counted: int, mib: int, seconds: float) -> float:
    if counted < mib * MIB:
        raise Incomplete(f"{counted} of {mib * MIB} bytes")
    return counted / MB / seconds

"""What an exec's streams carry over SPDY/3.1 and WebSocket, out of and into a container.

The client does as little as it can, so that the server is what is measured: of what comes it reads
the frames' heads alone, and what it sends was framed before.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable

import grpc

from tests.bench.client import SLEEP, Client
from tests.bench.operations import operation
from tests.bench.plan import Bench, column
from tests.bench.results import Results
from tests.bench.runtimes import Runtime
from tests.integration import stream_clients
from tests.integration.stream_clients import V4, Connection, Refused, Spdy, client_frame

MIB = 1 << 20
MB = 1_000_000
BUFFER = bytearray(MIB)
STDIN, STDOUT = 0, 1  # WebSocket channels
PIECE = stream_clients.PIECE

Transfer = Callable[[Client, str, int], float]  # container, MiB -> MB/s


class Incomplete(Exception):
    """The connection ended before everything was through."""


def measure(bench: Bench) -> None:
    """Each transport and way in turns, in one container of each runtime."""
    runtimes = bench.one_of_ours()
    running = {runtime: runtime.client.run(bench.shelf.small, *SLEEP) for runtime in runtimes}
    for title, transfer in WAYS.items():
        for runtime, results in bench.turns(title, bench.plan.streams, runtimes):
            _note(bench, runtime, title, transfer, running[runtime][1], results)
    for runtime, (pod, _) in running.items():
        runtime.client.stop_pod(pod)
        runtime.client.remove_pod(pod)


def _note(
    bench: Bench, runtime: Runtime, title: str, transfer: Transfer, container: str, results: Results
) -> None:
    row, who = operation("streaming", title), column(runtime)
    try:
        results.add(row, who, transfer(runtime.client, container, bench.plan.stream_mib))
    except (Refused, Incomplete, OSError, EOFError, grpc.RpcError) as err:
        results.say(row, who, f"fails: {type(err).__name__}")


def _command(mib: int, *, stdin: bool) -> tuple[str, ...]:
    if stdin:
        return ("sh", "-c", "cat >/dev/null")
    return ("head", "-c", str(mib * MIB), "/dev/zero")


# -- SPDY ---------------------------------------------------------------------------------------


class _Streams(Spdy):
    """A SPDY connection whose streams are open; from then on it is read by hand."""

    def __init__(self, url: str, *, stdin: bool) -> None:
        self.counted = 0
        self._status = bytearray()
        self._left = self._stream = 0
        self._stdin = stdin
        super().__init__(url, V4)
        self.error = self.open(streamtype="error")
        self.data_stream = self.open(streamtype="stdin" if stdin else "stdout")

    def take_one(self) -> None:
        """As Spdy's, but data is counted and not kept."""
        word, tail = struct.unpack(">II", self.connection.exactly(8))
        size = tail & 0xFFFFFF
        if word & 0x80000000 or word == getattr(self, "error", 1):
            self.connection.buffer = struct.pack(">II", word, tail) + self.connection.buffer
            super().take_one()
            return
        self.counted += _skip(self.connection, size)
        if tail >> 24 & 1:
            self.ended.add(word)


def _skip(connection: Connection, size: int) -> int:
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


def spdy_out(client: Client, container: str, mib: int) -> float:
    """MB/s of what comes."""
    url = client.exec_url(container, *_command(mib, stdin=False), stdin=False)
    began = time.perf_counter()
    streams = _Streams(url, stdin=False)
    try:
        streams.until(lambda: streams.data_stream in streams.ended or streams.over)
        seconds = time.perf_counter() - began
    finally:
        streams.hang_up()
    return _rate(streams.counted, mib, seconds)


def spdy_in(client: Client, container: str, mib: int) -> float:
    """MB/s of what is sent and read to its end."""
    url = client.exec_url(container, *_command(mib, stdin=True), stdin=True)
    streams = _Streams(url, stdin=True)
    try:
        frames = streams.frames(streams.data_stream, bytes(MIB))
        began = time.perf_counter()
        for _ in range(mib):
            streams.send(frames)
        streams.end(streams.data_stream)
        streams.until(lambda: streams.error in streams.ended or streams.over)
        seconds = time.perf_counter() - began
        _check_status(streams.data(streams.error))
    finally:
        streams.hang_up()
    return mib * MIB / MB / seconds


# -- WebSocket ----------------------------------------------------------------------------------


def websocket_out(client: Client, container: str, mib: int) -> float:
    """MB/s of what comes."""
    url = client.exec_url(container, *_command(mib, stdin=False), stdin=False)
    began = time.perf_counter()
    connection = stream_clients.websocket_connection(url, V4)
    counted = 0
    try:
        while counted < mib * MIB:
            opcode, size = _frame_head(connection)
            if opcode == 8:
                break
            channel = connection.exactly(1)[0] if size else STDIN
            counted += _skip(connection, max(0, size - 1)) * (channel == STDOUT)
        seconds = time.perf_counter() - began
    finally:
        connection.close()
    return _rate(counted, mib, seconds)


def websocket_in(client: Client, container: str, mib: int) -> float:
    """MB/s of what is sent and read to its end: v4 has no end of stdin, so the command counts."""
    command = ("sh", "-c", f"head -c {mib * MIB} >/dev/null; echo end")
    url = client.exec_url(container, *command, stdin=True)
    connection = stream_clients.websocket_connection(url, V4)
    try:
        piece = client_frame(2, bytes((STDIN,)) + bytes(PIECE))
        frames = piece * (MIB // PIECE)
        began = time.perf_counter()
        for _ in range(mib):
            connection.sock.sendall(frames)
        while _frame_head_and_skip(connection) != 8:
            pass
        seconds = time.perf_counter() - began
    finally:
        connection.close()
    return mib * MIB / MB / seconds


def _frame_head(connection: Connection) -> tuple[int, int]:
    """The opcode and the length of a frame from a server, which masks nothing (RFC 6455, 5.2)."""
    first, size = connection.exactly(2)
    if size == 126:
        (size,) = struct.unpack(">H", connection.exactly(2))
    elif size == 127:
        (size,) = struct.unpack(">Q", connection.exactly(8))
    return first & 15, size


def _frame_head_and_skip(connection: Connection) -> int:
    opcode, size = _frame_head(connection)
    _skip(connection, size)
    return opcode


# -- both ---------------------------------------------------------------------------------------


def _rate(counted: int, mib: int, seconds: float) -> float:
    if counted < mib * MIB:
        raise Incomplete(f"{counted} of {mib * MIB} bytes")
    return counted / MB / seconds


def _check_status(status: bytes) -> None:
    """The exec's own word at its end (v4: a Status as JSON)."""
    if json.loads(status).get("status") != "Success":
        raise Incomplete(status.decode(errors="replace"))


WAYS: dict[str, Transfer] = {
    "SPDY, out": spdy_out,
    "SPDY, in": spdy_in,
    "WebSocket, out": websocket_out,
    "WebSocket, in": websocket_in,
}

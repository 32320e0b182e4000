"""What streams carry over SPDY/3.1 and WebSocket: an exec's, and a port-forward's (forwarding.py).

The client does as little as it can, so that the server is what is measured: of what comes it reads
the frames' heads alone, and what it sends was framed before. The clock runs from the first data on:
what an exec takes to start is in another table.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import grpc

from tests.bench.client import SLEEP, Client
from tests.bench.groups import forwarding
from tests.bench.groups.transfers import MB, MIB, PIECE, Incomplete, Streams, frame_head, rate, skip
from tests.bench.operations import operation
from tests.bench.plan import Bench, column, in_peace
from tests.bench.results import Results
from tests.bench.runtimes import Runtime
from tests.integration import stream_clients
from tests.integration.stream_clients import V4, Connection, Refused, client_frame

STDIN, STDOUT = 0, 1  # WebSocket channels

Transfer = Callable[[Client, str, int], float]  # container or pod, MiB -> MB/s


def measure(bench: Bench) -> None:
    """In each round each transport and way in turns, in one container and one pod of each runtime.

    All of them in each round: some seconds in which the machine is slow are to meet all of them.
    """
    runtimes = bench.one_of_ours()
    running = {runtime: runtime.client.run(bench.shelf.small, *SLEEP) for runtime in runtimes}
    pods = {runtime: forwarding.run_pod(runtime.client) for runtime in runtimes}
    containers = {runtime: container for runtime, (_, container) in running.items()}
    ways = [(title, transfer, containers) for title, transfer in WAYS.items()]
    ways += [(title, transfer, pods) for title, transfer in forwarding.WAYS.items()]
    for results, ordered in bench.rounds("streams", bench.plan.streams, runtimes):
        for title, transfer, targets in ways:
            for runtime in in_peace(ordered):
                _note(bench, runtime, title, transfer, targets[runtime], results)
    for runtime, (pod, _) in running.items():
        for each in (pod, pods[runtime]):
            runtime.client.take_away(each)


def _note(
    bench: Bench, runtime: Runtime, title: str, transfer: Transfer, target: str, results: Results
) -> None:
    row, who = operation("streaming", title), column(runtime)
    try:
        results.add(row, who, transfer(runtime.client, target, bench.plan.stream_mib))
    except (Refused, Incomplete, OSError, EOFError, grpc.RpcError) as err:
        results.say(row, who, f"fails: {type(err).__name__}")


def _command(mib: int, *, stdin: bool) -> tuple[str, ...]:
    if stdin:
        return ("sh", "-c", "cat >/dev/null; echo end")
    return ("head", "-c", str(mib * MIB), "/dev/zero")


# -- SPDY ---------------------------------------------------------------------------------------


def spdy_out(client: Client, container: str, mib: int) -> float:
    """MB/s of what comes."""
    url = client.exec_url(container, *_command(mib, stdin=False), stdin=False)
    streams = Streams(url, "stdout")
    try:
        streams.until(lambda: streams.counted or streams.over)
        began = time.perf_counter()
        streams.until(lambda: streams.data_stream in streams.ended or streams.over)
        seconds = time.perf_counter() - began
    finally:
        streams.hang_up()
    return rate(streams.counted, mib, seconds)


def spdy_in(client: Client, container: str, mib: int) -> float:
    """MB/s of what is sent and read to its end."""
    url = client.exec_url(container, *_command(mib, stdin=True), stdin=True)
    streams = Streams(url, "stdin")
    try:
        streams.open(streamtype="stdout")
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
    connection = stream_clients.websocket_connection(url, V4)
    counted, began = 0, 0.0
    try:
        while counted < mib * MIB:
            opcode, size = frame_head(connection)
            if opcode == 8:
                break
            channel = connection.exactly(1)[0] if size else STDIN
            counted += skip(connection, max(0, size - 1)) * (channel == STDOUT)
            began = began or time.perf_counter()
        seconds = time.perf_counter() - began
    finally:
        connection.close()
    return rate(counted, mib, seconds)


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


def _frame_head_and_skip(connection: Connection) -> int:
    opcode, size = frame_head(connection)
    skip(connection, size)
    return opcode


# -- both ---------------------------------------------------------------------------------------


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

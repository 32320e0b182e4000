"""Port-forward: connections of a client, each joined with one to the pod's localhost.

    SPDY:      for each connection the client opens an error and a data stream of one request id
    WebSocket: channels 2n and 2n+1 are the data and the errors of the n-th port that was asked for;
               each begins with the port, 16 bits, little-endian

What goes wrong with one connection ends that one alone. A client takes any text on an error stream
for the end of the whole, so there is none when an established connection is reset: its data ends.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from api.errors import CRIError, InvalidArgumentError
from criserver.streaming.client_stream import ClientStream, StreamResetError
from criserver.streaming.fds import FdReader, FdWriter, duplicate

log = logging.getLogger(__name__)

SPDY_PROTOCOL = "portforward.k8s.io"
TUNNEL_PROTOCOL = f"SPDY/3.1+{SPDY_PROTOCOL}"

MAX_PORT = 65535


@dataclass(frozen=True)
class Forward:
    """A port-forward that a client has asked for with its token."""

    what: str  # for messages: "port-forward to pod ID"
    ports: tuple[int, ...]  # what the request names; over SPDY each stream names its own
    connect: Callable[[int], Awaitable[socket.socket]]  # raises CRIError


@dataclass
class _Pair:
    data: ClientStream | None = None
    error: ClientStream | None = None
    timer: asyncio.TimerHandle | None = None


def parse_port(text: str) -> int:
    """Return a TCP port. Raises InvalidArgumentError, for "53/udp" too."""
    number, slash, protocol = text.partition("/")
    if slash and protocol.lower() != "tcp":
        raise InvalidArgumentError(
            f"port {text[:32]!r} cannot be forwarded: port-forward carries TCP only"
        )
    if number.isascii() and number.isdigit() and 1 <= int(number[:6]) <= MAX_PORT:
        return int(number)
    raise InvalidArgumentError(f"port {text[:32]!r} is not a TCP port (1 to {MAX_PORT})")


class StreamPairs:
    """The connections over one SPDY connection."""

    def __init__(self, forward: Forward, creation_seconds: float) -> None:
        self._forward = forward
        self._seconds = creation_seconds
        self._pairs: dict[str, _Pair] = {}  # of which a half is missing
        self._tasks: set[asyncio.Task[None]] = set()

    def opened(self, stream: ClientStream) -> None:
        """Take a stream; refuses one that says nothing sensible."""
        kind = stream.headers.get("streamtype", "")
        name = stream.headers.get("requestid") or self._guess_request(stream, kind)
        pair = self._pairs.setdefault(name, _Pair())
        if kind not in ("data", "error") or getattr(pair, kind) is not None:
            log.warning("%s: a stream of type %r is refused", self._forward.what, kind[:32])
            stream.reset()
            return
        setattr(pair, kind, stream)
        if pair.data is not None and pair.error is not None:
            del self._pairs[name]
            self._start(pair, pair.data, pair.error)
        elif pair.timer is None:
            loop = asyncio.get_running_loop()
            pair.timer = loop.call_later(self._seconds, self._expire, name)

    @staticmethod
    def _guess_request(stream: ClientStream, kind: str) -> str:
        """Return a request id for old clients: the error stream comes first, the data next."""
        return f"stream {stream.stream_id - (2 if kind == 'data' else 0)}"

    def _start(self, pair: _Pair, data: ClientStream, error: ClientStream) -> None:
        if pair.timer is not None:
            pair.timer.cancel()
        task = asyncio.create_task(_forward(self._forward, data, error))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _expire(self, name: str) -> None:
        pair = self._pairs.pop(name)
        log.warning("%s: request %r came with one stream", self._forward.what, name[:32])
        for stream in (pair.data, pair.error):
            if stream is not None:
                stream.reset()

    async def close(self) -> None:
        """End every connection."""
        for pair in self._pairs.values():
            if pair.timer is not None:
                pair.timer.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


async def _forward(forward: Forward, data: ClientStream, error: ClientStream) -> None:
    """Serve one connection over SPDY."""
    error.discard()
    try:
        port = parse_port(data.headers.get("port", ""))
        await _join(await forward.connect(port), data)
    except CRIError as err:
        log.warning("%s: %s", forward.what, err)
        error.write_now(f"{forward.what}: {err}".encode())
        error.end()
        data.reset()
    except (ConnectionError, StreamResetError) as err:
        log.debug("%s: a connection was reset: %s", forward.what, err)
        error.end()
        data.reset()
    else:
        error.end()
        data.end()


async def forward_channels(
    forward: Forward, pairs: list[tuple[ClientStream, ClientStream]]
) -> None:
    """Serve the ports of a WebSocket, until the last of them is done."""
    await asyncio.gather(
        *(
            _forward_channel(forward, port, data, error)
            for port, (data, error) in zip(forward.ports, pairs, strict=True)
        )
    )


async def _forward_channel(
    forward: Forward, port: int, data: ClientStream, error: ClientStream
) -> None:
    for stream in (data, error):
        await stream.write(port.to_bytes(2, "little"))
    try:
        # The client cannot end a channel: when the pod has, nothing is left to wait for.
        await _join(await forward.connect(port), data, half_close=False)
    except CRIError as err:
        log.warning("%s: %s", forward.what, err)
        error.write_now(f"{forward.what}: {err}".encode())
    except ConnectionError as err:
        log.debug("%s: a connection was reset: %s", forward.what, err)
    data.discard()
    data.end()
    error.end()


async def _join(sock: socket.socket, stream: ClientStream, *, half_close: bool = True) -> None:
    """Move bytes both ways until both ends have come. Raises ConnectionError, StreamResetError."""
    writer = FdWriter(duplicate(sock.fileno()))
    reader = FdReader(sock.detach())
    tasks = {
        asyncio.create_task(_to_pod(stream, writer)),
        from_pod := asyncio.create_task(_from_pod(reader, stream)),
    }
    try:
        pending = tasks
        while pending and not (from_pod.done() and not half_close):
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises what went wrong with it
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        writer.close()
        reader.close()


async def _to_pod(stream: ClientStream, writer: FdWriter) -> None:
    while data := await stream.read():
        try:
            await writer.write(data)
        except ConnectionError:  # what the pod has sent before still counts: the reader goes on
            stream.discard()
            return
    writer.shutdown()


async def _from_pod(reader: FdReader, stream: ClientStream) -> None:
    while data := await reader.read():
        await stream.write(data)
    stream.end()

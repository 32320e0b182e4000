"""One stream of a client's connection, whichever protocol carries it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from criserver.streaming.buffer import Buffer
from criserver.streaming.connection import Connection


class StreamResetError(Exception):
    """The client has given the stream up: nothing more comes, nothing more is wanted."""


class Link(Protocol):
    """What carries streams: SPDY, or the channels of a WebSocket."""

    connection: Connection

    def send(self, stream_id: int, data: Buffer) -> None:
        """Send data on a stream that is open; otherwise nothing happens."""

    def send_end(self, stream_id: int) -> None:
        """End a stream, where the protocol can say so. Idempotent."""

    def send_reset(self, stream_id: int) -> None:
        """Give a stream up, where the protocol can say so. Idempotent."""

    def close(self, reason: str = "") -> None:
        """Say that the connection ends; a reason is one that the client did not expect."""


class ClientStream:
    """Bytes both ways. `read` has one caller at a time; `write` waits for the client."""

    def __init__(self, link: Link, stream_id: int, headers: Mapping[str, str]) -> None:
        self._link = link
        self._connection = link.connection
        self.stream_id = stream_id
        self.headers = headers
        self._received: deque[Buffer] = deque()
        self._ended = False
        self._reset = False
        self._discarding = False
        self._waiter: asyncio.Future[None] | None = None

    # --- called by the link ---

    def feed(self, data: Buffer) -> None:
        """Take what the client has sent."""
        if not self._discarding:
            self._connection.hold(len(data))
            self._received.append(data)
            self._wake()

    def feed_end(self) -> None:
        """Take the end of what the client sends."""
        self._ended = True
        self._wake()

    def feed_reset(self) -> None:
        """Take the client's giving up."""
        self._reset = True
        self.discard()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- called by whoever uses the stream ---

    async def read(self) -> Buffer:
        """Return what has come, waiting for it; b"" at the end. Raises StreamResetError."""
        while not self._received:
            if self._reset:
                raise StreamResetError
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = self._received.popleft()
        self._connection.release(len(data))
        return data

    def discard(self) -> None:
        """Take nothing of what still comes: nobody reads it, and it must not hold up the rest."""
        self._discarding = True
        while self._received:
            self._connection.release(len(self._received.popleft()))

    async def write(self, data: Buffer) -> None:
        """Send data; returns when the client takes more. Of a stream that is over, it is dropped.

        Raises ConnectionResetError when the client has gone.
        """
        self.write_now(data)
        await self._connection.drain()

    def write_now(self, data: Buffer) -> None:
        """Send a little data without waiting for room."""
        self._link.send(self.stream_id, data)

    def end(self) -> None:
        """Send nothing more. Idempotent."""
        self._link.send_end(self.stream_id)

    def reset(self) -> None:
        """Give the stream up. Idempotent."""
        self.discard()
        self._link.send_reset(self.stream_id)

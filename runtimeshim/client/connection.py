"""Requests and answers over one SEQPACKET socket, on the event loop."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

from runtimeshim import wire


def settle(future: asyncio.Future[None]) -> None:
    """Resolve a future that may be resolved, or cancelled, already."""
    if not future.done():
        future.set_result(None)


class NotSentError(ConnectionError):
    """The other side was gone before it could have read the request: it may be made anew."""


class Connection:
    """Requests and answers over one SEQPACKET socket, matched by id."""

    def __init__(
        self,
        sock: socket.socket,
        on_event: Callable[[wire.Message], None],
        on_close: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_event = on_event
        self._on_close = on_close
        self._waiting: dict[int, asyncio.Future[tuple[wire.Message, list[int]]]] = {}
        self._next = 1
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)
        self.closed = False

    def next_id(self) -> int:
        """Return an id that no request of this connection has had."""
        self._next += 1
        return self._next

    async def send(self, message: wire.Message, fds: Sequence[int] = ()) -> None:
        """Send without waiting for an answer. Raises NotSentError."""
        while True:
            if self.closed:
                raise NotSentError("the connection is closed")
            try:
                wire.send(self._sock, message, fds)
                return
            except BlockingIOError:
                await self._writable()
            except ConnectionError as err:
                raise NotSentError(str(err)) from err

    async def _writable(self) -> None:
        ready = self._loop.create_future()
        self._loop.add_writer(self._sock, settle, ready)
        try:
            await ready
        finally:
            if not self.closed:
                self._loop.remove_writer(self._sock)

    async def call(
        self, message: wire.Message, fds: Sequence[int] = ()
    ) -> tuple[wire.Message, list[int]]:
        """Send a request and return its answer with the fds that came along."""
        request = message.setdefault("id", self.next_id())
        future: asyncio.Future[tuple[wire.Message, list[int]]] = self._loop.create_future()
        self._waiting[request] = future
        try:
            await self.send(message, fds)
            return await future
        finally:
            self._waiting.pop(request, None)

    def _readable(self) -> None:
        try:
            received = wire.receive(self._sock)
        except BlockingIOError:
            return
        except OSError:
            received = None  # what cannot be read any more is an end as well
        if received is None:
            self.close()
            self._on_close()
            return
        message, fds = received
        future = self._waiting.pop(message.get("id", 0), None)
        if future is not None and not future.done():
            future.set_result((message, fds))
            return
        for fd in fds:
            os.close(fd)
        self._on_event(message)

    def close(self) -> None:
        """Close the socket; every waiting request fails."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionResetError("the other side has closed"))
        self._waiting.clear()


async def receive_one(sock: socket.socket) -> tuple[wire.Message, list[int]] | None:
    """Wait for one message."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    ready = loop.create_future()
    loop.add_reader(sock, settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)
    return wire.receive(sock)

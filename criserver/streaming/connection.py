"""A client's TCP or TLS connection on the event loop: bounded both ways, and ended for a reason.

What is received goes to `receive`, a function that the phases of a connection exchange: first the
HTTP request is read, then the frames. Bytes that nobody has taken yet are held by their streams and
counted here: while they are too many nothing is read, so that the client waits. No end of file is
read then either, so something is sent from time to time, which is refused where no client is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any

# Bounds what the client may have in our memory before its container takes it.
MAX_HELD = 1024 * 1024
# Bounds what waits for the client. Data waits for room, but answers (to pings, say) do not.
MAX_UNSENT = 256 * 1024
MAX_UNSENT_ANSWERS = 4 * 1024 * 1024

# While both sides keep up nothing ever waits: after so many bytes others get their turn.
TURN = 1024 * 1024

PROBE_SECONDS = 5.0  # of a client that is not read
LINGER_SECONDS = 5.0  # what a client gets to take the end and to disconnect

# A client that has vanished without a FIN: the kernel finds out after 30 + 3 * 10 s.
KEEPALIVE = {
    socket.TCP_KEEPIDLE: 30,
    socket.TCP_KEEPINTVL: 10,
    socket.TCP_KEEPCNT: 3,
}
_TCP_ESTABLISHED = 1  # linux/tcp_states.h; tcpi_state is the first byte of tcp_info

GONE = "the client has gone"


class Connection(asyncio.Protocol):
    """One connection, from accept to close."""

    def __init__(self, opened: Callable[[Connection], None]) -> None:
        self._opened = opened
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._held = 0
        self._turn = 0
        self._room = asyncio.Event()
        self._room.set()
        self._probing: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._idle_seconds = 0.0
        self._active_at = loop.time()
        self.receive: Callable[[bytes], None] = lambda _: None
        self.probe: Callable[[], None] = lambda: None  # sends something that needs no answer
        self.ended: asyncio.Future[str] = loop.create_future()  # why the streams are to end
        self.lost: asyncio.Future[None] = loop.create_future()

    # --- called by the event loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=MAX_UNSENT)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self._opened(self)

    def data_received(self, data: bytes) -> None:
        """Hand on what has come."""
        self._active_at = self._loop.time()
        self.receive(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake everybody who waits for the client."""
        self.end(GONE)
        self._room.set()
        for timer in (self._probing, self._idle):
            if timer is not None:
                timer.cancel()
        self.receive = self._discard
        if not self.lost.done():
            self.lost.set_result(None)

    def pause_writing(self) -> None:
        """Have writers wait."""
        self._room.clear()

    def resume_writing(self) -> None:
        """Have writers go on."""
        self._room.set()

    # --- called by the streams ---

    def end(self, reason: str) -> None:
        """Have the streams end, for a reason that the client is told. The first one counts."""
        if not self.ended.done():
            self.ended.set_result(reason)

    async def wait(self, work: asyncio.Future[Any], timeout: float | None = None) -> bool:
        """Wait for some work, but not beyond the end of the streams; tells whether it is done."""
        either: set[asyncio.Future[Any]] = {work, self.ended}
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        return work.done()

    def end_when_idle(self, seconds: float) -> None:
        """End the streams when nothing has come or gone for so long."""
        self._idle_seconds = seconds
        self._idle = self._loop.call_later(seconds, self._check_idle)

    def _check_idle(self) -> None:
        left = self._active_at + self._idle_seconds - self._loop.time()
        if left <= 0:
            self.end(f"the stream was idle for {self._idle_seconds:g} s")
        else:
            self._idle = self._loop.call_later(left, self._check_idle)

    def write(self, data: bytes) -> None:
        """Send, or keep until it can be sent. A client that reads no answers is cut off."""
        transport = self._transport
        if transport is None or transport.is_closing() or not data:
            return
        self._active_at = self._loop.time()
        self._turn += len(data)
        transport.write(data)
        if transport.get_write_buffer_size() > MAX_UNSENT_ANSWERS:
            transport.abort()

    async def drain(self) -> None:
        """Wait until there is room to write. Raises ConnectionResetError: the client has gone."""
        if not self._room.is_set():
            await self._room.wait()
        elif self._turn > TURN:
            self._turn = 0
            await asyncio.sleep(0)
        if self.lost.done():
            raise ConnectionResetError(GONE)

    def hold(self, count: int) -> None:
        """Count bytes that wait to be taken."""
        self._held += count
        if self._held > MAX_HELD and self._probing is None and self._transport is not None:
            self._transport.pause_reading()
            self._probing = self._loop.call_later(PROBE_SECONDS, self._check_client)

    def release(self, count: int) -> None:
        """Count bytes that have been taken."""
        self._held -= count
        if (
            self._held <= MAX_HELD // 2
            and self._probing is not None
            and self._transport is not None
        ):
            self._probing.cancel()
            self._probing = None
            self._transport.resume_reading()

    def _check_client(self) -> None:
        """Look at the socket's state, and send something that will change it if nobody is there."""
        assert self._transport is not None
        sock = self._transport.get_extra_info("socket")
        (state,) = struct.unpack_from("B", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1))
        if state != _TCP_ESTABLISHED:
            self._transport.abort()
            return
        self.probe()
        self._probing = self._loop.call_later(PROBE_SECONDS, self._check_client)

    async def finish(self) -> None:
        """Close when everything is sent and the client has disconnected, or does not in time.

        A socket that is closed with unread input is reset, and the reset takes away what the client
        has not read yet: so its input is read until it ends.
        """
        self.receive = self._discard
        self.release(self._held)
        transport = self._transport
        assert transport is not None
        if transport.can_write_eof():
            transport.set_write_buffer_limits(high=0)  # room is then when everything is sent
            with contextlib.suppress(OSError, TimeoutError):  # the client has gone, or is too slow
                async with asyncio.timeout(LINGER_SECONDS):
                    await self._room.wait()
                transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
        else:
            transport.close()  # TLS: the end has a message of its own
        await asyncio.wait({self.lost}, timeout=LINGER_SECONDS)
        self.abort()

    @staticmethod
    def _discard(_: bytes) -> None:
        """Take input that comes after the end."""

    def abort(self) -> None:
        """Close at once. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

"""The HTTP server of the metrics: GET /metrics, on a unix socket or a TCP port.

Clients are few and ask for one thing, so that h11 and a stream are all that it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

import h11

from criserver.config_observability import Address
from criserver.config_schema import ConfigError

log = logging.getLogger(__name__)

PATH = "/metrics"
MAX_HEAD = 16 * 1024  # bytes of a request's head; Prometheus sends some 300
MAX_CLIENTS = 16  # a scraper or two; each costs a connection and may cause work
# Prometheus asks again on the same connection, each minute at the least as it is configured.
IDLE_SECONDS = 120.0
WRITE_SECONDS = 10.0
READ_SIZE = 4096

TEXT = "text/plain; charset=utf-8"

Exposition = Callable[[str], Awaitable[tuple[bytes, str]]]


class Endpoint:
    """Serves what `exposition`, called with the Accept header, returns with its media type."""

    def __init__(self, address: Address, exposition: Exposition) -> None:
        self._address = address
        self._exposition = exposition
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. A unix socket has mode 0600. Raises ConfigError."""
        address = self._address
        try:
            if address.path:
                self._server = await self._listen_unix(address.path)
                log.info("metrics on unix://%s%s", address.path, PATH)
                return
            self._server = await asyncio.start_server(self._serve, address.host, address.port)
        except OSError as err:
            raise ConfigError("metrics.listen", f"cannot be listened on: {err}") from err
        host, port = self._server.sockets[0].getsockname()[:2]
        log.info("metrics on http://%s:%d%s", f"[{host}]" if ":" in host else host, port, PATH)

    async def _listen_unix(self, path: str) -> asyncio.Server:
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        old = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(self._serve, path)
        finally:
            os.umask(old)

    async def close(self) -> None:
        """Listen no more, and end the connections."""
        if self._server is None:
            return
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._server.wait_closed()
        if self._address.path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._address.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= MAX_CLIENTS:
            writer.close()
            return
        self._clients.add(task)
        try:
            await _Connection(reader, writer, self._exposition).run()
        except (OSError, TimeoutError, asyncio.CancelledError) as err:
            log.debug("a client of the metrics: %s", err)  # it has gone, or the daemon stops
        finally:
            self._clients.discard(task)
            writer.close()


class _Connection:
    """One client's requests, one after another."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        exposition: Exposition,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._exposition = exposition
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)

    async def run(self) -> None:
        """Answer until the client has had enough. Raises OSError, TimeoutError."""
        while True:
            try:
                request = await self._next()
            except h11.RemoteProtocolError as err:
                await self._refuse(err)
                return
            if request is None:
                return
            await self._answer(request)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _next(self) -> h11.Request | None:
        """Return the next request, its body ignored; None at the end of the connection."""
        request: h11.Request | None = None
        while True:
            match self._http.next_event():
                case h11.Request() as request:
                    pass
                case h11.EndOfMessage():
                    return request
                case h11.ConnectionClosed() | h11.PAUSED:
                    return None
                case h11.NEED_DATA:
                    async with asyncio.timeout(IDLE_SECONDS):
                        self._http.receive_data(await self._reader.read(READ_SIZE))
                case _:
                    pass

    async def _answer(self, request: h11.Request) -> None:
        path = request.target.partition(b"?")[0]
        if path != PATH.encode():
            await self._send(request, HTTPStatus.NOT_FOUND, f"only {PATH} is here\n".encode())
        elif request.method not in (b"GET", b"HEAD"):
            await self._send(request, HTTPStatus.METHOD_NOT_ALLOWED, b"GET\n", allow="GET, HEAD")
        else:
            await self._expose(request)

    async def _expose(self, request: h11.Request) -> None:
        try:
            body, content_type = await self._exposition(_header(request, b"accept"))
        except Exception:
            log.exception("the metrics cannot be exposed")
            why = b"the metrics cannot be exposed: see the daemon's log\n"
            await self._send(request, HTTPStatus.INTERNAL_SERVER_ERROR, why)
        else:
            await self._send(request, HTTPStatus.OK, body, content_type)

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        if self._http.our_state is h11.IDLE:
            status = HTTPStatus(error.error_status_hint)
            await self._send(None, status, f"{error}\n".encode())

    async def _send(
        self,
        request: h11.Request | None,
        status: HTTPStatus,
        body: bytes,
        content_type: str = TEXT,
        *,
        allow: str = "",
    ) -> None:
        headers = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
        if allow:
            headers.append(("Allow", allow))
        response = h11.Response(status_code=status, reason=status.phrase, headers=headers)
        data = self._http.send(response) or b""
        if request is None or request.method != b"HEAD":
            data += self._http.send(h11.Data(data=body)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        self._writer.write(data)
        async with asyncio.timeout(WRITE_SECONDS):
            await self._writer.drain()


def _header(request: h11.Request, name: bytes) -> str:
    return b",".join(value for key, value in request.headers if key == name).decode("latin-1")

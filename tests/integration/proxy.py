"""An HTTP proxy of the tests' own: CONNECT for https, whole requests for http."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

REFUSED = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"


class Proxy:
    """Takes every host to `target`; `authorization`, if set, is what it wants to see."""

    def __init__(self) -> None:
        self.address = ""  # HOST:PORT
        self.target = ""  # HOST:PORT
        self.authorization = ""
        self.requests: list[str] = []  # the first line of each
        self.headers: list[dict[str, str]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            await closed(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        self.requests.append(first)
        self.headers.append(headers)
        if headers.get("proxy-authorization", "") != self.authorization:
            writer.write(REFUSED)
            await writer.drain()
            return
        host, _, port = self.target.partition(":")
        to_target = await asyncio.open_connection(host, int(port))
        if first.startswith("CONNECT "):
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            method, url, version = first.split(" ")
            path = "/" + url.partition("://")[2].partition("/")[2]
            kept = [x for x in lines if not x.lower().startswith(("proxy-", "connection"))]
            told = [f"{method} {path} {version}", *kept, "Connection: close"]
            to_target[1].write("\r\n".join([*told, "", ""]).encode())
        try:
            await asyncio.gather(copy(reader, to_target[1]), copy(to_target[0], writer))
        finally:
            await closed(to_target[1])

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@asynccontextmanager
async def proxy() -> AsyncIterator[Proxy]:
    """Run one on a free port of 127.0.0.1."""
    running = Proxy()
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    running.address = f"{host}:{port}"
    try:
        yield running
    finally:
        server.close()
        await running.end()

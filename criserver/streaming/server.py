"""The streaming server: URLs for clients, and the HTTP server that answers each of them once.

GET or POST /exec/TOKEN, /attach/TOKEN    SPDY or WebSocket with remotecommand's subprotocols
GET or POST /portforward/TOKEN            SPDY, WebSocket channels, or SPDY in a WebSocket
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
from collections import OrderedDict

from criserver.streaming.connection import Connection
from criserver.streaming.endpoints import Endpoint, StreamingRequest, endpoint_for
from criserver.streaming.tokens import Tokens
from criserver.streaming.upgrade import HTTPError, Request, RequestReader

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0  # for a request to come in

# Connections whose request has not come yet; the oldest goes when there are more.
MAX_WAITING = 256

STOP_SECONDS = 3.0  # for the streams to end


class StreamingServer:
    """Gives out URLs, and serves whoever comes with one."""

    def __init__(self, address: str, port: int, idle_seconds: float) -> None:
        self._address = address
        self._port = port
        self._idle_seconds = idle_seconds
        self._tokens: Tokens[StreamingRequest] = Tokens()
        self._server: asyncio.Server | None = None
        self._base = ""
        self._waiting: OrderedDict[Connection, asyncio.TimerHandle] = OrderedDict()
        self._serving: dict[asyncio.Task[None], Connection] = {}

    def url(self, kind: str, request: StreamingRequest) -> str:
        """Return a URL that serves a request, once and within a minute.

        kind is "exec", "attach" or "portforward". Raises ResourceExhaustedError.
        """
        return f"{self._base}/{self._tokens.insert(kind, request)}"

    async def start(self, context: ssl.SSLContext | None = None) -> None:
        """Listen. Raises OSError."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._accepted),
            self._address,
            self._port,
            ssl=context,
            ssl_handshake_timeout=REQUEST_SECONDS if context else None,
        )
        port = self._server.sockets[0].getsockname()[1]
        self._base = f"{'https' if context else 'http'}://{_url_host(self._address)}:{port}"
        log.info("streaming on %s", self._base)

    async def stop(self, reason: str) -> None:
        """Listen no more; end every stream and tell its client why."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._waiting):
            connection.abort()
        for connection in self._serving.values():
            connection.end(reason)
        if self._serving:
            _, late = await asyncio.wait(self._serving, timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    def _accepted(self, connection: Connection) -> None:
        while len(self._waiting) >= MAX_WAITING:
            self._take_off(oldest := next(iter(self._waiting)))
            oldest.abort()
        loop = asyncio.get_running_loop()
        self._waiting[connection] = loop.call_later(REQUEST_SECONDS, connection.abort)
        connection.lost.add_done_callback(lambda _: self._take_off(connection))
        reader = RequestReader()
        connection.receive = lambda data: self._receive(connection, reader, data)

    def _take_off(self, connection: Connection) -> None:
        timer = self._waiting.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _receive(self, connection: Connection, reader: RequestReader, data: bytes) -> None:
        """Take a piece of the request; when it is whole, answer it."""
        try:
            request = reader.receive_data(data)
            if request is None:
                return
            endpoint = self._endpoint(request)
        except HTTPError as err:
            log.warning("a streaming client is refused: %d: %s", err.status, err)
            connection.write(reader.refuse(err))
            self._spawn(connection, None)
            return
        answer, rest = reader.switch(request, endpoint.protocol)
        connection.write(answer)
        connection.end_when_idle(self._idle_seconds)
        endpoint.attach(connection)
        self._spawn(connection, endpoint)
        if rest:
            connection.receive(rest)

    def _endpoint(self, request: Request) -> Endpoint:
        """Return what serves a request, and use its token up. Raises HTTPError."""
        token = request.path.removeprefix("/")
        wanted = self._tokens.get(token)
        endpoint = endpoint_for(request, wanted)  # a client may come again with another transport
        self._tokens.use(token)
        return endpoint

    def _spawn(self, connection: Connection, endpoint: Endpoint | None) -> None:
        self._take_off(connection)
        task = asyncio.create_task(_serve(connection, endpoint))
        self._serving[task] = connection
        task.add_done_callback(self._serving.pop)


async def _serve(connection: Connection, endpoint: Endpoint | None) -> None:
    """Serve a connection to its end; None has been refused."""
    try:
        await (endpoint.serve() if endpoint is not None else connection.finish())
    except ConnectionResetError:
        log.debug("a streaming client has gone")
    except Exception:
        log.exception("a stream ends by a fault of ours")
    finally:
        connection.abort()


def _url_host(address: str) -> str:
    """Return the host of our URLs; the clients that get them are on this machine."""
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:
        ip = ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1")
    return f"[{ip}]" if ip.version == 6 else str(ip)

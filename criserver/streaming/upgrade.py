"""The HTTP request before the streams, without I/O: parsed by h11, answered with 101 or an error.

A client asks for SPDY with `Upgrade: SPDY/3.1` and names its subprotocols, the best first, in
X-Stream-Protocol-Version; for WebSocket with RFC 6455's headers.
"""

from __future__ import annotations

import base64
import binascii
import enum
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import h11
from wsproto.utilities import generate_accept_token

MAX_HEAD = 16 * 1024  # bytes of a request's head; what clients send has less than 1,000

SPDY = "SPDY/3.1"
SPDY_PROTOCOL_HEADER = "X-Stream-Protocol-Version"
SPDY_ACCEPTED_HEADER = "X-Accepted-Stream-Protocol-Versions"
WEBSOCKET_VERSION = b"13"


class Transport(enum.Enum):
    """What a connection turns into."""

    SPDY = "SPDY/3.1"
    WEBSOCKET = "WebSocket"


class HTTPError(Exception):
    """A request that is answered with an error instead of an upgrade."""

    def __init__(
        self, status: HTTPStatus, message: str, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = list(headers)


@dataclass(frozen=True)
class Request:
    """An upgrade that is asked for; `protocols` in the client's order of preference."""

    path: str
    query: str
    transport: Transport
    protocols: tuple[str, ...]
    key: bytes  # Sec-WebSocket-Key


class RequestReader:
    """Reads one request of a connection and writes its answer."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._request: h11.Request | None = None

    def receive_data(self, data: bytes) -> Request | None:
        """Take what the client has sent; None while the request is not whole.

        Raises HTTPError for whatever cannot be upgraded.
        """
        try:
            self._http.receive_data(data)
            while True:
                match self._http.next_event():
                    case h11.Request() as request:
                        self._request = request
                    case h11.EndOfMessage() if self._request is not None:
                        return _read(self._request)
                    case h11.Data():
                        raise HTTPError(
                            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request must have no body"
                        )
                    case _:
                        return None
        except h11.RemoteProtocolError as err:
            raise HTTPError(HTTPStatus(err.error_status_hint), f"bad request: {err}") from err

    def switch(self, request: Request, protocol: str) -> tuple[bytes, bytes]:
        """Return the answer 101, and what the client has sent after its request."""
        headers = [("Connection", "Upgrade"), ("Upgrade", request.transport.value)]
        if request.transport is Transport.WEBSOCKET:
            headers[1] = ("Upgrade", "websocket")
            headers.append(("Sec-WebSocket-Accept", generate_accept_token(request.key).decode()))
            if protocol:
                headers.append(("Sec-WebSocket-Protocol", protocol))
        else:
            headers.append((SPDY_PROTOCOL_HEADER, protocol))
        trailing, _ = self._http.trailing_data
        response = h11.InformationalResponse(
            status_code=101, headers=headers, reason=b"Switching Protocols"
        )
        return self._http.send(response) or b"", trailing

    def refuse(self, error: HTTPError) -> bytes:
        """Return the answer that says what is wrong; the connection is closed after it."""
        body = f"{error}\n".encode()
        lines = [f"HTTP/1.1 {error.status.value} {error.status.phrase}"]
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *error.headers,
        ]
        lines += [f"{name}: {value}" for name, value in headers]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def choose(request: Request, known: Collection[str]) -> str:
    """Return the first of the client's subprotocols that is known. Raises HTTPError."""
    offered = request.protocols
    if not offered and "" in known:
        return ""
    for protocol in offered:
        if protocol in known:
            return protocol
    accepted = [(SPDY_ACCEPTED_HEADER, name) for name in known if name]
    raise HTTPError(
        HTTPStatus.FORBIDDEN,
        f"none of the subprotocols {', '.join(offered)[:256]!r} is supported; supported over "
        f"{request.transport.value}: {', '.join(filter(None, known))}",
        accepted if request.transport is Transport.SPDY else (),
    )


def _read(request: h11.Request) -> Request:
    if request.method not in (b"GET", b"POST"):
        allow = [("Allow", "GET, POST")]
        raise HTTPError(HTTPStatus.METHOD_NOT_ALLOWED, "the method must be GET or POST", allow)
    try:
        target = urlsplit(request.target.decode("ascii"))
    except ValueError as err:
        raise HTTPError(HTTPStatus.BAD_REQUEST, f"bad target: {err}") from err
    upgrades = [word.lower() for word in _words(request, b"upgrade")]
    asked = "upgrade" in [word.lower() for word in _words(request, b"connection")]
    if asked and SPDY.lower() in upgrades:
        protocols = _words(request, SPDY_PROTOCOL_HEADER.lower().encode())
        if not protocols:
            raise HTTPError(
                HTTPStatus.BAD_REQUEST, f"unable to upgrade: {SPDY_PROTOCOL_HEADER} is missing"
            )
        return Request(target.path, target.query, Transport.SPDY, tuple(protocols), b"")
    if asked and "websocket" in upgrades:
        key = _websocket_key(request)
        protocols = _words(request, b"sec-websocket-protocol")
        return Request(target.path, target.query, Transport.WEBSOCKET, tuple(protocols), key)
    raise HTTPError(
        HTTPStatus.BAD_REQUEST,
        "unable to upgrade: the request must have the headers `Connection: Upgrade` and "
        f"`Upgrade: {SPDY}` or `Upgrade: websocket`",
    )


def _words(request: h11.Request, name: bytes) -> list[str]:
    values = [value.decode("latin-1") for key, value in request.headers if key == name]
    return [word for value in values for part in value.split(",") if (word := part.strip())]


def _websocket_key(request: h11.Request) -> bytes:
    headers = dict(request.headers)
    if request.method != b"GET":
        raise HTTPError(HTTPStatus.METHOD_NOT_ALLOWED, "WebSocket needs GET", [("Allow", "GET")])
    if headers.get(b"sec-websocket-version") != WEBSOCKET_VERSION:
        raise HTTPError(
            HTTPStatus.UPGRADE_REQUIRED,
            "the WebSocket version must be 13",
            [("Sec-WebSocket-Version", "13")],
        )
    key = headers.get(b"sec-websocket-key", b"")
    try:
        if len(base64.b64decode(key, validate=True)) == 16:
            return bytes(key)
    except binascii.Error:
        pass  # said below, with a wrong length
    raise HTTPError(HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key is missing or malformed")

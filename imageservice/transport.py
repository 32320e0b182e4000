"""HTTP to registries: one pooled session, TLS per endpoint, redirects that carry no secret away."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from yarl import URL

from imageservice.hosts import RegistryHost
from imageservice.proxy import Proxies

USER_AGENT = "criserver/0.1"
# A blob store may send a client on once or twice; more is a loop.
MAX_REDIRECTS = 8
# Connections to one registry: manifests and several layers at a time.
MAX_CONNECTIONS_PER_HOST = 16
# Half of what a response may hold ready before the socket is no longer read; the kernel holds more.
READ_BUFFER = 1 << 18
# What OpenSSL calls a server's refusal of our certificate, or of there being none.
_CERTIFICATE_ALERTS = frozenset(
    ("SSLV3_ALERT_BAD_CERTIFICATE", "TLSV13_ALERT_CERTIFICATE_REQUIRED", "TLSV1_ALERT_UNKNOWN_CA")
)
_REDIRECTS = frozenset((301, 302, 303, 307, 308))


class TransportError(Exception):
    """No answer: the connection failed, stalled or broke, or TLS did not agree.

    `passing`: the connection was there and ended; another one may well last.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class Request:
    """A GET (or POST of a form) to a URL that belongs to `host`.

    secret_headers go to the origin of `url` only. `verified` content is checked by its digest, so
    that it may come over plain HTTP after a redirect.
    """

    url: URL
    host: RegistryHost
    headers: Mapping[str, str] = field(default_factory=dict)
    secret_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)
    verified: bool = False


class Transport:
    """Keeps connections between pulls. Must be used on one event loop, and closed."""

    def __init__(self, stall_timeout: float, proxies: Proxies) -> None:
        """Prepare; stall_timeout: seconds without a byte after which a connection is broken."""
        self._stall_timeout = stall_timeout
        self._proxies = proxies
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[tuple[object, ...], ssl.SSLContext] = {}

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=MAX_CONNECTIONS_PER_HOST),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # digests are of the bytes as stored
                read_bufsize=READ_BUFFER,
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            )
        return self._session

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, request: Request) -> aiohttp.ClientResponse:
        """Return the final response of `request`, whatever its status.

        It is to be used with `async with`. Raises TransportError; errors of reading the body are
        the caller's, see `broken`.
        """
        url = request.url
        at_home = True
        for _ in range(MAX_REDIRECTS):
            response = await self._once(request, url, at_home)
            location = response.headers.get("Location", "")
            if response.status not in _REDIRECTS or not location or request.form is not None:
                return response
            response.release()
            target = _join(url, location)
            if url.scheme == "https" and target.scheme != "https" and not request.verified:
                raise TransportError(f"{url.host} redirects from https to {target.scheme}")
            # Once the request has left its origin no header of ours comes back.
            at_home = at_home and target.origin() == url.origin()
            url = target
        raise TransportError(f"{request.url.host} redirects more than {MAX_REDIRECTS} times")

    async def _once(self, request: Request, url: URL, at_home: bool) -> aiohttp.ClientResponse:
        host = request.host
        headers = dict(request.headers)
        if at_home:
            headers.update(request.secret_headers)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=host.dial_timeout, sock_read=self._stall_timeout
        )
        try:
            proxy = self._proxies.of(url)
            # A proxy is asked by CONNECT for https, and gets the request itself for http.
            for_proxy: dict[str, str] = {}
            if proxy and proxy.authorization:
                for_proxy = {"Proxy-Authorization": proxy.authorization}
                headers.update(for_proxy if url.scheme == "http" else {})
            return await self._open().request(
                "GET" if request.form is None else "POST",
                url,
                headers=headers,
                data=request.form,
                allow_redirects=False,
                timeout=timeout,
                ssl=self._context(host, at_home) if url.scheme == "https" else True,
                proxy=proxy.url if proxy else None,
                proxy_headers=for_proxy or None,
            )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as err:
            raise _transport_error(err) from err

    def _context(self, host: RegistryHost, with_client: bool) -> ssl.SSLContext | bool:
        """Return the TLS settings; a client certificate is shown to its own host only."""
        clients = host.clients if with_client else ()
        if not host.ca and not clients and not host.skip_verify:
            return True
        key = (host.skip_verify, _stamp(host.ca), _stamp(clients))
        context = self._contexts.get(key)
        if context is None:
            context = _make_context(host, clients)
            self._contexts[key] = context
        return context


def _stamp(paths: tuple[Path | tuple[Path, Path | None], ...]) -> tuple[object, ...]:
    """Return something that changes when a file is replaced, so that it is loaded anew."""
    stamps: list[object] = []
    for item in paths:
        for path in item if isinstance(item, tuple) else (item,):
            stamps.append((path, path.stat().st_mtime_ns if path else 0))
    return tuple(stamps)


def _make_context(
    host: RegistryHost, clients: tuple[tuple[Path, Path | None], ...]
) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if host.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for path in host.ca:
        with _naming(path):
            context.load_verify_locations(path)
    for cert, key in clients:
        with _naming(cert):
            context.load_cert_chain(cert, key)
    return context


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in an error about what is in it: OpenSSL does not."""
    try:
        yield
    except OSError as err:
        raise TransportError(f"cannot use {path}: {err.strerror or err}") from err


def _join(url: URL, location: str) -> URL:
    try:
        target = url.join(URL(location, encoded=True))
        target.origin()
    except ValueError as err:
        raise TransportError(f"{url.host} redirects to {location[:200]!r}: {err}") from err
    return target


@asynccontextmanager
async def broken() -> AsyncIterator[None]:
    """Turn what reading a body raises into TransportError."""
    try:
        yield
    except (aiohttp.ClientError, TimeoutError, OSError, asyncio.IncompleteReadError) as err:
        raise _transport_error(err) from err


def _transport_error(err: Exception) -> TransportError:
    ended = (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, ConnectionError)
    never_there = isinstance(err, aiohttp.ClientConnectorError)
    final = never_there or isinstance(err, TimeoutError) or _tls_error(err) is not None
    passing = isinstance(err, (*ended, aiohttp.ClientOSError)) and not final
    return TransportError(describe(err), passing=passing)


def _tls_error(err: BaseException) -> ssl.SSLError | None:
    """Return the TLS error that is `err` or its cause."""
    return next((e for e in (err, err.__cause__) if isinstance(e, ssl.SSLError)), None)


def describe(err: Exception) -> str:
    """Return what went wrong with a connection in words that name the cause."""
    alert = getattr(_tls_error(err), "reason", None)  # aiohttp's own have none
    if alert in _CERTIFICATE_ALERTS:
        return (
            f"it wants another client certificate ({alert.lower().replace('_', ' ')}); "
            "give one in certs.d/<host>/hosts.toml"
        )
    match err:
        case aiohttp.ClientConnectorCertificateError():
            return (
                f"its certificate is not trusted ({err.certificate_error}); "
                "give its CA in certs.d/<host>/hosts.toml"
            )
        case aiohttp.ClientProxyConnectionError():
            return f"the proxy {err.host}:{err.port} cannot be reached ({_reason(err.os_error)})"
        case aiohttp.ClientHttpProxyError():
            return f"the proxy refuses the connection: {err.status} {err.message}"
        case aiohttp.ConnectionTimeoutError():
            return "no connection within the dial timeout"
        case TimeoutError():
            return "no data for longer than the stall timeout"
        case aiohttp.ClientConnectorDNSError():
            return f"its name cannot be looked up ({err.os_error.strerror})"
        case aiohttp.ClientConnectorError() if err.os_error.errno:
            return _reason(err.os_error)
        case _:
            return str(err) or type(err).__name__


def _reason(err: OSError) -> str:
    return os.strerror(err.errno).lower() if err.errno else str(err)

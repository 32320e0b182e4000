"""The distribution-spec client: manifests and blobs of one repository, from the hosts it has.

A host that fails is passed over for the next one; the last word is the error that names them all.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import aiohttp
from yarl import URL

from api.errors import CRIError, ImagePullError
from api.stages import note, waiting_for
from imageservice import auth, hosts
from imageservice.auth import Credentials
from imageservice.authorization import Authorizer
from imageservice.endpoint import MAX_QUOTE, Endpoint, HostError
from imageservice.errors import RemoteImageNotFoundError, registry_unavailable
from imageservice.hosts import RegistryConfig
from imageservice.manifest import ACCEPT, MAX_MANIFEST, Descriptor, digest_of
from imageservice.proxy import Proxies
from imageservice.reference import Reference, is_digest
from imageservice.retries import RetryPolicy
from imageservice.transport import Request, Transport, TransportError, broken

T = TypeVar("T")

log = logging.getLogger(__name__)


class BrokenTransferError(Exception):
    """A blob's bytes stopped coming; the rest may be asked for again."""


@dataclass(frozen=True)
class Fetched:
    """A manifest or an index as it came: its bytes have `digest`."""

    media_type: str
    digest: str
    body: bytes

    @property
    def descriptor(self) -> Descriptor:
        """Return the descriptor of this content."""
        return Descriptor(self.media_type, self.digest, len(self.body))


class RegistryClient:
    """Makes a Repository for each pull; connections and tokens are shared."""

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        self._transport = Transport(config.stall_timeout, Proxies(config.environment))
        self._authorizer = Authorizer()
        self.received: dict[str, int] = {}
        """Bytes of blobs that have come, by the domain in the images' names."""

    def use_certs_dir(self, certs_dir: Path) -> None:
        """Look for hosts elsewhere from the next repository on."""
        self._config = replace(self._config, certs_dir=certs_dir)

    def repository(self, reference: Reference, credentials: Credentials) -> Repository:
        """Return the repository of `reference`, with certs.d as it is now.

        Raises ImagePullError for a wrong hosts.toml.
        """
        found = hosts.hosts_for(reference.domain, self._config.certs_dir)
        endpoints = [Endpoint(self._transport, host, credentials) for host in found]

        def count(size: int) -> None:
            self.received[reference.domain] = self.received.get(reference.domain, 0) + size

        return Repository(reference, endpoints, self._authorizer, self._config.retries, count)

    async def close(self) -> None:
        """Close the connections."""
        await self._authorizer.close()
        await self._transport.close()


class Repository:
    """One repository during one pull."""

    def __init__(
        self,
        reference: Reference,
        endpoints: list[Endpoint],
        authorizer: Authorizer,
        retries: RetryPolicy,
        count: Callable[[int], None],
    ) -> None:
        """`count` is called with the size of each piece of a blob that comes."""
        self._count = count
        self._reference = reference
        self._endpoints = endpoints
        self._authorizer = authorizer
        self._retries = retries
        for endpoint in endpoints:
            authorizer.prepare(endpoint, reference.path)

    async def resolve(self) -> Fetched:
        """Return what the reference points to: a manifest or an index.

        Raises RemoteImageNotFoundError or ImagePullError.
        """
        reference = self._reference
        return await self._manifest(reference.digest or reference.tag, "resolve")

    async def manifest(self, descriptor: Descriptor) -> Fetched:
        """Return the manifest of an entry of an index."""
        return await self._manifest(descriptor.digest, "pull")

    async def _manifest(self, name: str, capability: str) -> Fetched:
        return await self._ask(
            capability, f"manifest {name}", lambda endpoint: self._manifest_from(endpoint, name)
        )

    async def _manifest_from(self, endpoint: Endpoint, name: str) -> Fetched:
        by_digest = is_digest(name)
        async with await self._get(endpoint, f"manifests/{name}", ACCEPT, by_digest) as response:
            body = await endpoint.read_bounded(response, MAX_MANIFEST, "the manifest")
            media_type = response.headers.get("Content-Type", "")
        digest = digest_of(body)
        if by_digest and digest != name:
            raise endpoint.wrong(502, f"it sent content with the digest {digest} for {name}")
        return Fetched(media_type, digest, body)

    @asynccontextmanager
    async def blob(self, wanted: Descriptor, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the bytes of a blob from `offset` on, as they come.

        Raises ImagePullError when no host has it, BrokenTransferError when the bytes stop coming.
        """
        endpoint, response, skip = await self._ask(
            "pull", f"blob {wanted.digest}", lambda one: self._open_blob(one, wanted, offset)
        )
        async with response, aclosing(_body(endpoint, response, skip, self._count)) as pieces:
            yield pieces

    async def small_blob(self, wanted: Descriptor) -> bytes:
        """Return a blob that fits in memory, as it comes: it may be another or a longer one.

        No more than a piece beyond its size is read. Raises as `blob` does.
        """
        body = bytearray()
        async with self.blob(wanted, 0) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > wanted.size:
                    break
        return bytes(body)

    async def _open_blob(
        self, endpoint: Endpoint, wanted: Descriptor, offset: int
    ) -> tuple[Endpoint, aiohttp.ClientResponse, int]:
        """Return the response, and how many of its first bytes are before the offset."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = await self._get(endpoint, f"blobs/{wanted.digest}", "*/*", True, headers)
        length = response.content_length
        got = response.headers.get("Content-Range", "")
        if response.status == 206 and not got.startswith(f"bytes {offset}-"):
            problem = f"it answers {got[:MAX_QUOTE]!r} to a range from {offset}"
        elif response.status == 200 and length is not None and length != wanted.size:
            problem = f"blob {wanted.digest} has {length} bytes, its manifest says {wanted.size}"
        else:
            return endpoint, response, 0 if response.status == 206 else offset
        response.close()
        raise endpoint.wrong(502, problem)

    # -- hosts --------------------------------------------------------------------------------

    async def _ask(
        self, capability: str, what: str, attempt: Callable[[Endpoint], Awaitable[T]]
    ) -> T:
        """Return what the first host gives that can; all are asked again while it may help."""
        last = ""
        for number in itertools.count(1):
            failures: list[HostError] = []
            for endpoint in self._usable(capability, failures):
                try:
                    waiting_for(_asking(endpoint, what, last))
                    return await attempt(endpoint)
                except HostError as err:
                    self._note(endpoint, err, failures)
            passing = [failure for failure in failures if failure.passing]
            asked = [f.retry_after for f in passing if f.retry_after is not None]
            pause = self._retries.pause(number, asked) if passing else None
            if pause is None:
                raise self._failed(what, failures)
            last = "; ".join(map(str, failures))
            log.info("%s: %s again in %.1f s", self._reference, what, pause)
            note(f"{what} is asked for again in {pause:.1f} s")
            waiting_for(_pausing(what, pause, last))
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    def _usable(self, capability: str, failures: list[HostError]) -> list[Endpoint]:
        """Return the hosts to ask, those that were down in this pull last."""
        capable = [e for e in self._endpoints if capability in e.host.capabilities]
        if not capable:
            failures.append(
                HostError(self._reference.domain, 400, f"hosts.toml has no host to {capability}")
            )
        return sorted(capable, key=lambda endpoint: endpoint.down)

    def _note(self, endpoint: Endpoint, err: HostError, failures: list[HostError]) -> None:
        endpoint.down = err.unavailable
        failures.append(err)
        note(str(err))
        log.info("%s: %s", self._reference, err)

    def _failed(self, what: str, failures: list[HostError]) -> CRIError:
        detail = "; ".join(str(failure) for failure in failures)
        last = failures[-1]
        name = str(self._reference)
        if last.status == 429:
            return ImagePullError(
                f"cannot pull {what} of {name}: {detail}; the registry limits how much it is asked:"
                " pull with credentials, from a mirror, or later"
            )
        if last.status == 404:
            return RemoteImageNotFoundError(name, detail)
        if last.unavailable:
            return registry_unavailable(f"{what} of {name}: {detail}")
        if last.status in (401, 403):
            return ImagePullError(
                f"pull access denied for {name}: {detail}; the repository may not exist, or may "
                "need credentials (imagePullSecrets)"
            )
        return ImagePullError(f"cannot pull {what} of {name}: {detail}")

    # -- requests -----------------------------------------------------------------------------

    async def _get(
        self,
        endpoint: Endpoint,
        path: str,
        accept: str,
        verified: bool,
        headers: dict[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        """Return a successful response, having authenticated if the host asks for it.

        Raises HostError.
        """
        host = endpoint.host
        url = URL(f"{host.base}/{self._reference.path}/{path}", encoded=True)
        if host.is_mirror:
            url = url.with_query({"ns": host.namespace})
        plain = {"Accept": accept, **(headers or {})}
        asked_anew = False
        while True:
            sent = endpoint.authorization
            secret = dict(host.headers)
            if sent:
                secret["Authorization"] = sent
            response = await endpoint.send(Request(url, host, plain, secret, verified=verified))
            if response.status in (200, 206):
                return response
            async with response:
                refusal = await endpoint.refusal(response)
                challenges = auth.parse_challenges(response.headers.getall("WWW-Authenticate", []))
            if refusal.status != 401 or asked_anew:
                raise refusal
            asked_anew = True
            path = self._reference.path
            if not await self._authorizer.answer(endpoint, path, challenges, sent):
                raise refusal


async def _body(
    endpoint: Endpoint,
    response: aiohttp.ClientResponse,
    skip: int,
    count: Callable[[int], None],
) -> AsyncGenerator[bytes, None]:
    """Give the body without its first `skip` bytes."""
    progress = _Progress(endpoint.name, response.content_length)
    waiting_for(progress.describe)
    try:
        async with broken():
            async for chunk in response.content.iter_any():
                progress.add(len(chunk))
                count(len(chunk))
                if skip:
                    dropped = min(skip, len(chunk))
                    skip -= dropped
                    chunk = chunk[dropped:]
                if chunk:
                    yield chunk
    except TransportError as err:
        raise BrokenTransferError(f"{endpoint.name}: {err}") from err


class _Progress:
    """How far the body of a response has come."""

    def __init__(self, host: str, length: int | None) -> None:
        self._host = host
        self._length = length
        self._come = 0
        self._last = time.monotonic()

    def add(self, count: int) -> None:
        """Note that bytes have come."""
        self._come += count
        self._last = time.monotonic()

    def describe(self) -> str:
        """Say how far it is, and since when nothing has come; nothing once all of it has."""
        if self._come == self._length:
            return ""
        of = "" if self._length is None else f" of {self._length}"
        idle = time.monotonic() - self._last
        return f"registry {self._host}: {self._come}{of} bytes have come, the last {idle:.1f} s ago"


def _asking(endpoint: Endpoint, what: str, last: str) -> Callable[[], str]:
    since = time.monotonic()

    def describe() -> str:
        before = f"; its last answer: {last}" if last else ""
        waited = time.monotonic() - since
        return f"registry {endpoint.name} has not answered for {waited:.1f} s to {what}{before}"

    return describe


def _pausing(what: str, pause: float, last: str) -> Callable[[], str]:
    return lambda: f"a pause of {pause:.1f} s before {what} is asked for again; answered: {last}"

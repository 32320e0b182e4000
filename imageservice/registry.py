"""The distribution-spec client: manifests and blobs of one repository, from the hosts it has.

A host that fails is passed over for the next one; the last word is the error that names them all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from yarl import URL

from api.errors import CRIError, ImagePullError
from imageservice import auth, hosts
from imageservice.auth import Credentials
from imageservice.errors import RemoteImageNotFoundError, registry_unavailable
from imageservice.hosts import RegistryConfig, RegistryHost
from imageservice.manifest import ACCEPT, MAX_MANIFEST, Descriptor, digest_of
from imageservice.reference import Reference, is_digest
from imageservice.transport import Request, Transport, TransportError, broken

log = logging.getLogger(__name__)

# An error body that is worth reading.
MAX_ERROR_BODY = 16 << 10
# A token is some kilobytes at most.
MAX_TOKEN_BODY = 1 << 20
# Words of a registry that go into our error.
MAX_QUOTE = 200
CLIENT_ID = "criserver"


class BrokenTransferError(Exception):
    """A blob's bytes stopped coming; the rest may be asked for again."""


class HostError(Exception):
    """One host did not give what was asked; `status` is 0 where there was no HTTP answer."""

    def __init__(self, host: str, status: int, message: str) -> None:
        super().__init__(f"{host}: {message}")
        self.status = status

    @property
    def unavailable(self) -> bool:
        """Tell whether the host, not the request, is at fault."""
        return self.status == 0 or self.status >= 500


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


class Endpoint:
    """A host with what this pull has learnt about it: its authorization, and whether it is down."""

    def __init__(self, host: RegistryHost, credentials: Credentials) -> None:
        self.host = host
        self.credentials = credentials if credentials.allowed_for(host.host) else auth.ANONYMOUS
        self.down = False
        token = self.credentials.registry_token
        self.authorization = f"Bearer {token}" if token else ""


class RegistryClient:
    """Makes a Repository for each pull; connections are shared."""

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        self._transport = Transport(config.stall_timeout)

    def repository(self, reference: Reference, credentials: Credentials) -> Repository:
        """Return the repository of `reference`, with certs.d as it is now.

        Raises ImagePullError for a wrong hosts.toml.
        """
        found = hosts.hosts_for(reference.domain, self._config.certs_dir)
        return Repository(self._transport, reference, [Endpoint(h, credentials) for h in found])

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()


class Repository:
    """One repository during one pull."""

    def __init__(
        self, transport: Transport, reference: Reference, endpoints: list[Endpoint]
    ) -> None:
        self._transport = transport
        self._reference = reference
        self._endpoints = endpoints

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
        failures: list[HostError] = []
        for endpoint in self._usable(capability, failures):
            try:
                return await self._manifest_from(endpoint, name)
            except HostError as err:
                self._note(endpoint, err, failures)
        raise self._failed(f"manifest {name}", failures)

    async def _manifest_from(self, endpoint: Endpoint, name: str) -> Fetched:
        by_digest = is_digest(name)
        async with await self._get(endpoint, f"manifests/{name}", ACCEPT, by_digest) as response:
            body = await _read_bounded(endpoint, response, MAX_MANIFEST, "the manifest")
            media_type = response.headers.get("Content-Type", "")
        digest = digest_of(body)
        if by_digest and digest != name:
            raise HostError(
                endpoint.host.host, 502, f"it sent content with the digest {digest} for {name}"
            )
        return Fetched(media_type, digest, body)

    @asynccontextmanager
    async def blob(self, wanted: Descriptor, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the bytes of a blob from `offset` on, as they come.

        Raises ImagePullError when no host has it, BrokenTransferError when the bytes stop coming.
        """
        failures: list[HostError] = []
        for endpoint in self._usable("pull", failures):
            try:
                response = await self._open_blob(endpoint, wanted, offset)
            except HostError as err:
                self._note(endpoint, err, failures)
                continue
            async with response:
                yield _body(endpoint, response, 0 if response.status == 206 else offset)
            return
        raise self._failed(f"blob {wanted.digest}", failures)

    async def _open_blob(
        self, endpoint: Endpoint, wanted: Descriptor, offset: int
    ) -> aiohttp.ClientResponse:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = await self._get(endpoint, f"blobs/{wanted.digest}", "*/*", True, headers)
        length = response.content_length
        got = response.headers.get("Content-Range", "")
        if response.status == 206 and not got.startswith(f"bytes {offset}-"):
            problem = f"it answers {got[:64]!r} to a range from {offset}"
        elif response.status == 200 and length is not None and length != wanted.size:
            problem = f"blob {wanted.digest} has {length} bytes, its manifest says {wanted.size}"
        else:
            return response
        response.close()
        raise HostError(endpoint.host.host, 502, problem)

    # -- hosts --------------------------------------------------------------------------------

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
        log.info("%s: %s", self._reference, err)

    def _failed(self, what: str, failures: list[HostError]) -> CRIError:
        detail = "; ".join(str(failure) for failure in failures)
        last = failures[-1]
        name = str(self._reference)
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
        authenticated = False
        while True:
            secret = dict(host.headers)
            if endpoint.authorization:
                secret["Authorization"] = endpoint.authorization
            request = Request(url, host, plain, secret, verified=verified)
            response = await self._send(endpoint, request)
            if response.status in (200, 206):
                return response
            async with response:
                refusal = await _refusal(endpoint, response)
                challenges = auth.parse_challenges(response.headers.getall("WWW-Authenticate", []))
            if authenticated or refusal.status != 401:
                raise refusal
            authenticated = await self._authenticate(endpoint, challenges)
            if not authenticated:
                raise refusal

    async def _send(self, endpoint: Endpoint, request: Request) -> aiohttp.ClientResponse:
        try:
            return await self._transport.send(request)
        except TransportError as err:
            raise HostError(endpoint.host.host, 0, str(err)) from err

    async def _authenticate(self, endpoint: Endpoint, challenges: list[auth.Challenge]) -> bool:
        """Answer a 401; False when there is nothing to answer it with."""
        before = endpoint.authorization
        for challenge in challenges:
            if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                if endpoint.credentials.registry_token:
                    return False  # it was sent, and refused
                endpoint.authorization = f"Bearer {await self._token(endpoint, challenge)}"
                return True
            if challenge.scheme == "basic" and endpoint.credentials.basic:
                endpoint.authorization = endpoint.credentials.basic
                return endpoint.authorization != before
        return False

    async def _token(self, endpoint: Endpoint, challenge: auth.Challenge) -> str:
        request = self._token_request(endpoint, challenge)
        async with await self._send(endpoint, request) as response:
            if response.status != 200:
                raise await _refusal(endpoint, response, f"token server {request.url.host}: ")
            body = await _read_bounded(endpoint, response, MAX_TOKEN_BODY, "the token")
        try:
            document = json.loads(body)
            token = document.get("token") or document.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not token.isprintable():
            raise HostError(
                endpoint.host.host, 401, f"token server {request.url.host} gave no token"
            )
        return token

    def _token_request(self, endpoint: Endpoint, challenge: auth.Challenge) -> Request:
        parameters = challenge.parameters
        scope = parameters.get("scope") or f"repository:{self._reference.path}:pull"
        query = {"scope": scope}
        if parameters.get("service"):
            query["service"] = parameters["service"]
        realm = self._realm(endpoint, parameters["realm"])
        credentials = endpoint.credentials
        if credentials.identity_token:
            form = {
                **query,
                "grant_type": "refresh_token",
                "refresh_token": credentials.identity_token,
                "client_id": CLIENT_ID,
            }
            return Request(realm, endpoint.host, form=form)
        secret = {"Authorization": credentials.basic} if credentials.basic else {}
        return Request(realm.update_query(query), endpoint.host, secret_headers=secret)

    def _realm(self, endpoint: Endpoint, text: str) -> URL:
        host = endpoint.host
        try:
            realm = URL(text)
            realm.origin()
        except ValueError as err:
            raise HostError(host.host, 401, f"its token realm {text[:MAX_QUOTE]!r}: {err}") from err
        if realm.scheme not in ("http", "https"):
            raise HostError(host.host, 401, f"its token realm {text[:MAX_QUOTE]!r} is no URL")
        if realm.scheme == "http" and host.base.startswith("https:"):
            raise HostError(host.host, 401, "its token realm would get credentials in plain text")
        return realm


async def _body(
    endpoint: Endpoint, response: aiohttp.ClientResponse, skip: int
) -> AsyncIterator[bytes]:
    """Give the body without its first `skip` bytes."""
    try:
        async with broken():
            async for chunk in response.content.iter_any():
                if skip:
                    dropped = min(skip, len(chunk))
                    skip -= dropped
                    chunk = chunk[dropped:]
                if chunk:
                    yield chunk
    except TransportError as err:
        raise BrokenTransferError(f"{endpoint.host.host}: {err}") from err


async def _read_bounded(
    endpoint: Endpoint, response: aiohttp.ClientResponse, limit: int, what: str
) -> bytes:
    """Return the whole body; raises HostError when it is over `limit` or breaks off."""
    too_large = HostError(endpoint.host.host, 502, f"{what} is larger than {limit} bytes")
    if (response.content_length or 0) > limit:
        raise too_large
    parts: list[bytes] = []
    length = 0
    try:
        async with broken():
            async for chunk in response.content.iter_any():
                length += len(chunk)
                if length > limit:
                    raise too_large
                parts.append(chunk)
    except TransportError as err:
        raise HostError(endpoint.host.host, 0, str(err)) from err
    return b"".join(parts)


async def _refusal(
    endpoint: Endpoint, response: aiohttp.ClientResponse, prefix: str = ""
) -> HostError:
    """Return the error for a status that is not success, in the registry's own words."""
    try:
        async with broken():
            body = await response.content.read(MAX_ERROR_BODY)
        words = _words(body)
    except TransportError as err:
        words = str(err)
    status = response.status
    text = f"{prefix}{status} {response.reason or ''}".rstrip()
    return HostError(endpoint.host.host, status, f"{text} ({words})" if words else text)


def _words(body: bytes) -> str:
    try:
        errors = json.loads(body)["errors"]
        text = "; ".join(f"{e.get('code', '')} {e.get('message', '')}".strip() for e in errors)
    except (ValueError, KeyError, TypeError, AttributeError):
        text = body.decode(errors="replace").strip()
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_QUOTE]

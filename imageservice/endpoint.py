"""One host during one pull: what it is asked with, and what its refusals mean."""

from __future__ import annotations

import json

import aiohttp

from imageservice import auth, retries
from imageservice.auth import Credentials
from imageservice.hosts import RegistryHost
from imageservice.transport import Request, Transport, TransportError, broken

# An error body that is worth reading.
MAX_ERROR_BODY = 16 << 10
# Words of a registry that go into our error.
MAX_QUOTE = 200


class HostError(Exception):
    """One host did not give what was asked; `status` is 0 where there was no HTTP answer.

    passing: the same request may succeed in a moment. retry_after: seconds that the host asks for.
    """

    def __init__(
        self,
        host: str,
        status: int,
        message: str,
        *,
        passing: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{host}: {message}")
        self.status = status
        self.passing = passing
        self.retry_after = retry_after

    @property
    def unavailable(self) -> bool:
        """Tell whether the host, not the request, is at fault."""
        return self.status == 0 or self.status >= 500


class Endpoint:
    """A host with what this pull has learnt about it: its authorization, and whether it is down."""

    def __init__(self, transport: Transport, host: RegistryHost, credentials: Credentials) -> None:
        self._transport = transport
        self.host = host
        self.credentials = credentials if credentials.allowed_for(host.host) else auth.ANONYMOUS
        self.down = False
        token = self.credentials.registry_token
        self.authorization = f"Bearer {token}" if token else ""

    @property
    def name(self) -> str:
        """Host and port."""
        return self.host.host

    async def send(self, request: Request) -> aiohttp.ClientResponse:
        """Return the response, whatever its status; raises HostError where there is none."""
        try:
            return await self._transport.send(request)
        except TransportError as err:
            raise HostError(self.name, 0, str(err), passing=err.passing) from err

    def wrong(self, status: int, message: str) -> HostError:
        """Return the error for an answer that makes no sense; to ask again gives the same."""
        return HostError(self.name, status, message)

    async def read_bounded(self, response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
        """Return the whole body; raises HostError when it is over `limit` or breaks off."""
        too_large = self.wrong(502, f"{what} is larger than {limit} bytes")
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
            raise HostError(self.name, 0, f"{what}: {err}", passing=err.passing) from err
        return b"".join(parts)

    async def refusal(self, response: aiohttp.ClientResponse, prefix: str = "") -> HostError:
        """Return the error for a status that is not success, in the registry's own words."""
        try:
            async with broken():
                words = _words(await response.content.read(MAX_ERROR_BODY))
        except TransportError as err:
            words = str(err)
        status = response.status
        wait = retries.retry_after(response.headers.get("Retry-After", ""))
        text = f"{prefix}{status} {response.reason or ''}".rstrip()
        details = [words] if words else []
        details += [] if wait is None else [f"retry after {wait:.0f} s"]
        return HostError(
            self.name,
            status,
            f"{text} ({'; '.join(details)})" if details else text,
            passing=status in retries.PASSING_STATUS,
            retry_after=wait,
        )


def _words(body: bytes) -> str:
    try:
        errors = json.loads(body)["errors"]
        text = "; ".join(f"{e.get('code', '')} {e.get('message', '')}".strip() for e in errors)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        text = body.decode(errors="replace").strip()
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_QUOTE]

"""Authentication to a registry: challenges, and what CRI's AuthConfig says. No I/O.

Sources: RFC 9110 section 11 (challenges), distribution-spec's token and OAuth2 pages.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from api.cri.api_pb2 import AuthConfig
from api.errors import InvalidArgumentError
from imageservice.hosts import canonical_host

# A WWW-Authenticate header: scheme, realm, service and scope.
MAX_CHALLENGE = 8192

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"\s*,?\s*({_TOKEN})(?:\s+|$)")
_PARAM = re.compile(rf'\s*,?\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}|[^\s,"]+))')


@dataclass(frozen=True)
class Challenge:
    """One challenge; scheme and parameter names in lower case."""

    scheme: str
    parameters: dict[str, str] = field(hash=False)


@dataclass(frozen=True)
class Credentials:
    """Who pulls. At most one of password, identity_token and registry_token is used.

    `server` restricts them to one registry host; empty means those of the image.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    server: str = ""

    def allowed_for(self, host: str) -> bool:
        """Tell whether `host` may see them."""
        return not self.server or canonical_host(self.server) == canonical_host(host)

    @property
    def basic(self) -> str | None:
        """The value of an Authorization header for basic authentication."""
        if not self.username:
            return None
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


ANONYMOUS = Credentials()


def from_cri(auth: AuthConfig) -> Credentials:
    """Return the credentials of a PullImageRequest.

    Raises InvalidArgumentError, which does not repeat the secret.
    """
    username, password = auth.username, auth.password
    if not username and not auth.identity_token and auth.auth:
        username, password = decode_auth(auth.auth)
    return Credentials(
        username,
        password,
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
        server=_server_host(auth.server_address),
    )


def decode_auth(encoded: str) -> tuple[str, str]:
    """Decode base64 of user:password, as docker's config.json holds it."""
    try:
        text = base64.b64decode(encoded, validate=True).decode()
    except ValueError:  # of base64, of ASCII or of UTF-8
        raise InvalidArgumentError("the auth field is not base64 of user:password") from None
    user, colon, password = text.partition(":")
    if not colon or not user:
        raise InvalidArgumentError("the auth field is not base64 of user:password")
    return user, password.strip("\0")


def _server_host(address: str) -> str:
    """Return the host of an address that may be a URL, as docker's https://index.docker.io/v1/."""
    return address.rpartition("://")[2].partition("/")[0]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Parse WWW-Authenticate headers; what is not a challenge is left out."""
    found: list[Challenge] = []
    for header in headers:
        found.extend(_parse_header(header[:MAX_CHALLENGE]))
    return found


def _parse_header(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    position = 0
    while match := _SCHEME.match(text, position):
        position = match.end()
        parameters: dict[str, str] = {}
        while param := _PARAM.match(text, position):
            value = param.group(2)
            plain = param.group(3) if value is None else re.sub(r"\\(.)", r"\1", value)
            parameters[param.group(1).lower()] = plain
            position = param.end()
        found.append(Challenge(match.group(1).lower(), parameters))
    return found

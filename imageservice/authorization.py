"""Answers to a registry's 401: basic credentials, or a token, kept for the pulls that follow.

Sources: distribution-spec's token authentication ("Token Authentication Specification" and "OAuth2
Token Authentication"), RFC 6750.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from yarl import URL

from imageservice.auth import Challenge, Credentials
from imageservice.endpoint import MAX_QUOTE, Endpoint
from imageservice.flights import Flights
from imageservice.transport import Request

# A token is some kilobytes at most.
MAX_TOKEN_BODY = 1 << 20
CLIENT_ID = "criserver"
# What a token server that names no lifetime means (token specification, "expires_in").
DEFAULT_LIFETIME = 60.0
# A token is not used for the last of its time: clocks drift, and a request takes some.
MARGIN = 5.0
# Tokens, and repositories with a known challenge, that are kept: bounds memory.
MAX_TOKENS = 1000


@dataclass(frozen=True)
class TokenKey:
    """What a token was given for: the same of all of these gets the same token."""

    host: str
    realm: str
    service: str
    scope: str
    credentials: Credentials


class Tokens:
    """Tokens that have not run out, and which of them a repository asked for last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens: dict[TokenKey, tuple[str, float]] = {}
        self._asked: dict[tuple[str, str, Credentials], TokenKey] = {}

    def get(self, key: TokenKey) -> str | None:
        """Return the token if it is still good."""
        entry = self._tokens.get(key)
        return entry[0] if entry is not None and self._clock() < entry[1] else None

    def put(self, key: TokenKey, token: str, lifetime: float) -> None:
        """Keep a token that lasts `lifetime` seconds from now on."""
        if len(self._tokens) >= MAX_TOKENS:
            self._drop_oldest()
        self._tokens[key] = (token, self._clock() + lifetime - min(MARGIN, lifetime / 2))

    def forget(self, key: TokenKey, token: str) -> None:
        """Drop a token that was refused, unless it has been replaced."""
        entry = self._tokens.get(key)
        if entry is not None and entry[0] == token:
            del self._tokens[key]

    def note(self, place: tuple[str, str, Credentials], key: TokenKey) -> None:
        """Remember what the repository `place` (base URL, path, who asks) wants to see."""
        if len(self._asked) >= MAX_TOKENS:
            del self._asked[next(iter(self._asked))]
        self._asked[place] = key

    def noted(self, place: tuple[str, str, Credentials]) -> str | None:
        """Return the token for what the repository wanted to see last."""
        key = self._asked.get(place)
        return None if key is None else self.get(key)

    def _drop_oldest(self) -> None:
        now = self._clock()
        self._tokens = {key: entry for key, entry in self._tokens.items() if entry[1] > now}
        while len(self._tokens) >= MAX_TOKENS:
            del self._tokens[next(iter(self._tokens))]


class Authorizer:
    """Authorizes the endpoints of all pulls; a token that several want is asked for once."""

    def __init__(self) -> None:
        self._tokens = Tokens()
        self._flights = Flights()

    def prepare(self, endpoint: Endpoint, repository: str) -> None:
        """Give the endpoint the token that an earlier pull of the repository got there."""
        if not endpoint.authorization:
            token = self._tokens.noted(_place(endpoint, repository))
            endpoint.authorization = f"Bearer {token}" if token else ""

    async def answer(
        self,
        endpoint: Endpoint,
        repository: str,
        challenges: Sequence[Challenge],
        refused: str,
    ) -> bool:
        """Answer a 401; False when there is nothing to answer it with.

        refused: the Authorization header that was sent, "" for none. Raises HostError.
        """
        for challenge in challenges:
            if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                if endpoint.credentials.registry_token:
                    return False  # it was sent, and refused
                token = await self._token(endpoint, repository, challenge, refused)
                endpoint.authorization = f"Bearer {token}"
                return True
            if challenge.scheme == "basic" and endpoint.credentials.basic:
                endpoint.authorization = endpoint.credentials.basic
                return endpoint.authorization != refused
        return False

    async def _token(
        self, endpoint: Endpoint, repository: str, challenge: Challenge, refused: str
    ) -> str:
        parameters = challenge.parameters
        key = TokenKey(
            endpoint.host.base,
            parameters["realm"],
            parameters.get("service", ""),
            parameters.get("scope") or f"repository:{repository}:pull",
            endpoint.credentials,
        )
        self._tokens.forget(key, refused.removeprefix("Bearer "))
        self._tokens.note(_place(endpoint, repository), key)
        token = self._tokens.get(key)
        if token is None:
            token = await self._flights.enter(key, lambda: self._ask(endpoint, key)).result()
        return token

    async def _ask(self, endpoint: Endpoint, key: TokenKey) -> str:
        request = _token_request(endpoint, key)
        server = f"token server {request.url.host}"
        async with await endpoint.send(request) as response:
            if response.status != 200:
                raise await endpoint.refusal(response, f"{server}: ")
            body = await endpoint.read_bounded(response, MAX_TOKEN_BODY, "the token")
        try:
            document = json.loads(body)
            token = document.get("token") or document.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            document, token = {}, None
        if not isinstance(token, str) or not token.isprintable():
            raise endpoint.wrong(401, f"{server} gave no token")
        self._tokens.put(key, token, _lifetime(document.get("expires_in")))
        return token

    async def close(self) -> None:
        """Break off the requests under way."""
        await self._flights.close()


def _place(endpoint: Endpoint, repository: str) -> tuple[str, str, Credentials]:
    return endpoint.host.base, repository, endpoint.credentials


def _lifetime(value: Any) -> float:
    """Return the seconds that a token lasts; the default for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        return DEFAULT_LIFETIME
    return float(min(value, 365 * 86400))


def _token_request(endpoint: Endpoint, key: TokenKey) -> Request:
    service = {"service": key.service} if key.service else {}
    realm = _realm(endpoint, key.realm)
    credentials = key.credentials
    if credentials.identity_token:
        form = {
            **service,
            "scope": key.scope,
            "grant_type": "refresh_token",
            "refresh_token": credentials.identity_token,
            "client_id": CLIENT_ID,
        }
        return Request(realm, endpoint.host, form=form)
    secret = {"Authorization": credentials.basic} if credentials.basic else {}
    query = {**service, "scope": key.scope.split()}  # a parameter for each
    return Request(realm.update_query(query), endpoint.host, secret_headers=secret)


def _realm(endpoint: Endpoint, text: str) -> URL:
    try:
        realm = URL(text)
        realm.origin()
    except ValueError as err:
        raise endpoint.wrong(401, f"its token realm {text[:MAX_QUOTE]!r}: {err}") from err
    if realm.scheme not in ("http", "https"):
        raise endpoint.wrong(401, f"its token realm {text[:MAX_QUOTE]!r} is no URL")
    if realm.scheme == "http" and endpoint.host.base.startswith("https:"):
        raise endpoint.wrong(401, "its token realm would get credentials in plain text")
    return realm

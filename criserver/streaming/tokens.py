"""The paths of streaming URLs: requests that wait for their client, each good for once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Generic, TypeVar

from api.errors import ResourceExhaustedError
from criserver.streaming.upgrade import HTTPError

# As the peers have them.
TTL_SECONDS = 60.0
MAX_WAITING = 1000

TOKEN_BYTES = 16  # not to be guessed: the token is all that a client needs

_T = TypeVar("_T")


class Tokens(Generic[_T]):
    """The requests that wait, by KIND/TOKEN."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[str, tuple[float, _T]] = {}  # the oldest first

    def insert(self, kind: str, request: _T) -> str:
        """Return the path for a request. Raises ResourceExhaustedError."""
        self._expire()
        if len(self._waiting) >= MAX_WAITING:
            raise ResourceExhaustedError(
                f"{MAX_WAITING} streaming requests wait for their clients: use their URLs, or wait "
                f"up to {TTL_SECONDS:.0f} s until one expires"
            )
        path = f"{kind}/{secrets.token_urlsafe(TOKEN_BYTES)}"
        self._waiting[path] = self._clock() + TTL_SECONDS, request
        return path

    def get(self, path: str) -> _T:
        """Return the request of a path. Raises HTTPError: it is unknown, was used or expired."""
        self._expire()
        if path not in self._waiting:
            raise HTTPError(
                HTTPStatus.NOT_FOUND,
                "the URL is unknown, was used or has expired: ask for a new one by the CRI",
            )
        return self._waiting[path][1]

    def use(self, path: str) -> None:
        """Forget a path that is being served."""
        del self._waiting[path]

    def _expire(self) -> None:
        now = self._clock()
        for path, (deadline, _) in list(self._waiting.items()):
            if deadline > now:
                break
            del self._waiting[path]

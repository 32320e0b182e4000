"""A token server for Debian's docker-registry, over HTTPS or HTTP, as distribution-spec has it.

It gives tokens to one user, by basic authentication or for a refresh token, and, for repositories
named public/…, to everybody.
"""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.integration.certificates import openssl

ISSUER = "tests"
SERVICE = "registry of the tests"
USER, PASSWORD, REFRESH_TOKEN = "me", "secret", "refresh"


@dataclass
class TokenServer:
    """Its key pair is in `directory`; `lifetime` in seconds is what it says of its tokens."""

    directory: Path
    lifetime: int = 300
    address: str = ""
    scheme: str = "http"
    asked: list[Mapping[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        key = ("-newkey", "rsa:2048", "-nodes", "-keyout", "token.key", "-out", "token.pem")
        openssl(self.directory, "req", "-x509", *key, "-subj", "/CN=token server")
        self._certificate = base64.b64encode(
            openssl(self.directory, "x509", "-in", "token.pem", "-outform", "DER")
        ).decode()

    def registry_settings(self) -> dict[str, Any]:
        """The `auth` section of a registry that believes this server."""
        return {
            "token": {
                "realm": f"{self.scheme}://{self.address}/token",
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(self.directory / "token.pem"),
            }
        }

    async def give(self, request: web.Request) -> web.Response:
        form = await request.post()
        asked = {"method": request.method, **request.query, **form}
        asked["authorization"] = request.headers.get("Authorization")
        self.asked.append(asked)
        repository = str(asked.get("scope", "")).split(":")[1:2]
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        known = (
            asked.get("refresh_token") == REFRESH_TOKEN
            or asked["authorization"] == f"Basic {pair}"
            or bool(repository and repository[0].startswith("public/"))
        )
        if not known:
            return web.json_response({"details": "who are you?"}, status=401)
        token = self._token(repository[0])
        key = "access_token" if request.method == "POST" else "token"
        return web.json_response({key: token, "expires_in": self.lifetime})

    def _token(self, repository: str) -> str:
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [self._certificate]}
        claims = {
            "iss": ISSUER,
            "sub": USER,
            "aud": SERVICE,
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": [{"type": "repository", "name": repository, "actions": ["pull"]}],
        }
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        signature = openssl(
            self.directory, "dgst", "-sha256", "-sign", "token.key", stdin=signed.encode()
        )
        return f"{signed}.{_encoded(signature)}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@asynccontextmanager
async def token_server(
    directory: Path, context: ssl.SSLContext | None = None
) -> AsyncIterator[TokenServer]:
    """Run one on a free port of 127.0.0.1."""
    server = TokenServer(directory, scheme="https" if context else "http")
    application = web.Application()
    application.router.add_route("*", "/token", server.give)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        host, port = runner.addresses[0][:2]
        server.address = f"{host}:{port}"
        yield server
    finally:
        await runner.cleanup()

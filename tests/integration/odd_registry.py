"""A registry of the tests' own over real HTTP, which can be made to do what no registry should."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from tests.integration import images

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Opener = Callable[..., Awaitable["OddRegistry"]]


class OddRegistry:
    """Serves what `add` gave it; a hook takes the requests whose path contains its key."""

    def __init__(self) -> None:
        self.address = ""  # HOST:PORT
        self.content: dict[str, tuple[str, bytes]] = {}  # path -> type, bytes
        self.hooks: dict[str, Handler] = {}
        self.requests: list[web.Request] = []

    def add(self, repository: str, image: images.Image, tag: str = "latest") -> str:
        """Make an image available; returns its name."""
        self.add_manifest(repository, image.manifest, image.types.manifest, tag)
        for blob in image.blobs:
            self.add_blob(repository, blob)
        return f"{self.address}/{repository}:{tag}"

    def add_manifest(self, repository: str, body: bytes, kind: str, tag: str) -> None:
        for name in (tag, images.digest(body)):
            self.content[f"/v2/{repository}/manifests/{name}"] = (kind, body)

    def add_blob(self, repository: str, blob: bytes) -> None:
        path = f"/v2/{repository}/blobs/{images.digest(blob)}"
        self.content[path] = ("application/octet-stream", blob)

    def paths(self) -> list[str]:
        """Return the paths of the requests, in order."""
        return [request.path for request in self.requests]

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer a request as a registry should."""
        kind, body = self.content.get(request.path, ("", b""))
        if not kind:
            error = {"errors": [{"code": "NOT_HERE", "message": "no such thing"}]}
            return web.json_response(error, status=404)
        start = request.http_range.start or 0
        headers = {"Content-Type": kind}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return web.Response(body=body[start:], headers=headers, status=206 if start else 200)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        for key, hook in self.hooks.items():
            if key in request.path:
                return await hook(request)
        return await self.serve(request)


@asynccontextmanager
async def odd_registry(context: ssl.SSLContext | None = None) -> AsyncIterator[OddRegistry]:
    """Run one on a free port of 127.0.0.1."""
    registry = OddRegistry()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", registry.handle)
    runner = web.AppRunner(application, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        host, port = runner.addresses[0][:2]
        registry.address = f"{host}:{port}"
        yield registry
    finally:
        await runner.cleanup()


def small_image(text: str = "content") -> images.Image:
    """An image of one file."""
    return images.Image((images.files_layer({"file": text}),), {"Env": [f"T={text}"]})


def answer(
    status: int = 200, body: bytes = b"", **headers: str
) -> Callable[..., Awaitable[web.Response]]:
    """A hook that always gives this answer; X_Y names the header X-Y."""

    async def hook(request: web.Request) -> web.Response:
        names = {key.replace("_", "-"): value for key, value in headers.items()}
        return web.Response(status=status, body=body, headers=names)

    return hook

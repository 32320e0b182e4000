"""A registry in threads, for tests without an event loop, that holds blobs back half-way."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.integration import images
from tests.integration.daemon import PATIENCE

SECONDS = 60.0 * PATIENCE  # only a failure holds a blob that long


class HeldRegistry:
    """Serves what `add` gave it. `authorization`, if set, is what it wants to see."""

    def __init__(self) -> None:
        registry = self
        self.authorization = ""
        self.gets: list[str] = []
        self._content: dict[str, tuple[str, bytes]] = {}
        self._held: dict[str, threading.Event] = {}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry.gets.append(self.path)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    registry.serve(self)

            def log_message(self, *_: object) -> None:
                """Keep the output of the tests clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = "127.0.0.1:" + str(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def add(self, repository: str, image: images.Image) -> str:
        """Make an image available; returns its name."""
        for name in ("latest", images.digest(image.manifest)):
            path = f"/v2/{repository}/manifests/{name}"
            self._content[path] = (image.types.manifest, image.manifest)
        for blob in image.blobs:
            path = f"/v2/{repository}/blobs/{images.digest(blob)}"
            self._content[path] = ("application/octet-stream", blob)
        return f"{self.address}/{repository}:latest"

    def hold(self, layer: images.Layer) -> threading.Event:
        """Hold a layer's blob when half of it has been sent, until the event is set."""
        return self._held.setdefault(images.digest(layer.blob), threading.Event())

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        kind, body = self._content.get(handler.path, ("", b""))
        status, headers = (200, {"Content-Type": kind}) if kind else (404, {})
        if self.authorization and handler.headers.get("Authorization") != self.authorization:
            status, headers, body = 401, {"WWW-Authenticate": 'Basic realm="tests"'}, b""
        held = self._held.get(handler.path.rpartition("/")[2])
        start = int(handler.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
        if start and status == 200:
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body) - start)}.items():
            handler.send_header(name, value)
        handler.end_headers()
        half = max(start, len(body) // 2)
        handler.wfile.write(body[start:half])
        handler.wfile.flush()
        if held is not None and status == 200:
            held.wait(SECONDS)
        handler.wfile.write(body[half:])

    def close(self) -> None:
        """Let go of what is held, and end."""
        for event in self._held.values():
            event.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

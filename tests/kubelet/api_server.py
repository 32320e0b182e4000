"""The part of a Kubernetes API server that a kubelet needs to be given pods: lists and watches.

Objects are kept as they were given; the kubelet's own changes (a pod's status) are merged in. All
else that a kubelet asks for is an empty list, so a node has no services, no drivers, no secrets.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]

# The API version and the kind of a resource's list, of those that a kubelet watches.
LISTS = {
    "pods": ("v1", "PodList"),
    "nodes": ("v1", "NodeList"),
    "services": ("v1", "ServiceList"),
    "configmaps": ("v1", "ConfigMapList"),
    "csidrivers": ("storage.k8s.io/v1", "CSIDriverList"),
    "runtimeclasses": ("node.k8s.io/v1", "RuntimeClassList"),
}
WATCH_SECONDS = 30.0  # then a watch ends, and the client begins another


class ApiServer:
    """A server on a free port of 127.0.0.1, with the pods and config maps of a test."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str, str], Object] = {}  # (resource, namespace, name)
        self._changes: list[tuple[str, str, Object]] = []  # (resource, type, object), for ever
        self._changed = threading.Condition()
        self._closing = False
        server = self

        class Handler(_Handler):
            api = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def kubeconfig(self) -> Object:
        """A kubeconfig for it, as JSON, which is YAML."""
        url = f"http://127.0.0.1:{self._http.server_address[1]}"
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": {"server": url}}],
            "users": [{"name": "kubelet", "user": {}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "kubelet"}}],
            "current-context": "tests",
        }

    def put(self, resource: str, value: Object) -> None:
        """Add an object, or replace the one of its name."""
        with self._changed:
            metadata = value["metadata"]
            key = (resource, metadata.get("namespace", ""), metadata["name"])
            kind = "MODIFIED" if key in self._objects else "ADDED"
            self._store(key, kind, copy.deepcopy(value))

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        """A copy of an object."""
        with self._changed:
            return copy.deepcopy(self._objects.get((resource, namespace, name)))

    def merge(self, resource: str, namespace: str, name: str, patch: Object) -> Object | None:
        """Merge into an object as the kubelet asks for it; what it is then."""
        with self._changed:
            key = (resource, namespace, name)
            if key not in self._objects:
                return None
            merged = _merged(self._objects[key], patch)
            self._store(key, "MODIFIED", merged)
            return copy.deepcopy(merged)

    def delete(self, resource: str, namespace: str, name: str) -> Object | None:
        """Remove an object at once; what it was."""
        with self._changed:
            key = (resource, namespace, name)
            if key not in self._objects:
                return None
            gone = self._objects[key]
            self._store(key, "DELETED", gone)
            del self._objects[key]
            return gone

    def _store(self, key: tuple[str, str, str], kind: str, value: Object) -> None:
        self._objects[key] = value
        value["metadata"]["resourceVersion"] = str(len(self._changes) + 1)
        self._changes.append((key[0], kind, copy.deepcopy(value)))
        self._changed.notify_all()

    def list(self, resource: str) -> Object:
        """All objects of a resource, as a list."""
        version, kind = LISTS.get(resource, ("v1", "List"))
        with self._changed:
            items = [v for key, v in self._objects.items() if key[0] == resource]
            return {
                "kind": kind,
                "apiVersion": version,
                "metadata": {"resourceVersion": str(len(self._changes))},
                "items": copy.deepcopy(items),
            }

    def watch(self, resource: str, since: int) -> Iterator[Object]:
        """The changes of a resource after the one with the number `since`, as they come."""
        while True:
            with self._changed:
                known = since
                self._changed.wait_for(
                    lambda known=known: len(self._changes) > known or self._closing, WATCH_SECONDS
                )
                if self._closing or len(self._changes) == known:
                    return
                new, since = self._changes[known:], len(self._changes)
            for of, kind, value in new:
                if of == resource:
                    yield {"type": kind, "object": value}

    def close(self) -> None:
        """End the server and its watches."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    api: ApiServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        resource, namespace, name = self._address()
        query = parse_qs(urlsplit(self.path).query)
        if query.get("watch", [""])[0] in ("true", "1"):
            if "sendInitialEvents" in query:
                self._answer(None, 422, "Invalid")  # as a server that knows lists only
                return
            self._watch(resource, int(query.get("resourceVersion", ["0"])[0] or 0))
        elif name and not query.get("fieldSelector"):
            self._answer(self.api.get(resource, namespace, name))
        else:
            self._answer(self.api.list(resource))

    def do_POST(self) -> None:
        resource, namespace, _ = self._address()
        value = self._body()
        if resource in ("pods", "nodes"):  # a mirror of a static pod, or the node itself
            value["metadata"].setdefault("uid", f"uid-{value['metadata']['name']}")
            value["metadata"].setdefault("namespace", namespace)
            self.api.put(resource, value)
        self._answer(value, 201)

    def do_PUT(self) -> None:
        self._answer(self._body())

    def do_PATCH(self) -> None:
        resource, namespace, name = self._address()
        self._answer(self.api.merge(resource, namespace, name, self._body()))

    def do_DELETE(self) -> None:
        resource, namespace, name = self._address()
        self._body()
        self._answer(self.api.delete(resource, namespace, name))

    def _address(self) -> tuple[str, str, str]:
        """Resource, namespace and name of /api/v1/… or /apis/GROUP/VERSION/…"""
        parts = urlsplit(self.path).path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if len(parts) > 2 and parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        return parts[0] if parts else "", namespace, parts[1] if len(parts) > 1 else ""

    def _body(self) -> Object:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        value: Object = json.loads(data) if data else {}
        return value

    def _answer(self, value: Object | None, status: int = 200, reason: str = "NotFound") -> None:
        if value is None:
            status = 404 if status == 200 else status
            value = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status,
                     "reason": reason, "message": reason}  # fmt: skip
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _watch(self, resource: str, since: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for change in self.api.watch(resource, since):
                data = json.dumps(change).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True  # the kubelet has gone

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _merged(value: Any, patch: Any) -> Any:
    """A strategic merge patch as far as statuses need it: lists with names or types by those."""
    if isinstance(value, dict) and isinstance(patch, dict):
        merged = {**value}
        for key, change in patch.items():
            if key.startswith("$"):
                continue
            if change is None:
                merged.pop(key, None)
            else:
                merged[key] = _merged(value.get(key), change)
        return merged
    if key := _merge_key(value, patch):
        old = {item[key]: item for item in value}
        for item in patch:
            old[item[key]] = _merged(old.get(item[key]), item)
        return list(old.values())
    return patch


def _merge_key(value: Any, patch: Any) -> str:
    """What identifies the items of two lists that are merged; "" when they are not."""
    if not (isinstance(value, list) and isinstance(patch, list)):
        return ""
    items = [*value, *patch]
    for key in ("type", "name"):
        if items and all(isinstance(item, dict) and key in item for item in items):
            return key
    return ""

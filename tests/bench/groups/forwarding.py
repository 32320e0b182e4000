"""What a port-forward carries: the pod is on the host's network, so both ends are ours."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from api.cri import api_pb2 as cri
from tests.bench.client import Client
from tests.bench.groups.transfers import (
    BUFFER,
    MB,
    MIB,
    PIECE,
    Incomplete,
    Streams,
    frame_head,
    rate,
    skip,
)
from tests.integration import stream_clients
from tests.integration.stream_clients import V4, client_frame

SECONDS = 120.0
DATA = 0  # the WebSocket channel of the first port's data; its errors are on 1


def run_pod(client: Client) -> str:
    """A pod to forward ports to; returns its id."""
    config = client.pod_config()
    config.linux.security_context.namespace_options.network = cri.NODE
    return client.run_pod(config)


@contextlib.contextmanager
def _listening(client: Client, pod: str) -> Iterator[tuple[socket.socket, int, str]]:
    """A listening socket, its port, and the URL that forwards there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        port = int(listener.getsockname()[1])
        yield listener, port, client.forward_url(pod, port)


@contextlib.contextmanager
def _beside(listener: socket.socket, work: Callable[[socket.socket], None]) -> Iterator[None]:
    """Accept the forwarded connection, and do the pod's part of the work in a thread to its end."""
    with listener.accept()[0] as accepted:
        accepted.settimeout(SECONDS)
        thread = threading.Thread(target=work, args=(accepted,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # wake it, if it waits for what will not come
                accepted.shutdown(socket.SHUT_RDWR)
            thread.join()


def _sender(mib: int) -> Callable[[socket.socket], None]:
    def send(accepted: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client counts what has come
            for _ in range(mib):
                accepted.sendall(bytes(MIB))

    return send


class _Sink:
    """Reads so many bytes from the forwarded connection."""

    def __init__(self, mib: int) -> None:
        self._left = mib * MIB
        self.full = threading.Event()

    def read(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while self._left > 0 and (got := accepted.recv_into(BUFFER)):
                self._left -= got
        if self._left <= 0:
            self.full.set()


def _streams(url: str, port: int) -> Streams:
    headers = {"port": str(port), "requestid": "0"}
    return Streams(url, "data", "portforward.k8s.io", **headers)


def spdy_out(client: Client, pod: str, mib: int) -> float:
    """MB/s of what the pod sends."""
    with _listening(client, pod) as (listener, port, url):
        streams = _streams(url, port)
        try:
            with _beside(listener, _sender(mib)):
                began = time.perf_counter()
                streams.until(lambda: streams.counted >= mib * MIB or streams.over)
            return rate(streams.counted, mib, time.perf_counter() - began)
        finally:
            streams.hang_up()


def spdy_in(client: Client, pod: str, mib: int) -> float:
    """MB/s of what the pod has read."""
    sink = _Sink(mib)
    with _listening(client, pod) as (listener, port, url):
        streams = _streams(url, port)
        frames = streams.frames(streams.data_stream, bytes(MIB))
        try:
            with _beside(listener, sink.read):
                began = time.perf_counter()
                for _ in range(mib):
                    streams.send(frames)
                return _read_rate(sink, mib, began)
        finally:
            streams.hang_up()


def websocket_out(client: Client, pod: str, mib: int) -> float:
    """MB/s of what the pod sends."""
    with _listening(client, pod) as (listener, _, url):
        connection = stream_clients.websocket_connection(url, V4)
        counted = 0
        try:
            with _beside(listener, _sender(mib)):
                began = time.perf_counter()
                while counted < mib * MIB:
                    opcode, size = frame_head(connection)
                    if opcode == 8:
                        break
                    channel = connection.exactly(1)[0] if size else DATA + 1
                    counted += skip(connection, max(0, size - 1)) * (channel == DATA)
            return rate(counted, mib, time.perf_counter() - began)
        finally:
            connection.close()


def websocket_in(client: Client, pod: str, mib: int) -> float:
    """MB/s of what the pod has read."""
    sink = _Sink(mib)
    frames = client_frame(2, bytes((DATA,)) + bytes(PIECE)) * (MIB // PIECE)
    with _listening(client, pod) as (listener, _, url):
        connection = stream_clients.websocket_connection(url, V4)
        try:
            with _beside(listener, sink.read):
                began = time.perf_counter()
                for _ in range(mib):
                    connection.sock.sendall(frames)
                return _read_rate(sink, mib, began)
        finally:
            connection.close()


def _read_rate(sink: _Sink, mib: int, began: float) -> float:
    if not sink.full.wait(SECONDS):
        raise Incomplete(f"not all of {mib} MiB have arrived")
    return mib * MIB / MB / (time.perf_counter() - began)


WAYS: dict[str, Callable[[Client, str, int], float]] = {
    "port-forward over SPDY, out": spdy_out,
    "port-forward over SPDY, in": spdy_in,
    "port-forward over WebSocket, out": websocket_out,
    "port-forward over WebSocket, in": websocket_in,
}

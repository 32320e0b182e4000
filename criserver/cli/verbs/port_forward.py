"""Forward ports of this machine to a pod, until it is interrupted.

Connections to a local port arrive at a port of the pod's localhost, so a server that listens there
alone is reached too. LOCAL:REMOTE names both; REMOTE alone is the same port here, and :REMOTE any
free one. The local address is 127.0.0.1, if --address does not name another.

examples:
  criserver port-forward web 8080:80
  criserver port-forward web :5432
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import selectors
import socket
import sys
import threading
from collections.abc import Iterator

import grpc

from api.extension import extension_pb2 as pb
from criserver.cli.client import Client
from criserver.cli.containers import find_pod, search_container
from criserver.cli.errors import CommandError

CHUNK_SIZE = 64 * 1024
MAX_CHUNKS_IN_FLIGHT = 4  # read ahead of the pod, for each connection
MAX_PORT = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--address", default="127.0.0.1", metavar="IP", help="to listen at (default: 127.0.0.1)"
    )
    parser.add_argument("pod", metavar="POD", help="id or name of a pod, or of a container in it")
    parser.add_argument("ports", nargs="+", type=parse_ports, metavar="[LOCAL:]REMOTE")


def parse_ports(text: str) -> tuple[int, int]:
    """Return the local port, 0 for any, and the remote one."""
    local, colon, remote = text.rpartition(":")
    numbers = (local if colon else remote) or "0", remote
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not [LOCAL:]REMOTE with port numbers")
    first, second = int(numbers[0]), int(numbers[1])
    if first > MAX_PORT or not 1 <= second <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r}: ports are from 1 to {MAX_PORT}")
    return first, second


def run(options: argparse.Namespace) -> int:
    """Forward until SIGINT."""
    with Client(options.endpoint) as client, contextlib.ExitStack() as stack:
        pod_id = _pod_id(client, options.pod)
        selector = stack.enter_context(selectors.DefaultSelector())
        for local, remote in options.ports:
            listener = stack.enter_context(_listen(options.address, local))
            selector.register(listener, selectors.EVENT_READ, remote)
            host, port = listener.getsockname()[:2]
            sys.stdout.write(f"{host}:{port} -> {remote}\n")
        sys.stdout.flush()
        while True:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                connection, _address = key.fileobj.accept()
                arguments = (client, connection, pod_id, key.data)
                threading.Thread(target=_serve, args=arguments, daemon=True).start()


def _pod_id(client: Client, reference: str) -> str:
    try:
        return find_pod(client, reference).id
    except CommandError:
        container = search_container(client, reference)
        if container is None:
            raise
        return container.pod_sandbox_id


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family)
    except OSError as err:
        raise CommandError(f"cannot listen at {address}:{port}: {err.strerror}") from err


def _serve(client: Client, connection: socket.socket, pod_id: str, port: int) -> None:
    """Relay one connection; what goes wrong with it is told, and ends no other."""
    to_pod: queue.Queue[pb.PortForwardInput | None] = queue.Queue(MAX_CHUNKS_IN_FLIGHT)
    start = pb.PortForwardStart(pod_sandbox_id=pod_id, port=port)
    to_pod.put(pb.PortForwardInput(start=start))
    over = threading.Event()
    reader = threading.Thread(target=_read, args=(connection, to_pod, over), daemon=True)
    with connection:
        try:
            for answer in client.extension.PortForward(_messages(to_pod)):
                if answer.WhichOneof("output") == "started":
                    reader.start()
                else:
                    connection.sendall(answer.data)
            connection.shutdown(socket.SHUT_WR)
        except grpc.RpcError as err:
            sys.stderr.write(f"criserver port-forward: port {port}: {client.explain(err)}\n")
        except OSError:  # the client here has gone
            pass
        finally:
            over.set()
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
            _drain(to_pod)


def _messages(to_pod: queue.Queue[pb.PortForwardInput | None]) -> Iterator[pb.PortForwardInput]:
    while (message := to_pod.get()) is not None:
        yield message


def _read(
    connection: socket.socket,
    to_pod: queue.Queue[pb.PortForwardInput | None],
    over: threading.Event,
) -> None:
    """Send what the client here sends, until its end."""
    while not over.is_set():
        try:
            data = connection.recv(CHUNK_SIZE)
        except OSError:  # reset: an end like any other
            data = b""
        if not data:
            break
        to_pod.put(pb.PortForwardInput(data=data))
    to_pod.put(None)


def _drain(to_pod: queue.Queue[pb.PortForwardInput | None]) -> None:
    """Let a reader go that waits for room, and gRPC's thread that waits for a message."""
    with contextlib.suppress(queue.Empty):
        while True:
            to_pod.get_nowait()
    to_pod.put(None)

"""TCP connections to what listens in a pod, made from outside of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket

from runtimeshim.client import Spawner

WORKER = "sockets"

WORKER_SECONDS = 10.0
CONNECT_SECONDS = 30.0  # at the pod's own loopback

_LOCALHOST = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


async def connect_localhost(spawner: Spawner, netns: str | None, port: int) -> socket.socket:
    """Connect to a TCP port of a pod's localhost, by IPv4 or else by IPv6.

    netns is the path of the pod's network namespace, None for the host's. The socket does not block
    and is the caller's. Raises OSError with the reason for each address, and what
    Spawner.run_worker raises (a TimeoutError is the worker's).
    """
    with contextlib.ExitStack() as stack:
        sockets = _host_sockets() if netns is None else await _pod_sockets(spawner, netns)
        for sock in sockets:
            stack.callback(sock.close)
        refusals: list[tuple[str, OSError]] = []
        for sock in sockets:
            address = _LOCALHOST[sock.family]
            try:
                await _connect(sock, (address, port))
            except OSError as err:
                refusals.append((address, err))
            else:
                return sock.dup()
    reasons = ", ".join(f"{address}: {_reason(err)}" for address, err in refusals)
    number = refusals[0][1].errno if refusals else errno.EAFNOSUPPORT
    raise OSError(number, f"cannot connect to port {port} at the pod's localhost ({reasons})")


def _host_sockets() -> list[socket.socket]:
    return [socket.socket(family, socket.SOCK_STREAM) for family in _LOCALHOST]


async def _pod_sockets(spawner: Spawner, netns: str) -> list[socket.socket]:
    _, fds = await spawner.run_worker(WORKER, {"netns": netns}, timeout=WORKER_SECONDS)
    return [socket.socket(fileno=fd) for fd in fds]


async def _connect(sock: socket.socket, address: tuple[str, int]) -> None:
    sock.setblocking(False)
    async with asyncio.timeout(CONNECT_SECONDS):  # TimeoutError is an OSError
        await asyncio.get_running_loop().sock_connect(sock, address)


def _reason(err: OSError) -> str:
    return os.strerror(err.errno) if err.errno else f"no answer in {CONNECT_SECONDS:.0f} s"

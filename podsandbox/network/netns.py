"""Work inside a pod's network namespace, without a process in it.

A socket belongs to the namespace in which it was opened, whoever uses it later. So it is enough
that one thread enters the namespace for that moment: it is a thread of its own that ends there, and
never has to find its way back.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from api.errors import FailedPreconditionError, UnavailableError
from podsandbox.network import rtnetlink
from podsandbox.network.netlink_socket import NetlinkSocket
from podsandbox.network.rtnetlink import InterfaceCounters
from runtimeshim.linux import syscalls

# A connection to the loopback interface is made or refused at once; this is for a listener whose
# queue is full.
_CONNECT_SECONDS = 30.0

_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))

T = TypeVar("T")


def enter(netns: str | Path) -> None:
    """Move the calling thread into a network namespace. Raises OSError."""
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
    finally:
        os.close(fd)


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a new thread that ends with it, so that it may change namespaces."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as err:  # noqa: BLE001 - raised again where the result is awaited
            future.set_exception(err)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="netns", daemon=True).start()
    # Shielded: the thread cannot be stopped, and its future must stay its own to set.
    return await asyncio.shield(asyncio.wrap_future(future))


async def connect_in_netns(netns: str | Path | None, port: int) -> socket.socket:
    """Connect to a TCP port on localhost in a pod's network namespace; None is the host's.

    IPv4 is tried first, then IPv6, as kubectl port-forward expects. The socket is non-blocking and
    the caller's. Raises UnavailableError when nothing listens, and FailedPreconditionError when the
    namespace has gone.
    """
    refusals = []
    for family, address in _LOOPBACK:
        sock = await _open_tcp(netns, family)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except OSError as err:  # TimeoutError is one
            sock.close()
            refusals.append(f"{address}: {os.strerror(err.errno) if err.errno else 'no answer'}")
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise UnavailableError(f"connect to port {port} inside the pod: {'; '.join(refusals)}")


async def _open_tcp(netns: str | Path | None, family: int) -> socket.socket:
    def open_socket() -> socket.socket:
        if netns is not None:
            enter(netns)
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        return sock

    try:
        return await in_thread(open_socket)
    except OSError as err:
        raise FailedPreconditionError(f"the pod's network namespace {netns}: {err}") from err


async def counters_of(
    namespaces: Mapping[str, str | Path | None],
) -> dict[str, list[InterfaceCounters]]:
    """Read the counters of every interface in each namespace, by the keys given.

    None is the host's namespace. A pod that has gone meanwhile is left out. One thread visits them
    all: some 0.1 ms each.
    """

    def read() -> dict[str, list[InterfaceCounters]]:
        # The host's first: afterwards this thread is somewhere else.
        order = sorted(namespaces, key=lambda key: namespaces[key] is not None)
        return {
            key: counters for key in order if (counters := _counters(namespaces[key])) is not None
        }

    return await in_thread(read)


def _counters(netns: str | Path | None) -> list[InterfaceCounters] | None:
    if netns is not None:
        try:
            enter(netns)
        except OSError:  # unpinned: ENOENT, or EINVAL on what is left of the pin
            return None
    with NetlinkSocket() as netlink:
        replies = netlink.request(rtnetlink.get_links())
    return [
        rtnetlink.parse_counters(reply.body)
        for reply in replies
        if reply.type == rtnetlink.RTM_NEWLINK
    ]

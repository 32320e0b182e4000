"""A blocking netlink socket: requests in one datagram, their answers, errors with their cause.

The kernel does the work of a request inside send(2), so the answer is there when send returns. What
can take long is the wait for the kernel's own rtnl lock: callers on an event loop use a thread.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Self

from podsandbox.network import rtnetlink
from podsandbox.network.rtnetlink import NLMSG_DONE, NLMSG_ERROR, Reply, Request

# linux/netlink.h; Python's socket module has no names for them.
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11

# The kernel fills at most 32 KiB of a dump in one datagram (net/netlink/af_netlink.c).
_RECEIVE_SIZE = 64 * 1024

# The kernel answers at once; this only bounds a fault of ours.
_TIMEOUT_SECONDS = 30.0


class NetlinkSocket:
    """One netlink socket; it acts in the network namespace in which it was opened."""

    def __init__(self, fd: int | None = None, protocol: int = socket.NETLINK_ROUTE) -> None:
        """Adopt `fd`, opened elsewhere, or open a socket in the caller's own namespace."""
        if fd is None:
            flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_NETLINK, flags, protocol)
        else:
            self._socket = socket.socket(fileno=fd)
        self._sequence = 0
        self._socket.settimeout(_TIMEOUT_SECONDS)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, *requests: Request) -> list[Reply]:
        """Send `requests` together, wait for all of them, and return what they answered.

        Raises OSError for the first that failed; the kernel has tried the others all the same.
        """
        first = self._sequence + 1
        self._sequence += len(requests)
        self._socket.send(b"".join(request.encode(first + n) for n, request in enumerate(requests)))
        return self._collect(first, requests)

    def _collect(self, first: int, requests: Sequence[Request]) -> list[Reply]:
        pending = set(range(first, first + len(requests)))
        failure: OSError | None = None
        answers: list[Reply] = []
        while pending:
            for reply in rtnetlink.replies(self._socket.recv(_RECEIVE_SIZE)):
                if reply.sequence not in pending:
                    continue  # of a request whose caller gave up on a timeout
                if reply.type not in (NLMSG_ERROR, NLMSG_DONE):
                    answers.append(reply)
                    continue
                pending.discard(reply.sequence)
                if reply.type == NLMSG_ERROR and failure is None:
                    failure = _failure(reply, requests[reply.sequence - first].what)
        if failure is not None:
            raise failure
        return answers


def _failure(reply: Reply, what: str) -> OSError | None:
    number, words = rtnetlink.error_of(reply)
    if number == 0:
        return None
    detail = f" ({words})" if words else ""
    return OSError(number, f"{what}: {os.strerror(number)}{detail}")

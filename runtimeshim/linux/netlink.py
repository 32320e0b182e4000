"""netlink(7): messages and attributes as bytes, and a socket that asks and waits.

Shared by all who speak to the kernel so; the messages of a family stand with whoever sends them.

The kernel does the work of a request inside send(2), so the answer is there when send returns. What
can take long is the wait for the kernel's own rtnl lock: callers on an event loop use a thread.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

# linux/netlink.h
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

# linux/netlink.h; Python's socket module has no names for them.
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11

# The kernel fills at most 32 KiB of a dump in one datagram (net/netlink/af_netlink.c).
_RECEIVE_SIZE = 64 * 1024

# The kernel answers at once; this only bounds a fault of ours.
_TIMEOUT_SECONDS = 30.0

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type


class Request(NamedTuple):
    """A message without its sequence number; `what` names it in an error."""

    type: int
    flags: int
    body: bytes
    what: str

    def encode(self, sequence: int) -> bytes:
        """Return the message for the wire."""
        length = _HEADER.size + len(self.body)
        return _HEADER.pack(length, self.type, self.flags, sequence, 0) + self.body


class Reply(NamedTuple):
    """A message from the kernel; `body` is what follows its header."""

    type: int
    flags: int
    sequence: int
    body: bytes


def attribute(kind: int, data: bytes) -> bytes:
    """Encode one attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Encode an attribute that is made of others."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def attributes(data: bytes) -> dict[int, bytes]:
    """Decode a run of attributes; of a repeated one the last is kept."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            raise ValueError(f"netlink attribute of {length} bytes at offset {offset}")
        found[kind & NLA_TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + (-length % 4)
    return found


def replies(data: bytes) -> Iterator[Reply]:
    """Split one datagram into its messages."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise ValueError(f"netlink message of {length} bytes at offset {offset}")
        yield Reply(kind, flags, sequence, data[offset + _HEADER.size : offset + length])
        offset += length + (-length % 4)


def error_of(reply: Reply) -> tuple[int, str]:
    """Return the errno (0 is an acknowledgement) and the kernel's own words of an NLMSG_ERROR."""
    (number,) = struct.unpack_from("=i", reply.body)
    if not reply.flags & NLM_F_ACK_TLVS:
        return -number, ""
    # NETLINK_CAP_ACK is set: only the header of the failed request comes before the attributes.
    words = attributes(reply.body[4 + _HEADER.size :]).get(NLMSGERR_ATTR_MSG, b"")
    return -number, words.rstrip(b"\0").decode(errors="replace")


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
            for reply in replies(self._socket.recv(_RECEIVE_SIZE)):
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
    number, words = error_of(reply)
    if number == 0:
        return None
    detail = f" ({words})" if words else ""
    return OSError(number, f"{what}: {os.strerror(number)}{detail}")

"""The few rtnetlink messages that moving a network device takes (man 7 rtnetlink)."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from runtimeshim.linux import syscalls
from runtimeshim.linux.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NetlinkSocket,
    Request,
    attribute,
    attributes,
)

# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_GETADDR = 16, 18, 20, 22
IFLA_IFNAME, IFLA_NET_NS_PID = 3, 19
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
IFF_UP = 0x1
IFA_F_PERMANENT = 0x80
RT_SCOPE_UNIVERSE = 0

_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index


class Address(NamedTuple):
    """An address of an interface, with the attributes that it is set again by."""

    family: int
    prefix_length: int
    attributes: tuple[tuple[int, bytes], ...]


class Netlink:
    """A route socket of the network namespace that it was opened in."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def index(self, name: str) -> int:
        """Return an interface's index. Raises OSError (ENODEV)."""
        body = _LINK.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, _name(name))
        (reply,) = self._socket.request(
            Request(RTM_GETLINK, NLM_F_REQUEST | NLM_F_ACK, body, f"find link {name}")
        )
        return int(_LINK.unpack_from(reply.body)[2])

    def addresses(self, index: int) -> list[Address]:
        """Return an interface's addresses that are permanent and of global scope."""
        found = []
        body = _ADDRESS.pack(0, 0, 0, 0, 0)
        dump = Request(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, body, "list addresses")
        for reply in self._socket.request(dump):
            family, prefix_length, flags, scope, owner = _ADDRESS.unpack_from(reply.body)
            if owner != index or scope != RT_SCOPE_UNIVERSE or not flags & IFA_F_PERMANENT:
                continue
            kept = tuple(
                (kind, value)
                for kind, value in attributes(reply.body[_ADDRESS.size :]).items()
                if kind in (IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST)
            )
            found.append(Address(family, prefix_length, kept))
        return found

    def move(self, index: int, new_name: str, pid: int) -> None:
        """Move an interface to a process's network namespace, under another name there."""
        body = _LINK.pack(0, 0, index, 0, 0)
        body += attribute(IFLA_NET_NS_PID, struct.pack("=I", pid))
        body += attribute(IFLA_IFNAME, _name(new_name))
        self.change(RTM_NEWLINK, 0, body, f"move a link to process {pid} as {new_name}")

    def set_up(self, index: int) -> None:
        """Bring an interface up."""
        body = _LINK.pack(0, 0, index, IFF_UP, IFF_UP)
        self.change(RTM_NEWLINK, 0, body, f"bring link {index} up")

    def add_address(self, index: int, address: Address) -> None:
        """Give an interface an address."""
        body = _ADDRESS.pack(
            address.family, address.prefix_length, IFA_F_PERMANENT, RT_SCOPE_UNIVERSE, index
        )
        for kind, value in address.attributes:
            body += attribute(kind, value)
        self.change(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body, f"add an address to link {index}")

    def change(self, kind: int, flags: int, body: bytes, what: str) -> None:
        """Send a request and wait until it is carried out. Raises OSError."""
        self._socket.request(Request(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body, what))


def _name(name: str) -> bytes:
    return name.encode() + b"\0"


def open_in(pid: int) -> Netlink:
    """Return a route socket in a process's network namespace; ours is the same afterwards."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        other = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(other, syscalls.CLONE_NEWNET)
            try:
                return Netlink()
            finally:
                syscalls.setns(own, syscalls.CLONE_NEWNET)
        finally:
            os.close(other)
    finally:
        os.close(own)

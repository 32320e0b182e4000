"""The few rtnetlink messages that moving a network device takes (man 7 rtnetlink)."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from runtimeshim.linux import syscalls

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_CREATE, NLM_F_EXCL = 0x400, 0x200
RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_GETADDR = 16, 18, 20, 22
IFLA_IFNAME, IFLA_NET_NS_PID = 3, 19
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFF_UP = 0x1
IFA_F_PERMANENT = 0x80
RT_SCOPE_UNIVERSE = 0

# The kernel's largest dump message (NLMSG_GOODSIZE is smaller).
_BUFFER = 1 << 16

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ATTRIBUTE = struct.Struct("=HH")


class Address(NamedTuple):
    """An address of an interface, with the attributes that it is set again by."""

    family: int
    prefix_length: int
    attributes: tuple[tuple[int, bytes], ...]


class Netlink:
    """A route socket of the network namespace that it was opened in."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def index(self, name: str) -> int:
        """Return an interface's index. Raises OSError (ENODEV)."""
        request = _LINK.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, _name(name))
        for _, payload in self._ask(RTM_GETLINK, 0, request):
            return int(_LINK.unpack_from(payload)[2])
        raise OSError(19, f"no interface {name}")

    def addresses(self, index: int) -> list[Address]:
        """Return an interface's addresses that are permanent and of global scope."""
        found = []
        request = _ADDRESS.pack(0, 0, 0, 0, 0)
        for _, payload in self._ask(RTM_GETADDR, NLM_F_DUMP, request):
            family, prefix_length, flags, scope, owner = _ADDRESS.unpack_from(payload)
            if owner != index or scope != RT_SCOPE_UNIVERSE or not flags & IFA_F_PERMANENT:
                continue
            kept = tuple(
                (kind, value)
                for kind, value in attributes(payload[_ADDRESS.size :])
                if kind in (IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST)
            )
            found.append(Address(family, prefix_length, kept))
        return found

    def move(self, index: int, new_name: str, pid: int) -> None:
        """Move an interface to a process's network namespace, under another name there."""
        request = _LINK.pack(0, 0, index, 0, 0)
        request += attribute(IFLA_NET_NS_PID, struct.pack("=I", pid))
        request += attribute(IFLA_IFNAME, _name(new_name))
        self._do(RTM_NEWLINK, 0, request)

    def set_up(self, index: int) -> None:
        """Bring an interface up."""
        self._do(RTM_NEWLINK, 0, _LINK.pack(0, 0, index, IFF_UP, IFF_UP))

    def add_address(self, index: int, address: Address) -> None:
        """Give an interface an address."""
        request = _ADDRESS.pack(
            address.family, address.prefix_length, IFA_F_PERMANENT, RT_SCOPE_UNIVERSE, index
        )
        for kind, value in address.attributes:
            request += attribute(kind, value)
        self._do(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, request)

    def _do(self, kind: int, flags: int, payload: bytes) -> None:
        for _ in self._ask(kind, flags | NLM_F_ACK, payload):
            pass

    def _ask(self, kind: int, flags: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
        """Send a request; yield the answers up to its end. Raises OSError of the kernel's errno."""
        self._sequence += 1
        length = _HEADER.size + len(payload)
        flags |= NLM_F_REQUEST
        self._socket.send(_HEADER.pack(length, kind, flags, self._sequence, 0) + payload)
        while True:
            packet = self._socket.recv(_BUFFER)
            while packet:
                length, answer, _, sequence, _ = _HEADER.unpack_from(packet)
                content, packet = packet[_HEADER.size : length], packet[_align(length) :]
                if sequence != self._sequence:
                    continue
                if answer == NLMSG_DONE:
                    return
                if answer == NLMSG_ERROR:
                    _raise(content)
                    return
                yield answer, content
                if not flags & (NLM_F_DUMP | NLM_F_ACK):
                    return


def _raise(content: bytes) -> None:
    (negative,) = struct.unpack_from("=i", content)
    if negative:
        raise OSError(-negative, f"rtnetlink: {os.strerror(-negative)}")


def _align(length: int) -> int:
    return (length + 3) & ~3


def _name(name: str) -> bytes:
    return name.encode() + b"\0"


def attribute(kind: int, value: bytes) -> bytes:
    """Return a route attribute, padded."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_align(length) - length)


def attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes of a message: kind and value."""
    while len(content) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(content)
        yield kind & 0x3FFF, content[_ATTRIBUTE.size : length]
        content = content[_align(max(length, _ATTRIBUTE.size)) :]


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

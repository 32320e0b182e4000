"""Messages of rtnetlink(7), as pure functions on bytes, for what a pod's network needs.

pyroute2 would be the usual choice; importing any part of it imports all of it: 13 MB of memory and
90-150 ms for the daemon, where these few messages take 300 lines (docs/architecture.md).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass

from runtimeshim.linux.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    Request,
    attribute,
    attributes,
    nested,
)

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# linux/rtnetlink.h
RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_NEWADDR = 20
RTM_NEWROUTE = 24
RTM_GETROUTE = 26
RT_TABLE_MAIN = 254
RTPROT_STATIC = 4
RT_SCOPE_UNIVERSE = 0
RTN_UNICAST = 1
RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_TABLE = 15

# linux/if_link.h, linux/if_addr.h, linux/veth.h
IFF_UP = 0x1
IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_MASTER = 10
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_NET_NS_FD = 28
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_INFO_SLAVE_KIND = 4
IFLA_INFO_SLAVE_DATA = 5
IFLA_BRPORT_MODE = 4
VETH_INFO_PEER = 1
IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_BROADCAST = 4
IFA_F_NODAD = 0x02

_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBi")  # ifaddrmsg: family, prefix length, flags, scope, index
# rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ROUTE = struct.Struct("=BBBBBBBBI")


@dataclass(frozen=True)
class Link:
    """A network interface; `alias` carries the mark of its owner."""

    index: int
    name: str
    up: bool
    mtu: int
    address: bytes
    master: int
    alias: str
    kind: str


@dataclass(frozen=True)
class Route:
    """A route; `destination` is None for a default route."""

    version: int
    destination: IPNetwork | None
    gateway: IPAddress | None
    interface: int
    table: int


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _link_request(kind: int, flags: int, link: bytes, attrs: bytes, what: str) -> Request:
    return Request(kind, NLM_F_REQUEST | NLM_F_ACK | flags, link + attrs, what)


def new_bridge(name: str, address: bytes, mtu: int) -> Request:
    """Create a bridge with a fixed hardware address; otherwise it follows that of its ports."""
    attrs = [
        _text(IFLA_IFNAME, name),
        attribute(IFLA_ADDRESS, address),
        _number(IFLA_MTU, mtu),
        nested(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"bridge")),
    ]
    link = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    flags = NLM_F_CREATE | NLM_F_EXCL
    return _link_request(RTM_NEWLINK, flags, link, b"".join(attrs), f"create bridge {name}")


def new_veth(
    name: str, bridge: int, mtu: int, peer_name: str, peer_netns: int, peer_address: bytes
) -> Request:
    """Create a veth pair: a port of `bridge` that is up, and its peer in the namespace of an fd.

    The peer is down: the kernel makes it before the pair is joined, and refuses to open it then.
    """
    peer = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + b"".join(
        (
            _text(IFLA_IFNAME, peer_name),
            _number(IFLA_MTU, mtu),
            attribute(IFLA_ADDRESS, peer_address),
            _number(IFLA_NET_NS_FD, peer_netns),
        )
    )
    attrs = [
        _text(IFLA_IFNAME, name),
        _number(IFLA_MTU, mtu),
        _number(IFLA_MASTER, bridge),
        nested(
            IFLA_LINKINFO,
            attribute(IFLA_INFO_KIND, b"veth"),
            nested(IFLA_INFO_DATA, nested(VETH_INFO_PEER, peer)),
        ),
    ]
    link = _LINK.pack(socket.AF_UNSPEC, 0, 0, IFF_UP, IFF_UP)
    flags = NLM_F_CREATE | NLM_F_EXCL
    return _link_request(RTM_NEWLINK, flags, link, b"".join(attrs), f"create veth {name}")


def set_bridge_port(name: str, alias: str) -> Request:
    """Let a bridge port send frames back where they came from (hairpin), and mark its owner."""
    attrs = [
        _text(IFLA_IFNAME, name),
        attribute(IFLA_IFALIAS, alias.encode()),
        nested(
            IFLA_LINKINFO,
            attribute(IFLA_INFO_SLAVE_KIND, b"bridge"),
            nested(IFLA_INFO_SLAVE_DATA, attribute(IFLA_BRPORT_MODE, b"\x01")),
        ),
    ]
    link = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return _link_request(RTM_NEWLINK, 0, link, b"".join(attrs), f"set bridge port {name}")


def set_up(name: str, *, alias: str | None = None, mtu: int | None = None) -> Request:
    """Bring a link up, and mark its owner or change its MTU (bytes) on the way."""
    attrs = _text(IFLA_IFNAME, name)
    if alias is not None:
        attrs += attribute(IFLA_IFALIAS, alias.encode())
    if mtu is not None:
        attrs += _number(IFLA_MTU, mtu)
    link = _LINK.pack(socket.AF_UNSPEC, 0, 0, IFF_UP, IFF_UP)
    return _link_request(RTM_NEWLINK, 0, link, attrs, f"set link {name} up")


def unplug(name: str) -> Request:
    """Take a link down and out of its bridge."""
    attrs = _text(IFLA_IFNAME, name) + _number(IFLA_MASTER, 0)
    link = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, IFF_UP)
    return _link_request(RTM_NEWLINK, 0, link, attrs, f"unplug link {name}")


def delete_link(name: str) -> Request:
    """Delete a link; a veth takes its peer with it."""
    link = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return _link_request(RTM_DELLINK, 0, link, _text(IFLA_IFNAME, name), f"delete link {name}")


def get_link(name: str) -> Request:
    """Ask for one link by name, in the namespace of the socket."""
    link = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return _link_request(RTM_GETLINK, 0, link, _text(IFLA_IFNAME, name), f"get link {name}")


def get_links() -> Request:
    """Ask for every link."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return Request(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, body, "list links")


def get_routes() -> Request:
    """Ask for every route of every table and family, the local ones among them."""
    body = _ROUTE.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)
    return Request(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, body, "list routes")


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def new_address(index: int, interface: IPInterface) -> Request:
    """Give a link an address; IPv6 without duplicate detection, since a lease is unique."""
    packed = interface.ip.packed
    attrs = attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    flags = IFA_F_NODAD
    if interface.version == 4:
        flags = 0
        attrs += attribute(IFA_BROADCAST, interface.network.broadcast_address.packed)
    prefix = interface.network.prefixlen
    body = _ADDRESS.pack(_family(interface.version), prefix, flags, RT_SCOPE_UNIVERSE, index)
    return Request(
        RTM_NEWADDR,
        NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        body + attrs,
        f"add address {interface}",
    )


def new_default_route(index: int, gateway: IPAddress) -> Request:
    """Add a default route by `gateway` to the main table."""
    body = _ROUTE.pack(
        _family(gateway.version),
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_STATIC,
        RT_SCOPE_UNIVERSE,
        RTN_UNICAST,
        0,
    )
    attrs = attribute(RTA_GATEWAY, gateway.packed) + _number(RTA_OIF, index)
    return Request(
        RTM_NEWROUTE,
        NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        body + attrs,
        f"add default route by {gateway}",
    )


def parse_link(body: bytes) -> Link:
    """Read the body of an RTM_NEWLINK."""
    _, _, index, flags, _ = _LINK.unpack_from(body)
    attrs = attributes(body[_LINK.size :])
    info = attributes(attrs.get(IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=_string(attrs.get(IFLA_IFNAME, b"")),
        up=bool(flags & IFF_UP),
        mtu=_integer(attrs.get(IFLA_MTU)),
        address=attrs.get(IFLA_ADDRESS, b""),
        master=_integer(attrs.get(IFLA_MASTER)),
        alias=_string(attrs.get(IFLA_IFALIAS, b"")),
        kind=_string(info.get(IFLA_INFO_KIND, b"")),
    )


def parse_route(body: bytes) -> Route | None:
    """Read the body of an RTM_NEWROUTE; None for what is neither IPv4 nor IPv6."""
    family, length, _, _, table, _, _, _, _ = _ROUTE.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    attrs = attributes(body[_ROUTE.size :])
    destination: IPNetwork | None = None
    if RTA_DST in attrs:
        destination = ipaddress.ip_network((attrs[RTA_DST], length))
    gateway = ipaddress.ip_address(attrs[RTA_GATEWAY]) if RTA_GATEWAY in attrs else None
    table = _integer(attrs.get(RTA_TABLE), table)
    version = 4 if family == socket.AF_INET else 6
    return Route(version, destination, gateway, _integer(attrs.get(RTA_OIF)), table)


def _string(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _integer(data: bytes | None, default: int = 0) -> int:
    return default if data is None else int(struct.unpack("=I", data)[0])

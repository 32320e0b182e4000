"""Forgets connections by ctnetlink (linux/netfilter/nfnetlink_conntrack.h).

Who sends datagrams to a host port goes on sending on the same "connection", and the kernel goes on
translating it as it did with the first one: to a pod that has gone, or to nobody because the port
had no pod yet. TCP does not need this: a new connection has new ports.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable

from runtimeshim.linux.netlink import (
    NLA_F_NESTED,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NetlinkSocket,
    Request,
    attribute,
    attributes,
    nested,
)

_NETLINK_NETFILTER = 12

# nfnetlink.h and nfnetlink_conntrack.h
_SUBSYSTEM = 1 << 8
_CT_NEW, _CT_GET, _CT_DELETE = _SUBSYSTEM, _SUBSYSTEM | 1, _SUBSYSTEM | 2
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_ID, _CTA_FILTER = 1, 2, 12, 25
_CTA_TUPLE_IP, _CTA_TUPLE_PROTO = 1, 2
_CTA_IP_SRC = {4: 1, 6: 3}
_CTA_PROTO_NUM, _CTA_PROTO_DST_PORT = 1, 3
_CTA_FILTER_ORIG_FLAGS, _CTA_FILTER_REPLY_FLAGS = 1, 2
# enum ctattr_filter of net/netfilter/nf_internals.h
_F_IP_SRC, _F_PROTO_NUM, _F_PROTO_DST_PORT = 1 << 0, 1 << 3, 1 << 5

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

PROTOCOLS = {"udp": 17, "sctp": 132}
"""Those whose connections have no handshake that the kernel would tell a new one by."""


def forget_pod(address: str) -> int:
    """Forget every connection that some pod's address answers; returns how many. Raises OSError."""
    ip = ipaddress.ip_address(address)
    tuple_ip = nested(_CTA_TUPLE_IP, attribute(_CTA_IP_SRC[ip.version], ip.packed))
    return _forget(ip.version, _CTA_TUPLE_REPLY, _F_IP_SRC, _CTA_TUPLE_IP, tuple_ip)


def forget_port(ip_version: int, protocol: str, port: int) -> int:
    """Forget every connection to a port of the host; returns how many. Raises OSError."""
    tuple_proto = nested(
        _CTA_TUPLE_PROTO,
        attribute(_CTA_PROTO_NUM, bytes([PROTOCOLS[protocol]])),
        attribute(_CTA_PROTO_DST_PORT, struct.pack(">H", port)),
    )
    flags = _F_PROTO_NUM | _F_PROTO_DST_PORT
    return _forget(ip_version, _CTA_TUPLE_ORIG, flags, _CTA_TUPLE_PROTO, tuple_proto)


def _forget(ip_version: int, direction: int, flags: int, part: int, wanted: bytes) -> int:
    """Delete the connections whose tuple of a direction has the attributes `wanted`.

    The kernel picks them (Linux 5.8). An older one answers with all, so each is looked at again.
    """
    header = struct.pack(">BBH", _FAMILY[ip_version], 0, 0)
    flag = {_CTA_TUPLE_ORIG: _CTA_FILTER_ORIG_FLAGS, _CTA_TUPLE_REPLY: _CTA_FILTER_REPLY_FLAGS}
    body = (
        header
        + nested(direction, wanted)
        + nested(_CTA_FILTER, attribute(flag[direction], struct.pack("=I", flags)))
    )
    dump = Request(_CT_GET, NLM_F_REQUEST | NLM_F_DUMP, body, "list connections")
    expected = attributes(attributes(wanted)[part])
    with NetlinkSocket(protocol=_NETLINK_NETFILTER) as netlink:
        found = [
            attributes(reply.body[len(header) :])
            for reply in netlink.request(dump)
            if reply.type == _CT_NEW
        ]
        return _delete(
            netlink, header, [one for one in found if _has(one, direction, part, expected)]
        )


def _has(found: dict[int, bytes], direction: int, part: int, expected: dict[int, bytes]) -> bool:
    values = attributes(attributes(found.get(direction, b"")).get(part, b""))
    return all(values.get(kind) == value for kind, value in expected.items())


def _delete(netlink: NetlinkSocket, header: bytes, found: Iterable[dict[int, bytes]]) -> int:
    count = 0
    for connection in found:
        body = (
            header
            + attribute(_CTA_TUPLE_ORIG | NLA_F_NESTED, connection[_CTA_TUPLE_ORIG])
            + attribute(_CTA_ID, connection[_CTA_ID])
        )
        request = Request(_CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, body, "delete a connection")
        try:
            netlink.request(request)
            count += 1
        except OSError as err:
            if err.errno != errno.ENOENT:  # it has ended by itself
                raise
    return count

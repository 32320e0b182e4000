"""rtnetlink messages as bytes: what is written can be read, and what is malformed is refused."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podsandbox.network import rtnetlink as rt
from runtimeshim.linux import netlink as nl


def link_message(*attributes: bytes, index: int = 7, flags: int = rt.IFF_UP) -> bytes:
    return struct.pack("=BxHiII", 0, 1, index, flags, 0) + b"".join(attributes)


def test_a_request_is_framed_with_its_length_and_sequence() -> None:
    data = rt.get_link("eth0").encode(42)
    length, kind, flags, sequence, port = struct.unpack_from("=IHHII", data)
    assert (length, kind, sequence, port) == (len(data), rt.RTM_GETLINK, 42, 0)
    assert flags == nl.NLM_F_REQUEST | nl.NLM_F_ACK


def test_attributes_are_padded_to_four_bytes_and_the_padding_is_not_counted() -> None:
    assert nl.attribute(3, b"abcde") == struct.pack("=HH", 9, 3) + b"abcde\0\0\0"


@given(st.dictionaries(st.integers(1, nl.NLA_TYPE_MASK), st.binary(max_size=40), max_size=8))
def test_attributes_are_read_as_they_were_written(wanted: dict[int, bytes]) -> None:
    data = b"".join(nl.attribute(kind, value) for kind, value in wanted.items())
    assert nl.attributes(data) == wanted


@given(st.binary(max_size=64))
def test_any_bytes_are_attributes_or_an_error(data: bytes) -> None:
    try:
        found = nl.attributes(data)
    except ValueError:
        return
    assert sum(map(len, found.values())) <= len(data)


@pytest.mark.parametrize(
    "data", [struct.pack("=HH", 3, 1), struct.pack("=HH", 9, 1) + b"1234"], ids=["short", "long"]
)
def test_an_attribute_that_does_not_fit_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="netlink attribute"):
        nl.attributes(data)


def test_a_datagram_is_split_into_its_messages() -> None:
    requests = [rt.get_link("a"), rt.delete_link("bcd")]
    data = b"".join(request.encode(n) for n, request in enumerate(requests))
    assert [(r.type, r.sequence) for r in nl.replies(data)] == [
        (rt.RTM_GETLINK, 0),
        (rt.RTM_DELLINK, 1),
    ]
    with pytest.raises(ValueError, match="netlink message"):
        list(nl.replies(data[:-1]))


def test_a_veth_pair_is_one_message_with_its_peer_inside() -> None:
    address = b"\x0a\x58\x0a\x00\x00\x02"
    body = rt.new_veth("cri1", 5, 1400, "eth0", 9, address).body
    attributes = nl.attributes(body[16:])
    assert attributes[rt.IFLA_IFNAME] == b"cri1\0"
    assert struct.unpack("=I", attributes[rt.IFLA_MASTER]) == (5,)
    info = nl.attributes(attributes[rt.IFLA_LINKINFO])
    assert info[rt.IFLA_INFO_KIND] == b"veth"
    peer = nl.attributes(nl.attributes(info[rt.IFLA_INFO_DATA])[rt.VETH_INFO_PEER][16:])
    assert peer[rt.IFLA_IFNAME] == b"eth0\0"
    assert peer[rt.IFLA_ADDRESS] == address
    assert struct.unpack("=I", peer[rt.IFLA_NET_NS_FD]) == (9,)
    assert {peer[rt.IFLA_MTU], attributes[rt.IFLA_MTU]} == {struct.pack("=I", 1400)}


def test_a_link_is_read() -> None:
    body = link_message(
        nl.attribute(rt.IFLA_IFNAME, b"cri0\0"),
        nl.attribute(rt.IFLA_MTU, struct.pack("=I", 1400)),
        nl.attribute(rt.IFLA_IFALIAS, b"mine\0"),
        nl.attribute(rt.IFLA_LINKINFO, nl.attribute(rt.IFLA_INFO_KIND, b"bridge\0")),
    )
    assert rt.parse_link(body) == rt.Link(7, "cri0", True, 1400, b"", 0, "mine", "bridge")


@pytest.mark.parametrize("destination", ["10.1.0.0/16", "fd00::/64", None])
def test_a_route_is_read(destination: str | None) -> None:
    network = ipaddress.ip_network(destination) if destination else None
    family = socket.AF_INET6 if network and network.version == 6 else socket.AF_INET
    body = struct.pack("=BBBBBBBBI", family, network.prefixlen if network else 0, *[0] * 7)
    if network:
        body += nl.attribute(rt.RTA_DST, network.network_address.packed)
    body += nl.attribute(rt.RTA_OIF, struct.pack("=I", 3))
    body += nl.attribute(rt.RTA_TABLE, struct.pack("=I", 1000))
    assert rt.parse_route(body) == rt.Route(
        network.version if network else 4, network, None, 3, 1000
    )


def test_a_route_of_another_family_is_none() -> None:
    assert rt.parse_route(struct.pack("=BBBBBBBBI", socket.AF_BRIDGE, *[0] * 8)) is None


def test_an_error_is_its_errno_and_the_kernels_words() -> None:
    header = bytes(16)
    words = nl.attribute(nl.NLMSGERR_ATTR_MSG, b"no room\0")
    reply = nl.Reply(nl.NLMSG_ERROR, nl.NLM_F_ACK_TLVS, 1, struct.pack("=i", -28) + header + words)
    assert nl.error_of(reply) == (28, "no room")
    assert nl.error_of(nl.Reply(nl.NLMSG_ERROR, 0, 1, struct.pack("=i", 0))) == (0, "")


@pytest.mark.parametrize("text", ["10.1.2.3/24", "fd00::3/64"])
def test_an_address_is_sent_with_its_prefix(text: str) -> None:
    interface = ipaddress.ip_interface(text)
    body = rt.new_address(4, interface).body
    family, prefix, flags, _, index = struct.unpack_from("=BBBBi", body)
    attributes = nl.attributes(body[8:])
    assert (prefix, index) == (interface.network.prefixlen, 4)
    assert attributes[rt.IFA_LOCAL] == interface.ip.packed
    assert (family == socket.AF_INET6) == (interface.version == 6) == bool(flags & rt.IFA_F_NODAD)
    assert (rt.IFA_BROADCAST in attributes) == (interface.version == 4)

"""The nftables commands of the built-in network."""

from __future__ import annotations

import ipaddress

import pytest

from podsandbox.network.addresses import HostPort
from podsandbox.network.firewall import PortKey, collision, element, ruleset
from podsandbox.network.links import overlaps
from podsandbox.network.rtnetlink import Route
from runtimeshim.linux.nftables import Nftables, NftablesError

FOUR = ipaddress.ip_network("10.88.0.0/16")
SIX = ipaddress.ip_network("fd00::/64")


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        (
            HostPort("tcp", "", 8080, "10.88.0.5", 80),
            "add element inet br0 host_ports4 { tcp . 8080 : 10.88.0.5 . 80 }\n",
        ),
        (
            HostPort("udp", "192.0.2.1", 53, "10.88.0.5", 5353),
            "add element inet br0 host_address_ports4"
            " { 192.0.2.1 . udp . 53 : 10.88.0.5 . 5353 }\n",
        ),
        (
            HostPort("sctp", "", 9, "fd00::5", 9),
            "add element inet br0 host_ports6 { sctp . 9 : fd00::5 . 9 }\n",
        ),
    ],
)
def test_a_host_port_is_one_element(port: HostPort, expected: str) -> None:
    assert element("br0", "add", port) == expected


def test_the_table_is_replaced_in_one_transaction() -> None:
    text = ruleset("br0", [FOUR], [HostPort("tcp", "", 80, "10.88.0.5", 80)])
    assert text.split("\n")[1:3] == ["add table inet br0", "delete table inet br0"]
    assert text.endswith("add element inet br0 host_ports4 { tcp . 80 : 10.88.0.5 . 80 }\n")


def test_each_family_has_its_own_maps() -> None:
    assert "host_ports6" not in ruleset("br0", [FOUR], [])
    assert "host_ports4" not in ruleset("br0", [SIX], [])
    both = ruleset("br0", [FOUR, SIX], [])
    assert "ip saddr 10.88.0.0/16" in both and "ip6 saddr fd00::/64" in both


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ("10.88.5.0/24", True),
        ("10.0.0.0/8", True),
        ("10.89.0.0/16", False),
        ("0.0.0.0/0", False),
        ("fd00::/8", False),
        (None, False),
    ],
)
def test_a_subnet_that_the_host_has_a_way_to_is_taken(
    destination: str | None, expected: bool
) -> None:
    network = ipaddress.ip_network(destination) if destination else None
    assert overlaps(FOUR, [Route(4, network, None, 2, 254)]) == expected


def test_a_refused_command_is_an_error_with_the_librarys_words() -> None:
    nft = Nftables()
    try:
        with pytest.raises(NftablesError, match="syntax error") as caught:
            nft.run("add nonsense")
        assert not caught.value.missing and not caught.value.exists
    finally:
        nft.close()


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ((4, "tcp", "", 80), True),
        ((4, "tcp", "10.0.0.1", 80), True),
        ((4, "tcp", "10.0.0.9", 80), False),
        ((6, "tcp", "", 80), False),
        ((4, "udp", "", 80), False),
        ((4, "tcp", "", 81), False),
    ],
)
def test_a_port_collides_with_the_same_of_another(taken: PortKey, expected: bool) -> None:
    port = HostPort("tcp", "10.0.0.1", 80, "10.1.0.2", 8080)
    assert (collision([port], [taken]) is port) == expected

"""What the built-in network's own netlink messages have made, as pyroute2 reads it.

Two encoders that are wrong in the same way would agree with each other; this one is not ours.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from pyroute2 import IPRoute

from podsandbox.network.links import port_name
from tests.integration.sandboxes import HOST, World, inside, new_world

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    async with new_world() as made:
        yield made


def link(netlink: IPRoute, name: str) -> Any:
    (index,) = netlink.link_lookup(ifname=name)
    return netlink.get_links(index)[0]


def kind(message: Any) -> str:
    return str(message.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_KIND"))


async def test_the_bridge_and_its_port(world: World) -> None:
    pod = await world.create()

    def read() -> tuple[Any, Any]:
        with IPRoute() as netlink:  # in a thread: it runs an event loop of its own
            return link(netlink, world.bridge), link(netlink, port_name(pod))

    bridge, port = inside(HOST, read)
    assert (kind(bridge), kind(port)) == ("bridge", "veth")
    assert port.get_attr("IFLA_MASTER") == bridge["index"]
    assert port.get_attr("IFLA_MTU") == bridge.get_attr("IFLA_MTU")
    assert port.get_attr("IFLA_OPERSTATE") == "UP"
    assert port.get_attr("IFLA_IFALIAS")
    slave = port.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_SLAVE_DATA")
    assert slave.get_attr("IFLA_BRPORT_MODE") == 1  # hairpin


async def test_the_gateway_is_an_address_of_the_bridge(world: World) -> None:
    await world.create()

    def read() -> list[tuple[str, int]]:
        with IPRoute() as netlink:
            index = link(netlink, world.bridge)["index"]
            found = list(netlink.get_addr(index=index, family=socket.AF_INET))
            return [(message.get_attr("IFA_ADDRESS"), message["prefixlen"]) for message in found]

    subnet = ipaddress.ip_network(world.subnet)
    assert inside(HOST, read) == [(str(subnet[1]), subnet.prefixlen)]


async def test_the_pods_side(world: World) -> None:
    pod = await world.create()

    def read() -> tuple[Any, list[Any], list[Any]]:
        with IPRoute() as netlink:  # opened in the pod's namespace, by the thread that entered it
            eth0 = link(netlink, "eth0")
            addresses = list(netlink.get_addr(index=eth0["index"], family=socket.AF_INET))
            return eth0, addresses, list(netlink.get_routes(family=socket.AF_INET, table=254))

    eth0, addresses, routes = inside(world.netns(pod), read)
    assert kind(eth0) == "veth"
    assert eth0.get_attr("IFLA_OPERSTATE") == "UP"
    assert [message.get_attr("IFA_ADDRESS") for message in addresses] == [world.ip(pod)]
    default = [route for route in routes if route["dst_len"] == 0]
    assert [route.get_attr("RTA_OIF") for route in default] == [eth0["index"]]
    gateway = ipaddress.ip_address(default[0].get_attr("RTA_GATEWAY"))
    assert gateway in ipaddress.ip_network(world.subnet)

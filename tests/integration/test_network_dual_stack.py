"""The built-in network over both IP families, its datagrams and its limits, on the real kernel."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from api.cri import api_pb2 as cri
from api.errors import InvalidArgumentError
from podsandbox.network.links import port_name
from tests.integration.sandboxes import (
    HOST,
    World,
    free_port,
    inside,
    listening,
    new_socket,
    new_world,
    other_machine,
    pod_config,
    run,
    tcp,
    udp,
)

Exchange = Callable[..., str]
FAMILIES = (4, 6)
PROTOCOLS = [
    pytest.param(cri.TCP, socket.SOCK_STREAM, tcp, id="tcp"),
    pytest.param(cri.UDP, socket.SOCK_DGRAM, udp, id="udp"),
]


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    async with new_world() as made:
        yield made


def with_port(host_port: int, container_port: int, protocol: int) -> cri.PodSandboxConfig:
    mapping = cri.PortMapping(protocol=protocol, container_port=container_port, host_port=host_port)
    return pod_config(port_mappings=[mapping])


@pytest.mark.parametrize(("protocol", "kind", "exchange"), PROTOCOLS)
async def test_everybody_reaches_everybody_over_both_families(
    world: World, protocol: int, kind: int, exchange: Exchange
) -> None:
    first, second = await world.create(), await world.create()
    a, b = world.netns(first), world.netns(second)
    gateways = [str(net[1]) for net in world.builtin._leases.network("builtin").subnets]
    with other_machine() as far:
        for n, there in ((0, (far.host_ip, far.ip)), (1, (far.host_ip6, far.ip6))):
            mine, other = world.runtime(first).ips[n], world.runtime(second).ips[n]
            assert exchange(b, 80, a, (other, 80)) == mine  # pod to pod
            port = free_port(kind)
            assert exchange(HOST, port, a, (gateways[n], port)) == mine  # pod to host
            assert exchange(a, 80, HOST, (mine, 80)) == gateways[n]  # host to pod
            assert exchange(far.netns, 80, a, (there[1], 80)) == there[0]  # out, as the host


@pytest.mark.parametrize(("protocol", "kind", "exchange"), PROTOCOLS)
async def test_a_host_port_is_open_over_both_families(
    world: World, protocol: int, kind: int, exchange: Exchange
) -> None:
    port = free_port(kind)
    pod = await world.create(with_port(port, 8080, protocol))
    neighbour = await world.create()
    netns = world.netns(pod)
    gateways = [str(net[1]) for net in world.builtin._leases.network("builtin").subnets]
    with other_machine() as far:
        for n, (here, there) in enumerate(((far.host_ip, far.ip), (far.host_ip6, far.ip6))):
            assert exchange(netns, 8080, far.netns, (here, port)) == there
            assert exchange(netns, 8080, HOST, (here, port)) in (here, gateways[n])
            assert exchange(netns, 8080, world.netns(neighbour), (here, port)) == gateways[n]
            assert exchange(netns, 8080, netns, (here, port)) == gateways[n]  # hairpin
    assert exchange(netns, 8080, HOST, ("127.0.0.1", port)) == gateways[0]


async def test_the_first_pod_is_at_once_within_reach_of_others_over_ipv6(world: World) -> None:
    await world.create()
    # As long as an address of the bridge's is tentative, the host finds no neighbour to forward to.
    addresses = run("ip", "-6", "address", "show", "dev", world.bridge)
    assert "fe80::" in addresses
    assert "tentative" not in addresses


async def test_a_host_port_with_an_ipv6_host_ip_is_open_there_only(world: World) -> None:
    port = free_port()
    with other_machine() as far, other_machine() as other:
        mapping = cri.PortMapping(container_port=80, host_port=port, host_ip=far.host_ip6)
        netns = world.netns(await world.create(pod_config(port_mappings=[mapping])))
        assert tcp(netns, 80, far.netns, (far.host_ip6, port)) == far.ip6
        for machine, address in ((far, far.host_ip), (other, other.host_ip6)):
            with pytest.raises(ConnectionRefusedError):
                tcp(netns, 80, machine.netns, (address, port))


async def test_the_ipv6_loopback_refuses_at_once_so_that_localhost_falls_back(world: World) -> None:
    port = free_port()
    await world.create(with_port(port, 80, cri.TCP))
    with (
        new_socket(HOST, socket.SOCK_STREAM, socket.AF_INET6) as caller,
        pytest.raises(ConnectionRefusedError),
    ):
        caller.connect(("::1", port))


def sctp_packet(source_port: int, port: int) -> bytes:
    """An INIT (RFC 9260, section 3.3.2) with its checksum: this kernel has no SCTP sockets."""
    chunk = struct.pack(">BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
    header = struct.pack(">HHI", source_port, port, 0)
    checksum = struct.pack("<I", crc32c(header + bytes(4) + chunk))
    return header + checksum + chunk


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


async def test_a_host_port_of_sctp_leads_to_the_pod(world: World) -> None:
    pod = await world.create(with_port(5000, 36412, cri.SCTP))
    with other_machine() as far:
        for n, host_ip in enumerate((far.host_ip, far.host_ip6)):
            family = (socket.AF_INET, socket.AF_INET6)[n]

            def raw(family: int = family) -> socket.socket:
                return socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_SCTP)

            with inside(world.netns(pod), raw) as listener, inside(far.netns, raw) as caller:
                listener.settimeout(10)
                caller.sendto(sctp_packet(4000, 5000), (host_ip, 0))
                data = listener.recv(200)
                header = data[20:] if n == 0 else data  # raw IPv4 sockets show the IP header
                assert struct.unpack(">HH", header[:4]) == (4000, 36412)


async def test_datagrams_follow_a_host_port_from_pod_to_pod(world: World) -> None:
    """One client, one socket: to nobody, to the first pod, then to its successor."""
    port = free_port(socket.SOCK_DGRAM)
    with other_machine() as far:
        for family, host_ip in ((socket.AF_INET, far.host_ip), (socket.AF_INET6, far.host_ip6)):
            with new_socket(far.netns, socket.SOCK_DGRAM, family) as caller:
                caller.sendto(b"nobody", (host_ip, port))  # the kernel remembers: to the host
                for _ in range(2):
                    pod = await world.create(with_port(port, 53, cri.UDP))
                    netns = world.netns(pod)
                    with listening(netns, socket.SOCK_DGRAM, 53, family) as listener:
                        caller.sendto(b"hello", (host_ip, port))
                        assert listener.recv(100) == b"hello"
                    await world.stop(pod)


def shaped(netns: str, link: str) -> dict[str, int] | None:
    """The token bucket on a link, as tc shows it: bytes per second and bytes."""
    shown = inside(netns, lambda: run("tc", "-json", "qdisc", "show", "dev", link))
    found = [qdisc["options"] for qdisc in json.loads(shown) if qdisc["kind"] == "tbf"]
    return found[0] if found else None


async def test_the_bandwidth_annotations_limit_each_direction(world: World) -> None:
    annotations = {
        "kubernetes.io/ingress-bandwidth": "8M",
        "kubernetes.io/egress-bandwidth": "80G",
    }
    pod = await world.create(pod_config(annotations=annotations))
    ingress = shaped(HOST, port_name(pod))
    egress = shaped(world.netns(pod), "eth0")
    assert ingress is not None and ingress["rate"] == 1_000_000
    assert egress is not None and egress["rate"] == 10_000_000_000  # over 32 bits
    free = await world.create()
    assert shaped(HOST, port_name(free)) is None
    assert shaped(world.netns(free), "eth0") is None


@pytest.mark.parametrize("direction", ["ingress", "egress"])
async def test_what_exceeds_the_bandwidth_does_not_come_through(
    world: World, direction: str
) -> None:
    """At 1 kbit/s what was sent would take hours; what comes is what fits into the bucket."""
    limit = {f"kubernetes.io/{direction}-bandwidth": "1k"}
    limited, other = await world.create(pod_config(annotations=limit)), await world.create()
    sender, receiver = (other, limited) if direction == "ingress" else (limited, other)
    with (
        listening(world.netns(receiver), socket.SOCK_DGRAM, 53, socket.AF_INET) as listener,
        new_socket(world.netns(sender), socket.SOCK_DGRAM) as caller,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        caller.setblocking(False)
        sent = 0
        for _ in range(1000):
            try:
                sent += caller.sendto(bytes(1000), (world.ip(receiver), 53))
            except BlockingIOError:
                break
        await asyncio.sleep(0.5)
        listener.setblocking(False)
        received = 0
        while True:
            try:
                received += len(listener.recv(2000))
            except BlockingIOError:
                break
    assert 0 < received <= 64 << 10 < sent


async def test_a_bad_bandwidth_is_refused(world: World) -> None:
    annotations = {"kubernetes.io/ingress-bandwidth": "much"}
    with pytest.raises(InvalidArgumentError, match="ingress-bandwidth"):
        await world.create(pod_config(annotations=annotations))
    assert not world.builtin._leases.holders()


async def test_uplinks_go_on_taking_router_advertisements(world: World) -> None:
    """With forwarding on, the kernel would ignore them, and the host lose its default route."""
    accept = Path("/proc/sys/net/ipv6/conf")
    with other_machine() as far:
        setting = accept / far.link / "accept_ra"
        setting.write_text("1")
        route = ("default", "via", far.ip6, "dev", far.link, "metric", "4096")
        run("ip", "-6", "route", "add", *route)
        await world.create()
        assert setting.read_text().strip() == "2"
        assert (accept / "all/forwarding").read_text().strip() == "1"


async def test_the_kubelets_pod_cidrs_are_the_subnets_where_none_are_set(world: World) -> None:
    world.subnets = ()
    await world.restart()
    cidrs = f"{world.subnet},{world.subnet6}"
    world.network.pod_cidrs.set(cidrs)
    pod = await world.create()
    assert world.runtime(pod).ips == [
        world.subnet.replace("0/24", "2"),
        world.subnet6.replace("/64", "2"),
    ]
    await world.stop(pod)
    await world.restart()  # the kubelet does not tell them again
    world.network.pod_cidrs.set("")
    assert world.network.pod_cidrs.get() == tuple(cidrs.split(","))


@pytest.mark.parametrize(
    "text", ["nonsense", "10.0.0.1/24", "10.0.0.0/24,10.1.0.0/24", "10.0.0.0/31"]
)
async def test_a_bad_pod_cidr_is_refused_and_the_old_ones_stay(world: World, text: str) -> None:
    world.network.pod_cidrs.set("10.120.0.0/24")
    with pytest.raises(InvalidArgumentError, match="pod_cidr"):
        world.network.pod_cidrs.set(text)
    assert world.network.pod_cidrs.get() == ("10.120.0.0/24",)

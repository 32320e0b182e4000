"""The built-in network on the real kernel: who reaches whom, and what is left."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from api.cri import api_pb2 as cri
from api.errors import AlreadyExistsError, InternalError, ResourceExhaustedError
from podsandbox.network.builtin import BuiltinConfig, BuiltinNetwork
from podsandbox.network.links import port_name
from podsandbox.network.pod_cidrs import PodCIDRs
from tests.integration.leaks import snapshot
from tests.integration.sandboxes import (
    HOST,
    World,
    free_port,
    inside,
    links,
    new_socket,
    new_world,
    open_database,
    other_machine,
    pod_config,
    run,
    tcp,
    udp,
)


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    async with new_world() as made:
        yield made


def with_port(
    host_port: int, container_port: int = 80, protocol: int = cri.TCP, host_ip: str = ""
) -> cri.PodSandboxConfig:
    mapping = cri.PortMapping(
        protocol=protocol, container_port=container_port, host_port=host_port, host_ip=host_ip
    )
    return pod_config(port_mappings=[mapping])


async def test_a_pod_reaches_another_pod_the_host_and_itself(world: World) -> None:
    first, second = await world.create(), await world.create()
    a, b = world.netns(first), world.netns(second)
    assert tcp(b, 80, a, (world.ip(second), 80)) == world.ip(first)
    assert udp(b, 53, a, (world.ip(second), 53)) == world.ip(first)
    gateway = inside(a, lambda: run("ip", "route", "show", "default").split()[2])
    port = free_port()
    assert tcp(HOST, port, a, (gateway, port)) == world.ip(first)
    assert tcp(a, 80, HOST, (world.ip(first), 80)) == gateway
    assert tcp(a, 80, a, ("127.0.0.1", 80)) == "127.0.0.1"


async def test_the_pods_mtu_is_that_of_the_uplink(world: World) -> None:
    pod = await world.create()
    defaults = json.loads(run("ip", "--json", "route", "show", "default"))
    uplink = "1500"  # of a machine that is connected to nothing
    if defaults:
        uplink = Path(f"/sys/class/net/{defaults[0]['dev']}/mtu").read_text().strip()
    for netns, link in ((HOST, world.bridge), (HOST, port_name(pod)), (world.netns(pod), "eth0")):
        shown = inside(netns, lambda link=link: run("ip", "--json", "link", "show", "dev", link))
        assert str(json.loads(shown)[0]["mtu"]) == uplink


async def test_other_machines_see_the_hosts_address(world: World) -> None:
    pod = await world.create()
    with other_machine() as far:
        assert tcp(far.netns, 80, world.netns(pod), (far.ip, 80)) == far.host_ip
        assert udp(far.netns, 53, world.netns(pod), (far.ip, 53)) == far.host_ip


@pytest.mark.parametrize(
    ("protocol", "kind", "exchange"),
    [(cri.TCP, socket.SOCK_STREAM, tcp), (cri.UDP, socket.SOCK_DGRAM, udp)],
)
async def test_a_host_port_leads_to_the_pod_from_everywhere(
    world: World, protocol: int, kind: int, exchange
) -> None:
    port = free_port(kind)
    pod = await world.create(with_port(port, 8080, protocol))
    neighbour = await world.create()
    netns, gateway = world.netns(pod), str(world.builtin._leases.network("builtin").subnets[0][1])
    with other_machine() as far:
        assert exchange(netns, 8080, far.netns, (far.host_ip, port)) == far.ip
        assert exchange(netns, 8080, HOST, ("127.0.0.1", port)) == gateway
        assert exchange(netns, 8080, HOST, (far.host_ip, port)) in (gateway, far.host_ip)
        assert exchange(netns, 8080, world.netns(neighbour), (far.host_ip, port)) == gateway
        # Hairpin: the pod asks for itself.
        assert exchange(netns, 8080, netns, (far.host_ip, port)) == gateway


async def test_a_host_port_with_a_host_ip_is_open_there_only(world: World) -> None:
    port = free_port()
    with other_machine() as far, other_machine() as other:
        pod = await world.create(with_port(port, 80, host_ip=far.host_ip))
        netns = world.netns(pod)
        assert tcp(netns, 80, far.netns, (far.host_ip, port)) == far.ip
        with pytest.raises(ConnectionRefusedError):
            tcp(netns, 80, other.netns, (other.host_ip, port))


async def test_a_host_port_is_closed_when_the_pod_is_stopped(world: World) -> None:
    port = free_port()
    pod = await world.create(with_port(port))
    assert tcp(world.netns(pod), 80, HOST, ("127.0.0.1", port))
    await world.stop(pod)
    with new_socket(HOST, socket.SOCK_STREAM) as caller, pytest.raises(ConnectionRefusedError):
        caller.connect(("127.0.0.1", port))
    # And it is free for the next pod.
    again = await world.create(with_port(port))
    assert tcp(world.netns(again), 80, HOST, ("127.0.0.1", port))


async def test_a_taken_host_port_is_refused_and_nothing_is_kept(world: World) -> None:
    port = free_port()
    await world.create(with_port(port))
    before = snapshot()
    with pytest.raises(AlreadyExistsError, match=f"{port}/tcp is in use"):
        await world.create(with_port(port))
    world.assert_nothing_left(before)
    assert len(world.builtin._leases.holders()) == 1


async def test_a_pod_cannot_reach_what_listens_on_the_hosts_loopback(world: World) -> None:
    pod = await world.create(with_port(free_port()))
    netns, port = world.netns(pod), free_port()
    gateway = inside(netns, lambda: run("ip", "route", "show", "default").split()[2])
    # What route_localnet would allow: packets to 127.0.0.1 that arrive from the bridge.
    inside(netns, lambda: run("ip", "address", "flush", "dev", "lo"))
    inside(netns, lambda: run("ip", "route", "add", "127.0.0.1/32", "via", gateway))
    with new_socket(HOST, socket.SOCK_DGRAM) as listener, new_socket(netns, socket.SOCK_DGRAM) as s:
        listener.bind(("127.0.0.1", port))
        listener.settimeout(0.5)
        s.bind((world.ip(pod), 0))
        s.sendto(b"knock", ("127.0.0.1", port))
        with pytest.raises(TimeoutError):
            listener.recv(100)


async def test_addresses_are_not_used_again_while_others_are_left(world: World) -> None:
    seen = []
    for _ in range(4):
        pod = await world.create()
        seen.append(world.ip(pod))
        await world.stop(pod)
        await world.remove(pod)
    assert len(set(seen)) == 4


async def test_a_full_subnet_is_an_error_that_says_so(world: World) -> None:
    world.builtin._config = BuiltinConfig(bridge=world.bridge, subnets=("10.125.9.0/29",))
    for _ in range(5):
        await world.create()
    with pytest.raises(ResourceExhaustedError, match=r"10\.125\.9\.0/29"):
        await world.create()


async def test_stop_and_remove_are_idempotent_and_leave_nothing(world: World) -> None:
    before = snapshot([world.home / "sandboxes"])
    pod = await world.create(with_port(free_port()))
    for _ in range(2):
        await world.stop(pod)
    for _ in range(2):
        await world.sandboxes.remove(pod)
    await world.stop(pod)
    await world.remove(pod)
    await world.builtin.reset()
    await world.builtin.reset()
    (world.home / "sandboxes").rmdir()
    world.assert_nothing_left(before, [world.home / "sandboxes"])


async def test_a_namespace_that_something_holds_does_not_hold_the_address(world: World) -> None:
    pod = await world.create()
    with new_socket(world.netns(pod), socket.SOCK_DGRAM):  # the namespace outlives its pin
        await world.stop(pod)
        link = port_name(pod)
        assert link in links()
        assert "master" not in run("ip", "link", "show", link)
        await world.builtin.reconcile([])
        assert link not in links()


async def test_what_a_crash_left_is_removed_at_the_next_start(world: World) -> None:
    kept, lost = await world.create(with_port(free_port())), await world.create()
    await world.restart()
    await world.sandboxes.reconcile([kept])
    assert port_name(kept) in links()
    assert port_name(lost) not in links()
    assert world.builtin._leases.holders() == {kept}
    assert not (world.home / "sandboxes" / lost).exists()
    assert tcp(world.netns(kept), 80, HOST, (world.ip(kept), 80))


async def test_flushed_rules_and_a_deleted_bridge_are_made_again(world: World) -> None:
    port = free_port()
    old = await world.create(with_port(port))
    run("nft", "delete", "table", "inet", world.bridge)
    new = await world.create()
    assert tcp(world.netns(old), 80, HOST, ("127.0.0.1", port))
    assert tcp(world.netns(old), 80, world.netns(new), (world.ip(old), 80))
    run("ip", "link", "delete", world.bridge)
    newest = await world.create()
    assert tcp(world.netns(newest), 80, HOST, (world.ip(newest), 80))


async def test_a_bridge_of_somebody_else_is_left_alone(world: World) -> None:
    run("ip", "link", "add", world.bridge, "type", "bridge")
    run("ip", "link", "set", world.bridge, "alias", "somebody")
    try:
        with pytest.raises(InternalError, match="belongs to somebody"):
            await world.create()
        assert (await world.network.status())[:2] == (False, "NetworkPluginNotReady")
    finally:
        run("ip", "link", "delete", world.bridge)
    await world.create()
    assert (await world.network.status()).ready


def new_network(database: Path) -> BuiltinNetwork:
    """One that finds its bridge and subnets itself."""
    connection = open_database(database)
    return BuiltinNetwork(BuiltinConfig(), connection, PodCIDRs(connection))


async def test_several_daemons_find_different_bridges_and_subnets(tmp_path: Path) -> None:
    networks = [new_network(tmp_path / str(n)) for n in range(4)]
    try:
        records = await asyncio.gather(*(network._ensure() for network in networks))
        assert len({record.bridge for record in records}) == 4
        assert len({record.subnets for record in records}) == 4
        # Each finds its own again.
        assert [await network._ensure() for network in networks] == records
    finally:
        for network in networks:
            await network.reset()
            await network.close()


@pytest.mark.parametrize("host_ip", ["", "127.0.0.1"])
async def test_a_host_port_of_another_daemon_is_refused(world: World, host_ip: str) -> None:
    async with new_world() as other:
        port = free_port()
        await other.create(with_port(port, host_ip=host_ip))
        with pytest.raises(AlreadyExistsError, match=f"{port}/tcp is in use .* {other.bridge}"):
            await world.create(with_port(port))
        assert not world.builtin._leases.holders()
        await world.create(with_port(port, protocol=cri.UDP))
        await world.create(with_port(port, host_ip="127.0.0.2") if host_ip else with_port(1))


@pytest.mark.parametrize("candidates", ["SUBNETS", "BRIDGES"])
async def test_a_host_without_a_free_name_or_subnet_is_an_error_that_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidates: str
) -> None:
    monkeypatch.setattr(f"podsandbox.network.builtin_kernel._CANDIDATE_{candidates}", [])
    network = new_network(tmp_path / "db")
    try:
        with pytest.raises(InternalError, match=f"set network.{candidates.lower()[:6]}"):
            await network._ensure()
        assert "set network" in (await network.status()).message
    finally:
        await network.close()


def test_pods_pass_a_forward_chain_that_drops() -> None:
    """Docker and ufw set this policy: here in a network namespace, as it would cut off others."""
    script = f"""
import asyncio, ipaddress, subprocess, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from podsandbox.network.firewall import Firewall
subprocess.run(["iptables", "-P", "FORWARD", "DROP"], check=True)
firewall = Firewall("crtest0")
for _ in range(2):
    firewall.ensure([ipaddress.ip_network("10.1.0.0/16")], [])
print(subprocess.run(["iptables", "-S", "FORWARD"], check=True, capture_output=True).stdout)
firewall.reset()
print(subprocess.run(["iptables", "-S", "FORWARD"], check=True, capture_output=True).stdout)
"""
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    with_rules, without = done.stdout.splitlines()
    assert with_rules.count("-i crtest0") == with_rules.count("-o crtest0") == 1
    assert "crtest0" not in without

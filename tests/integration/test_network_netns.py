"""From the daemon into a pod's network namespace: connections and counters."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from api.errors import FailedPreconditionError, UnavailableError
from podsandbox.network.netns import connect_in_netns, counters_of
from tests.integration.sandboxes import (
    HOST,
    World,
    family_of,
    free_port,
    listening,
    new_socket,
    new_world,
    udp,
)


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    async with new_world() as made:
        yield made


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_port_on_the_pods_localhost_is_reached_over_either_family(
    world: World, address: str
) -> None:
    netns = world.netns(await world.create())
    with new_socket(netns, socket.SOCK_STREAM, family_of(address)) as listener:
        listener.bind((address, 8080))
        listener.listen()
        with await connect_in_netns(netns, 8080) as connection:
            accepted, _ = listener.accept()
            with accepted:
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(connection, b"question")
                assert accepted.recv(100) == b"question"
                accepted.sendall(b"answer")
                assert await loop.sock_recv(connection, 100) == b"answer"


async def test_what_listens_elsewhere_is_not_reached(world: World) -> None:
    first, second = await world.create(), await world.create()
    port = free_port()
    with (
        listening(HOST, socket.SOCK_STREAM, port, socket.AF_INET) as on_host,
        listening(world.netns(second), socket.SOCK_STREAM, port, socket.AF_INET) as in_second,
    ):
        on_host.listen()
        in_second.listen()
        with pytest.raises(UnavailableError, match=f"port {port} inside the pod: 127.0.0.1: Conn"):
            await connect_in_netns(world.netns(first), port)
        (await connect_in_netns(None, port)).close()
        on_host.accept()[0].close()
        (await connect_in_netns(world.netns(second), port)).close()
        in_second.accept()[0].close()


async def test_a_pod_that_has_gone_is_an_error_and_has_no_counters(world: World) -> None:
    pod, other = await world.create(), await world.create()
    netns, threads = world.netns(pod), threading.active_count()
    await world.stop(pod)
    with pytest.raises(FailedPreconditionError, match="network namespace"):
        await connect_in_netns(netns, 80)
    found = await counters_of({"gone": netns, "there": world.netns(other)})
    assert set(found) == {"there"}
    assert threading.active_count() <= threads


async def test_the_counters_are_those_of_each_pods_interfaces(world: World) -> None:
    pods = [await world.create() for _ in range(3)]
    namespaces = {pod: world.netns(pod) for pod in pods}

    async def received() -> dict[str, int]:
        found = await counters_of(namespaces)
        return {
            pod: next(one.rx_bytes for one in links if one.name == "eth0")
            for pod, links in found.items()
        }

    before = await received()
    payload = 100 * len(b"question")
    for _ in range(100):
        udp(namespaces[pods[0]], 53, namespaces[pods[1]], (world.ip(pods[0]), 53))
    after = await received()
    assert after[pods[0]] - before[pods[0]] > payload
    assert after[pods[2]] - before[pods[2]] < payload
    hosts = {one.name for one in (await counters_of({"host": None, **namespaces}))["host"]}
    assert hosts == set(os.listdir("/sys/class/net"))

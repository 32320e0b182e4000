"""Which provider a pod gets, and that it is detached by the one that attached it."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from podsandbox.network import NetworkResult, NetworkStatus, PodNetworkRequest, SelectedNetwork
from podsandbox.network.pod_cidrs import PodCIDRs

POD = PodNetworkRequest("abc", "web", "shop", "u-1", Path("/run/ns/net"))


class Recorder:
    """A provider that writes down what it is asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_configured = True
        self.calls: list[object] = []
        self.problems: dict[str, str] = {}

    def configured(self) -> bool:
        return self.is_configured

    async def attach(self, pod: PodNetworkRequest) -> NetworkResult:
        self.calls.append("attach")
        return NetworkResult((f"ip of {self.name}",), ("eth0",), {"of": self.name})

    async def detach(self, pod: PodNetworkRequest, state: dict[str, object]) -> None:
        self.calls.append(("detach", state))

    async def discard(self, sandbox_id: str) -> None:
        self.calls.append(("discard", sandbox_id))

    async def status(self) -> NetworkStatus:
        return NetworkStatus(False, self.name, "")

    async def reconcile(self, live: Collection[str]) -> None:
        self.calls.append(("reconcile", live))

    async def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def pod_cidrs() -> Iterator[PodCIDRs]:
    connection = sqlite3.connect(":memory:")
    yield PodCIDRs(connection)
    connection.close()


async def test_cni_as_soon_as_it_is_configured_and_each_detaches_its_own(
    pod_cidrs: PodCIDRs,
) -> None:
    cni, builtin = Recorder("cni"), Recorder("builtin")
    network = SelectedNetwork(cni, builtin, pod_cidrs)
    cni.is_configured = False
    first = await network.attach(POD)
    assert (await network.status()).reason == "builtin"
    cni.is_configured = True
    second = await network.attach(POD)
    assert (await network.status()).reason == "cni"
    assert (first.ips, second.ips) == (("ip of builtin",), ("ip of cni",))
    await network.detach(POD, first.state)
    await network.detach(POD, second.state)
    await network.detach(POD, {})  # it never got that far
    assert builtin.calls == ["attach", ("detach", {"of": "builtin"})]
    assert cni.calls == ["attach", ("detach", {"of": "cni"})]


async def test_without_the_fall_back_pods_wait_for_a_configuration(
    pod_cidrs: PodCIDRs,
) -> None:
    cni, builtin = Recorder("cni"), Recorder("builtin")
    cni.is_configured = False
    network = SelectedNetwork(cni, builtin, pod_cidrs, fall_back=False)
    assert (await network.status()).reason == "cni"
    await network.detach(POD, {"provider": "builtin", "state": {}})
    assert builtin.calls == [("detach", {})]


async def test_both_are_reconciled_and_closed(pod_cidrs: PodCIDRs) -> None:
    cni, builtin = Recorder("cni"), Recorder("builtin")
    network = SelectedNetwork(cni, builtin, pod_cidrs)
    await network.reconcile(["abc"])
    await network.discard("abc")
    await network.close()
    assert cni.calls == builtin.calls == [("reconcile", ["abc"]), ("discard", "abc"), "close"]

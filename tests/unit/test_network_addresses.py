"""Leases: all or nothing, unique, and not used again for as long as possible."""

from __future__ import annotations

import ipaddress
import sqlite3
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import AlreadyExistsError, ResourceExhaustedError
from podsandbox.network.addresses import HostPort, Leases, NetworkRecord, gateway_of

SMALL = ipaddress.ip_network("10.0.0.0/29")  # the bridge and five pods
SIX = ipaddress.ip_network("fd00::/125")


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level="IMMEDIATE")
    yield connection
    connection.close()


@pytest.fixture
def leases(database: sqlite3.Connection) -> Leases:
    return Leases(database)


def port(number: int, host_ip: str = "", protocol: str = "tcp") -> HostPort:
    return HostPort(protocol, host_ip, number, "", 80)


def lease(leases: Leases, pod: str, *ports: HostPort, subnets=(SMALL,)) -> list[str]:
    return [str(interface.ip) for interface in leases.acquire(pod, subnets, ports)]


def test_addresses_follow_the_bridges() -> None:
    assert str(gateway_of(SMALL)) == "10.0.0.1"


def test_every_address_is_used_once_before_one_is_used_again(leases: Leases) -> None:
    seen = []
    for n in range(7):
        seen.append(lease(leases, f"pod{n}")[0])
        leases.release([f"pod{n}"])
    assert seen == [f"10.0.0.{n}" for n in (2, 3, 4, 5, 6, 2, 3)]


def test_the_address_that_was_free_longest_is_taken_first(leases: Leases) -> None:
    for n in range(5):
        lease(leases, f"pod{n}")
    for n in (3, 1, 4):
        leases.release([f"pod{n}"])
    assert [lease(leases, f"new{n}")[0] for n in range(3)] == ["10.0.0.5", "10.0.0.3", "10.0.0.6"]


def test_a_full_subnet_names_itself(leases: Leases) -> None:
    for n in range(5):
        lease(leases, f"pod{n}")
    with pytest.raises(ResourceExhaustedError, match=r"10\.0\.0\.0/29"):
        lease(leases, "more")
    assert "more" not in leases.holders()


def test_a_sandbox_gets_its_own_address_again(leases: Leases) -> None:
    assert lease(leases, "pod") == lease(leases, "pod")


def test_one_address_of_each_family(leases: Leases) -> None:
    assert lease(leases, "pod", subnets=(SMALL, SIX)) == ["10.0.0.2", "fd00::2"]


def test_nothing_is_leased_when_one_family_is_full(leases: Leases) -> None:
    for n in range(5):
        lease(leases, f"pod{n}", subnets=(SIX,))
    with pytest.raises(ResourceExhaustedError):
        lease(leases, "pod", subnets=(SMALL, SIX))
    assert lease(leases, "next") == ["10.0.0.2"]


def test_host_ports_lead_to_the_address_of_their_family(leases: Leases) -> None:
    lease(leases, "pod", port(80), port(81, "fd00::99"), subnets=(SMALL, SIX))
    assert sorted(map(str, leases.ports("pod"))) == ["*:80/tcp", "*:80/tcp", "fd00::99:81/tcp"]
    assert {(p.host_port, p.address) for p in leases.ports()} == {
        (80, "10.0.0.2"),
        (80, "fd00::2"),
        (81, "fd00::2"),
    }


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        (port(80), port(80), True),
        (port(80), port(80, "10.9.9.9"), True),
        (port(80, "10.9.9.9"), port(80), True),
        (port(80, "10.9.9.9"), port(80, "10.9.9.9"), True),
        (port(80, "10.9.9.9"), port(80, "10.9.9.8"), False),
        (port(80), port(81), False),
        (port(80), port(80, protocol="udp"), False),
    ],
)
def test_a_host_port_belongs_to_one_pod(
    leases: Leases, first: HostPort, second: HostPort, conflict: bool
) -> None:
    lease(leases, "one", first)
    if conflict:
        with pytest.raises(AlreadyExistsError, match="in use by sandbox one"):
            lease(leases, "two", second)
        assert leases.holders() == {"one"}
        leases.release(["one"])
    lease(leases, "two", second)
    assert len(leases.ports("two")) == 1


def test_release_frees_everything_and_is_idempotent(leases: Leases) -> None:
    lease(leases, "pod", port(80))
    for _ in range(2):
        leases.release(["pod", "unknown"])
        assert leases.holders() == set()
        assert leases.ports() == []


def test_a_network_is_remembered_and_forgotten(database: sqlite3.Connection) -> None:
    record = NetworkRecord("br0", "me", (SMALL, SIX))
    leases = Leases(database)
    assert leases.network("n") is None
    leases.record_network("n", record)
    lease(leases, "pod")
    again = Leases(database)  # the next daemon
    assert again.network("n") == record
    assert again.holders() == {"pod"}
    again.forget("n")
    assert (again.network("n"), again.holders()) == (None, set())


@given(st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=40))
def test_no_address_has_two_holders(steps: list[tuple[int, bool]]) -> None:
    connection = sqlite3.connect(":memory:", isolation_level="IMMEDIATE")
    leases, held = Leases(connection), {}
    for number, acquire in steps:
        pod = f"pod{number}"
        if not acquire:
            leases.release([pod])
            held.pop(pod, None)
        elif len(held) < 5 or pod in held:
            (held[pod],) = lease(leases, pod)
        assert len(set(held.values())) == len(held)
        assert leases.holders() == set(held)
    connection.close()

"""The kernel's part of the built-in network: bridge, ports, rules. Synchronous.

Everything here waits for locks of the kernel; builtin.py runs it in a thread of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from api.errors import AlreadyExistsError, InternalError
from podsandbox.network import conntrack
from podsandbox.network.addresses import HostPort, NetworkRecord
from podsandbox.network.firewall import Firewall, PortKey, collision
from podsandbox.network.links import ALIAS, Links, PodLink, overlaps
from podsandbox.network.qdisc import Bandwidth
from podsandbox.network.rtnetlink import IPInterface, IPNetwork
from runtimeshim.linux.netlink import NetlinkSocket

# Not what Docker (172.17), flannel (10.244), kubeadm's services (10.96/12) and most homes use.
_CANDIDATE_SUBNETS = [f"10.{n}.0.0/16" for n in (*range(88, 96), *range(200, 240))]

# A host has one daemon, a test machine a few.
_CANDIDATE_BRIDGES = [f"criserver{n}" for n in range(100)]

# Held by a daemon that looks for a free bridge and subnet, until they are taken. The file stays.
_CHOICE_LOCK = Path("/run/criserver-network.lock")

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """What the settings ask for; what is None or empty is found. `mtu` is in bytes."""

    bridge: str | None = None
    subnets: tuple[IPNetwork, ...] = ()
    mtu: int | None = None

    def is_met_by(self, record: NetworkRecord) -> bool:
        """Say whether what was chosen earlier is what is asked for now."""
        return self.bridge in (None, record.bridge) and self.subnets in ((), record.subnets)


class Kernel:
    """One built-in network in the kernel. Raises OSError, NftablesError, CRIError."""

    def __init__(self) -> None:
        self._parts: tuple[Links, Firewall] | None = None

    def close(self) -> None:
        """Close the sockets; everything made stays."""
        for part in self._parts or ():
            part.close()
        self._parts = None

    def _open(self, record: NetworkRecord) -> tuple[Links, Firewall]:
        if self._parts is None or self._parts[0].bridge != record.bridge:
            self.close()
            links = Links(record.bridge, f"{ALIAS}{record.owner}")
            self._parts = (links, Firewall(record.bridge))
        return self._parts

    def has_lost(self, record: NetworkRecord) -> bool:
        """Say whether somebody else has the bridge's name by now."""
        return self._open(record)[0].owned() is False

    def set_up(self, record: NetworkRecord, mtu: int | None, ports: Iterable[HostPort]) -> None:
        """Make whole what is missing of bridge, addresses and rules."""
        links, firewall = self._open(record)
        if not links.owned():
            links.ensure(record.subnets, mtu)
        if not firewall.present():
            firewall.ensure(record.subnets, ports)

    def attach(
        self,
        record: NetworkRecord,
        pod: PodLinks,
        ports: Sequence[HostPort],
    ) -> None:
        """Plug a pod in and open its host ports."""
        links, firewall = self._open(record)
        if ports:
            _refuse_collisions(links, firewall, ports)
        netns = os.open(pod.netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # The caller keeps its socket; ours is a duplicate.
            with NetlinkSocket(os.dup(pod.netlink)) as socket:
                links.attach(pod.sandbox_id, netns, socket, pod.interfaces, pod.bandwidth)
        finally:
            os.close(netns)
        firewall.add(ports)
        for port in _without_handshake(ports):
            conntrack.forget_port(port.ip_version, port.protocol, port.host_port)

    def detach(self, record: NetworkRecord, sandbox_id: str, ports: Sequence[HostPort]) -> None:
        """Close the host ports of a pod and cut it off; idempotent."""
        links, firewall = self._open(record)
        firewall.delete(ports)
        links.unplug(sandbox_id)
        for address in {port.address for port in _without_handshake(ports)}:
            conntrack.forget_pod(address)

    def delete(self, record: NetworkRecord, sandbox_id: str) -> None:
        """Delete the links of a pod; idempotent."""
        self._open(record)[0].delete(sandbox_id)

    def delete_strays(self, record: NetworkRecord, live: Collection[str]) -> None:
        """Delete the links of every pod but those of `live`."""
        self._open(record)[0].delete_strays(live)

    def look(self, record: NetworkRecord) -> tuple[list[PodLink], set[PortKey]]:
        """Return the links of pods that there are, and the host ports that are open."""
        links, firewall = self._open(record)
        return links.pod_links(), firewall.host_ports_of(record.bridge)

    def delete_link(self, record: NetworkRecord, name: str) -> None:
        """Delete a pod's link by its name; idempotent, and nobody else's is touched."""
        links = self._open(record)[0]
        if any(link.name == name for link in links.pod_links()):
            links.delete_named(name)

    def close_port(self, record: NetworkRecord, key: PortKey) -> None:
        """Close a host port; idempotent."""
        self._open(record)[1].delete_key(key)

    def reset(self, record: NetworkRecord) -> None:
        """Remove bridge, ports and rules."""
        links, firewall = self._open(record)
        firewall.reset()
        links.reset()


@dataclass(frozen=True)
class PodLinks:
    """What a pod is plugged in with; `netlink` is a socket opened in its namespace."""

    sandbox_id: str
    netns: Path
    netlink: int
    interfaces: Sequence[IPInterface]
    bandwidth: Bandwidth


def _refuse_collisions(links: Links, firewall: Firewall, ports: Sequence[HostPort]) -> None:
    """Raise AlreadyExistsError for a host port that another daemon of this host has given away."""
    for bridge in links.other_bridges():
        port = collision(ports, firewall.host_ports_of(bridge))
        if port is not None:
            raise AlreadyExistsError(
                f"host port {port} is in use by a pod of another daemon, on bridge {bridge}"
            )


def _without_handshake(ports: Iterable[HostPort]) -> list[HostPort]:
    return [port for port in ports if port.protocol in conntrack.PROTOCOLS]


@contextlib.contextmanager
def choice_lock() -> Iterator[None]:
    """Keep other daemons of this host from choosing the same at the same moment."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(_CHOICE_LOCK, flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def choose(wanted: Wanted, old: NetworkRecord | None) -> NetworkRecord:
    """Find a bridge's name and subnets that are free, as far as they are not given.

    An instance keeps its owner's mark and its subnets. Raises InternalError when none is free.
    """
    probe = Links("", "")
    try:
        taken = {link.name for link in probe.links()}
        routes = probe.routes()
    finally:
        probe.close()
    free = (name for name in _CANDIDATE_BRIDGES if name not in taken)
    bridge = wanted.bridge or _first(free, "bridge name: set network.bridge")
    subnets = wanted.subnets or (old.subnets if old else ())
    if not subnets:
        candidates = (ipaddress.ip_network(subnet) for subnet in _CANDIDATE_SUBNETS)
        free_subnets = (subnet for subnet in candidates if not overlaps(subnet, routes))
        subnets = (_first(free_subnets, "subnet: set network.subnets"),)
    return NetworkRecord(bridge, old.owner if old else uuid.uuid4().hex, subnets)


def _first(candidates: Iterable[T], what: str) -> T:
    for candidate in candidates:
        return candidate
    raise InternalError(f"built-in network: the host has no free {what}")

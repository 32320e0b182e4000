"""Address leases and host ports of pods, in the daemon's database.

An address that was released is not given out again until every other one has been used since: what
still remembers it (a connection, a DNS answer, an ARP entry) must not reach another pod.
"""

from __future__ import annotations

import ipaddress
import sqlite3
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from api.errors import AlreadyExistsError, ResourceExhaustedError
from podsandbox.network.rtnetlink import IPAddress, IPInterface, IPNetwork

# `address` is packed, so that the order of blobs is that of addresses. A free lease keeps its row
# with sandbox_id NULL and the time of its release.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS networks (
    name TEXT PRIMARY KEY,
    bridge TEXT NOT NULL,
    owner TEXT NOT NULL,
    subnets TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS leases (
    subnet TEXT NOT NULL,
    address BLOB NOT NULL,
    sandbox_id TEXT,
    released_at INTEGER,
    PRIMARY KEY (subnet, address)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS leases_by_sandbox ON leases (sandbox_id);
CREATE INDEX IF NOT EXISTS leases_by_release ON leases (subnet, released_at)
    WHERE sandbox_id IS NULL;
CREATE TABLE IF NOT EXISTS host_ports (
    protocol TEXT NOT NULL,
    ip_version INTEGER NOT NULL,
    host_ip TEXT NOT NULL,
    host_port INTEGER NOT NULL,
    address TEXT NOT NULL,
    container_port INTEGER NOT NULL,
    sandbox_id TEXT NOT NULL,
    PRIMARY KEY (protocol, ip_version, host_port, host_ip)
);
CREATE INDEX IF NOT EXISTS host_ports_by_sandbox ON host_ports (sandbox_id);
"""


@dataclass(frozen=True)
class NetworkRecord:
    """What was chosen for the built-in network when it was first used; it stays so."""

    bridge: str
    owner: str
    subnets: tuple[IPNetwork, ...]


@dataclass(frozen=True, order=True)
class HostPort:
    """A port of the host that leads to a pod; `host_ip` is "" for every address of the host."""

    protocol: str  # "tcp", "udp", "sctp"
    host_ip: str
    host_port: int
    address: str
    container_port: int

    @property
    def ip_version(self) -> int:
        """Return 4 or 6, by the pod's address."""
        return ipaddress.ip_address(self.address).version

    def __str__(self) -> str:
        return f"{self.host_ip or '*'}:{self.host_port}/{self.protocol}"


class Leases:
    """The tables networks, leases and host_ports; used on the event loop's thread only."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        # Not executescript, which would commit a transaction that another module has open.
        for statement in _SCHEMA.split(";"):
            database.execute(statement)

    def network(self, name: str) -> NetworkRecord | None:
        """Return what is recorded of a network, or None before its first use."""
        row = self._database.execute(
            "SELECT bridge, owner, subnets FROM networks WHERE name = ?", (name,)
        ).fetchone()
        if row is None:
            return None
        subnets = tuple(ipaddress.ip_network(subnet) for subnet in row[2].split())
        return NetworkRecord(row[0], row[1], subnets)

    def record_network(self, name: str, network: NetworkRecord) -> None:
        """Keep what was chosen for a network."""
        subnets = " ".join(str(subnet) for subnet in network.subnets)
        with self._database:
            self._database.execute(
                "INSERT OR REPLACE INTO networks VALUES (?, ?, ?, ?)",
                (name, network.bridge, network.owner, subnets),
            )

    def acquire(
        self, sandbox_id: str, subnets: Sequence[IPNetwork], ports: Sequence[HostPort]
    ) -> list[IPInterface]:
        """Lease one address of each subnet and the host ports, all or nothing.

        `ports` lead to the address of their family; their own `address` field is not read.
        A sandbox that has leases gets the same again. Raises ResourceExhaustedError when a subnet
        is full, AlreadyExistsError when a host port is taken.
        """
        with self._database:
            interfaces = [self._acquire_address(sandbox_id, subnet) for subnet in subnets]
            for port in ports:
                for interface in interfaces:
                    if _reaches(port.host_ip, interface):
                        self._acquire_port(sandbox_id, replace(port, address=str(interface.ip)))
        return interfaces

    def _acquire_address(self, sandbox_id: str, subnet: IPNetwork) -> IPInterface:
        row = self._database.execute(
            "SELECT address FROM leases WHERE sandbox_id = ? AND subnet = ?",
            (sandbox_id, str(subnet)),
        ).fetchone()
        address = ipaddress.ip_address(row[0]) if row else self._free_address(subnet)
        self._database.execute(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, NULL)",
            (str(subnet), address.packed, sandbox_id),
        )
        return ipaddress.ip_interface(f"{address}/{subnet.prefixlen}")

    def _free_address(self, subnet: IPNetwork) -> IPAddress:
        never_used = self._never_used(subnet)
        if never_used is not None:
            return never_used
        row = self._database.execute(
            "SELECT address FROM leases WHERE subnet = ? AND sandbox_id IS NULL"
            " ORDER BY released_at LIMIT 1",
            (str(subnet),),
        ).fetchone()
        if row is None:
            raise ResourceExhaustedError(
                f"every address of {subnet} is leased to a pod: remove pods or use a larger subnet"
            )
        return ipaddress.ip_address(row[0])

    def _never_used(self, subnet: IPNetwork) -> IPAddress | None:
        row = self._database.execute(
            "SELECT MAX(address) FROM leases WHERE subnet = ?", (str(subnet),)
        ).fetchone()
        # The first address after the subnet's own is the bridge's.
        following = gateway_of(subnet) + 1
        if row[0] is not None:
            following = ipaddress.ip_address(row[0]) + 1
        # In IPv4 the last address is the broadcast address; of IPv6 it is left out alike.
        if following not in subnet or following == subnet.broadcast_address:
            return None
        return following

    def _acquire_port(self, sandbox_id: str, port: HostPort) -> None:
        taken = self._database.execute(
            "SELECT sandbox_id FROM host_ports"
            " WHERE protocol = ? AND ip_version = ? AND host_port = ? AND sandbox_id != ?"
            " AND (host_ip = ? OR host_ip = '' OR ? = '')",
            (
                port.protocol,
                port.ip_version,
                port.host_port,
                sandbox_id,
                port.host_ip,
                port.host_ip,
            ),
        ).fetchone()
        if taken is not None:
            raise AlreadyExistsError(f"host port {port} is in use by sandbox {taken[0]}")
        self._database.execute(
            "INSERT OR REPLACE INTO host_ports VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                port.protocol,
                port.ip_version,
                port.host_ip,
                port.host_port,
                port.address,
                port.container_port,
                sandbox_id,
            ),
        )

    def ports(self, sandbox_id: str | None = None) -> list[HostPort]:
        """Return the host ports of one sandbox, or of all."""
        where = "" if sandbox_id is None else " WHERE sandbox_id = ?"
        rows = self._database.execute(
            f"SELECT protocol, host_ip, host_port, address, container_port FROM host_ports{where}",
            () if sandbox_id is None else (sandbox_id,),
        )
        return [HostPort(*row) for row in rows]

    def holders(self) -> set[str]:
        """Return the ids of the sandboxes that hold a lease or a host port."""
        rows = self._database.execute(
            "SELECT sandbox_id FROM leases WHERE sandbox_id IS NOT NULL"
            " UNION SELECT sandbox_id FROM host_ports"
        )
        return {row[0] for row in rows}

    def holds(self, sandbox_id: str) -> bool:
        """Say whether a sandbox holds a lease or a host port."""
        row = self._database.execute(
            "SELECT 1 FROM leases WHERE sandbox_id = ?1"
            " UNION SELECT 1 FROM host_ports WHERE sandbox_id = ?1",
            (sandbox_id,),
        ).fetchone()
        return row is not None

    def release(self, sandbox_ids: Collection[str]) -> None:
        """Free what the sandboxes hold; of those that hold nothing too."""
        now = time.time_ns()
        ids = [(sandbox_id,) for sandbox_id in sandbox_ids]
        with self._database:
            self._database.executemany(
                f"UPDATE leases SET sandbox_id = NULL, released_at = {now} WHERE sandbox_id = ?",
                ids,
            )
            self._database.executemany("DELETE FROM host_ports WHERE sandbox_id = ?", ids)

    def forget(self, name: str) -> None:
        """Drop a network's record, every lease and every host port."""
        with self._database:
            self._database.execute("DELETE FROM networks WHERE name = ?", (name,))
            self._database.execute("DELETE FROM leases")
            self._database.execute("DELETE FROM host_ports")


def gateway_of(subnet: IPNetwork) -> IPAddress:
    """Return the bridge's own address: the first after the subnet's."""
    return subnet.network_address + 1


def _reaches(host_ip: str, interface: IPInterface) -> bool:
    return not host_ip or ipaddress.ip_address(host_ip).version == interface.version

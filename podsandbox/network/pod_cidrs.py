"""The node's pod CIDRs, as the kubelet tells them by UpdateRuntimeConfig.

The kubelet tells them once and not again when this daemon restarts, so they are kept.
"""

from __future__ import annotations

import ipaddress
import sqlite3

from api.errors import InvalidArgumentError

_SCHEMA = "CREATE TABLE IF NOT EXISTS pod_cidrs (position INTEGER PRIMARY KEY, cidr TEXT NOT NULL)"

# A bridge, a pod, the network's and the broadcast address.
_MIN_ADDRESSES = 4


class PodCIDRs:
    """One table; used on the event loop's thread only."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.execute(_SCHEMA)

    def get(self) -> tuple[str, ...]:
        """Return them in the kubelet's order; none before it has told."""
        rows = self._database.execute("SELECT cidr FROM pod_cidrs ORDER BY position")
        return tuple(row[0] for row in rows)

    def set(self, text: str) -> None:
        """Keep a comma-separated list of at most one CIDR of each IP family; "" changes nothing.

        Raises InvalidArgumentError.
        """
        cidrs = [str(_network(part.strip())) for part in text.split(",") if part.strip()]
        if len({":" in cidr for cidr in cidrs}) != len(cidrs):
            raise InvalidArgumentError(f"pod_cidr {text[:256]!r} has two of one IP family")
        if not cidrs:
            return
        with self._database:
            self._database.execute("DELETE FROM pod_cidrs")
            self._database.executemany("INSERT INTO pod_cidrs VALUES (?, ?)", enumerate(cidrs))


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as err:
        raise InvalidArgumentError(f"pod_cidr: {err}") from err
    if network.num_addresses < _MIN_ADDRESSES:
        raise InvalidArgumentError(f"pod_cidr {text} has no room for pods")
    return network

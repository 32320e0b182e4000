"""Masquerade and host ports of the built-in network: one nftables table, named after the bridge.

A pod's host port is one element of a map, so a pod costs no rule and a packet one look-up. The
table is apart from those of iptables-nft, firewalld and the CNI plugins and is removed as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from string import Template

from podsandbox.network.addresses import HostPort
from podsandbox.network.rtnetlink import IPNetwork
from runtimeshim.linux.nftables import Listed, Nftables, NftablesError

# What the sections do, in order:
#   localnet     route_localnet lets the host's 127.0.0.1 reach pods; a pod must not reach the
#                services on it in return (CVE-2020-8558).
#   host_ports   connections to an address of the host, from outside and from the host itself.
#   output       but not to ::1, from which the kernel has no way out and back (IPv6 knows no
#                route_localnet): refused at once, a client of "localhost" goes on with 127.0.0.1.
#   prerouting   remembers, for the same packet's postrouting, at which address of the host a pod
#                asked: `ct original` tells it from the address of a Kubernetes service, whose
#                clients must keep their source address.
#   postrouting  127.0.0.1 cannot leave the host; a pod that reached a pod through a host port must
#                be answered through the host; what leaves the pod network does so as the host.
_TABLE = Template("""
add table inet $table
delete table inet $table
table inet $table {
  chain host_ports {
  }
  chain localnet {
    type filter hook prerouting priority raw;
    iifname "$bridge" ip daddr 127.0.0.0/8 drop
  }
  chain prerouting {
    type nat hook prerouting priority dstnat;
  }
  chain output {
    type nat hook output priority -100;
    ip6 daddr ::1 return
    fib daddr type local jump host_ports
  }
  chain postrouting {
    type nat hook postrouting priority srcnat;
    oifname "$bridge" ip saddr 127.0.0.0/8 masquerade
  }
}
""")

_FAMILY = Template(
    """
table inet $table {
  map host_ports$version {
    type inet_proto . inet_service : $type . inet_service;
  }
  map host_address_ports$version {
    type $type . inet_proto . inet_service : $type . inet_service;
  }
  set host_addresses$version {
    type $type; flags dynamic,timeout; timeout 1m; size 65535;
  }
  chain host_ports {
    dnat $ip to $ip daddr . meta l4proto . th dport map @host_address_ports$version
    dnat $ip to meta l4proto . th dport map @host_ports$version
  }
  chain prerouting {
    iifname "$bridge" fib daddr type local update @host_addresses$version { $ip daddr }
  }
  chain postrouting {
    $ip saddr $subnet $ip daddr $subnet ct status dnat ct original $ip daddr """
    """@host_addresses$version masquerade
    $ip saddr $subnet $ip daddr != { $subnet, $multicast } masquerade
  }
}
"""
)

_PREROUTING_JUMP = Template("""
add rule inet $table prerouting fib daddr type local jump host_ports
""")

_FAMILIES = {
    4: {"ip": "ip", "type": "ipv4_addr", "multicast": "224.0.0.0/4", "version": "4"},
    6: {"ip": "ip6", "type": "ipv6_addr", "multicast": "ff00::/8", "version": "6"},
}


def ruleset(bridge: str, subnets: Sequence[IPNetwork], ports: Iterable[HostPort]) -> str:
    """Return the commands that make the table, in place of what was there; one transaction."""
    parts = [_TABLE.substitute(table=bridge, bridge=bridge)]
    for subnet in subnets:
        words = _FAMILIES[subnet.version] | {"subnet": str(subnet)}
        parts.append(_FAMILY.substitute(words, table=bridge, bridge=bridge))
    parts.append(_PREROUTING_JUMP.substitute(table=bridge))
    parts.extend(element(bridge, "add", port) for port in ports)
    return "".join(parts)


def element(bridge: str, verb: str, port: HostPort) -> str:
    """Return the command that adds or deletes one host port; `verb` is "add" or "delete"."""
    key = f"{port.protocol} . {port.host_port}"
    name = f"host_ports{port.ip_version}"
    if port.host_ip:
        key = f"{port.host_ip} . {key}"
        name = f"host_address_ports{port.ip_version}"
    target = f"{port.address} . {port.container_port}"
    return f"{verb} element inet {bridge} {name} {{ {key} : {target} }}\n"


# (IP version, protocol, host IP or "", port)
PortKey = tuple[int, str, str, int]


def collision(ports: Iterable[HostPort], taken: Collection[PortKey]) -> HostPort | None:
    """Return the first of `ports` that is among `taken`; no host IP means all of them."""
    for port in ports:
        for version, protocol, host_ip, number in taken:
            same = (version, protocol, number) == (port.ip_version, port.protocol, port.host_port)
            if same and (host_ip in ("", port.host_ip) or not port.host_ip):
                return port
    return None


def key_of(port: HostPort) -> PortKey:
    """Return by what a host port is known in the kernel."""
    return port.ip_version, port.protocol, port.host_ip, port.host_port


class Firewall:
    """The table of one bridge. Synchronous; raises NftablesError."""

    def __init__(self, bridge: str) -> None:
        self._bridge = bridge
        self._nft = Nftables()

    def close(self) -> None:
        """Free libnftables' context."""
        self._nft.close()

    def present(self) -> bool:
        """Say whether the rules are there: the reload of a host's firewall may flush them."""
        try:
            objects = self._nft.run(f"list chain inet {self._bridge} postrouting")
        except NftablesError as err:
            if err.missing:
                return False
            raise
        return any("rule" in entry for entry in objects)

    def ensure(self, subnets: Sequence[IPNetwork], ports: Iterable[HostPort]) -> None:
        """Make the table and the elements of `ports`, in place of what was there."""
        self._nft.run(ruleset(self._bridge, subnets, ports))
        for version in sorted({subnet.version for subnet in subnets}):
            self._accept_forwarding(_FAMILIES[version]["ip"])

    def add(self, ports: Iterable[HostPort]) -> None:
        """Add host ports, all or none."""
        commands = "".join(element(self._bridge, "add", port) for port in ports)
        if commands:
            self._nft.run(commands)

    def delete(self, ports: Iterable[HostPort]) -> None:
        """Delete host ports; idempotent."""
        for port in ports:
            try:
                self._nft.run(element(self._bridge, "delete", port))
            except NftablesError as err:
                if not err.missing:
                    raise

    def delete_key(self, key: PortKey) -> None:
        """Delete a host port of which no more than its key is known; idempotent."""
        version, protocol, host_ip, number = key
        name = f"host_address_ports{version}" if host_ip else f"host_ports{version}"
        words = " . ".join(filter(None, (host_ip, protocol, str(number))))
        try:
            self._nft.run(f"delete element inet {self._bridge} {name} {{ {words} }}\n")
        except NftablesError as err:
            if not err.missing:
                raise

    def host_ports_of(self, bridge: str) -> set[PortKey]:
        """Return the host ports that another daemon's table has."""
        try:
            objects = self._nft.run(f"list table inet {bridge}")
        except NftablesError as err:
            if err.missing:  # it has been reset
                return set()
            raise
        maps = [entry["map"] for entry in objects if "map" in entry]
        return {_key(each["name"], element) for each in maps for element in each.get("elem", [])}

    def reset(self) -> None:
        """Remove the table and the rules that were added to others' chains."""
        # "add" first makes the deletion of what may be missing succeed, in one transaction.
        name = f"inet {self._bridge}"
        self._nft.run(f"add table {name}\ndelete table {name}\n")
        for family in ("ip", "ip6"):
            for rule in self._forward_rules(family):
                self._nft.run(f"delete rule {family} filter FORWARD handle {rule['handle']}")

    def _accept_forwarding(self, family: str) -> None:
        """Let pods' packets pass an iptables FORWARD chain whose policy drops them.

        An accept in a table of ours would not do: every base chain at a hook has its say. The rules
        go to the end of the chain, so that whatever others reject explicitly stays rejected.
        """
        if not self._forward_drops(family) or self._forward_rules(family):
            return
        for direction in ("iifname", "oifname"):
            self._nft.run(
                f'add rule {family} filter FORWARD {direction} "{self._bridge}" counter accept'
                f' comment "{self._mark}"'
            )

    @property
    def _mark(self) -> str:
        return f"criserver bridge {self._bridge}"

    def _forward_drops(self, family: str) -> bool:
        return any(
            entry["chain"].get("policy") == "drop"
            for entry in self._forward_chain(family)
            if "chain" in entry
        )

    def _forward_rules(self, family: str) -> list[Listed]:
        rules = [entry["rule"] for entry in self._forward_chain(family) if "rule" in entry]
        return [rule for rule in rules if rule.get("comment") == self._mark]

    def _forward_chain(self, family: str) -> list[Listed]:
        try:
            return self._nft.run(f"list chain {family} filter FORWARD")
        except NftablesError as err:
            if err.missing:
                return []
            raise


def _key(name: str, element: Listed | list[Listed]) -> PortKey:
    """Read one element of a map of host ports, as libnftables-json(5) has it."""
    key = element[0] if isinstance(element, list) else element
    *host_ip, protocol, port = key["concat"]
    return int(name[-1]), protocol, host_ip[0] if host_ip else "", port

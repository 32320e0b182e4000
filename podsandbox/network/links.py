"""The links of the built-in network: a bridge, and a veth pair for each pod.

Everything here is synchronous and waits for the kernel's rtnl lock: builtin.py runs it in a thread.
"""

from __future__ import annotations

import errno
import ipaddress
import secrets
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from podsandbox.network import INTERFACE, rtnetlink
from podsandbox.network.addresses import gateway_of
from podsandbox.network.qdisc import Bandwidth, limit_rate
from podsandbox.network.rtnetlink import RTM_NEWLINK, IPInterface, IPNetwork, Link, Route
from runtimeshim.linux.netlink import NetlinkSocket, Request

# With 12 digits of the sandbox's id it fills the 15 bytes of an interface name (IFNAMSIZ).
_PORT_PREFIX = "cri"

# What the mark of a built-in network's bridge begins with, whichever daemon's it is.
ALIAS = "criserver:"

# Ethernet's, where the host has no default route to take it from.
_DEFAULT_MTU = 1500

_MAIN_TABLE = rtnetlink.RT_TABLE_MAIN

_SYSCTLS = Path("/proc/sys/net")


def port_name(sandbox_id: str) -> str:
    """Return the name of the host's end of a pod's veth pair."""
    return _PORT_PREFIX + sandbox_id[:12]


class PodLink(NamedTuple):
    """The host's end of a pod's veth pair: its name, its index as text, and whose it is."""

    name: str
    number: str
    sandbox_id: str


class Links:
    """One bridge and its ports. `alias` on the bridge tells whose it is."""

    def __init__(self, bridge: str, alias: str) -> None:
        self.bridge = bridge
        self._alias = alias
        self._netlink = NetlinkSocket()

    def close(self) -> None:
        """Close the netlink socket."""
        self._netlink.close()

    def owned(self) -> bool | None:
        """Say whether the bridge is this instance's; None when no link has its name."""
        link = self._find(self.bridge)
        return None if link is None else link.kind == "bridge" and link.alias == self._alias

    def ensure(self, subnets: Sequence[IPNetwork], mtu: int | None) -> None:
        """Create the bridge with its addresses, or complete what is there; turn forwarding on.

        `mtu` (bytes) None is the uplink's. Raises FileExistsError when the name is somebody else's.
        """
        link = self._find(self.bridge)
        mtu = mtu or self._uplink_mtu()
        if link is None:
            self._netlink.request(rtnetlink.new_bridge(self.bridge, _random_address(), mtu))
        elif link.kind != "bridge" or link.alias not in ("", self._alias):
            # Without an alias it is the remains of a start that was cut short.
            raise FileExistsError(
                errno.EEXIST,
                f"interface {self.bridge} exists and belongs to {link.alias or 'something else'}",
            )
        if any(subnet.version == 6 for subnet in subnets):
            _set_sysctl(f"ipv6/conf/{self.bridge}/disable_ipv6", "0")
            # While its link-local address is tentative, 1 to 2 s after the first pod's start, the
            # kernel asks for no neighbour on behalf of others' packets, and gives up after 3 s.
            _set_sysctl(f"ipv6/conf/{self.bridge}/accept_dad", "0")
        self._netlink.request(rtnetlink.set_up(self.bridge, alias=self._alias, mtu=mtu))
        index = self._get(self.bridge).index
        for subnet in subnets:
            self._ensure_address(index, subnet)
        self._forward(subnets)

    def _ensure_address(self, index: int, subnet: IPNetwork) -> None:
        interface = _interface(subnet)
        try:
            self._netlink.request(rtnetlink.new_address(index, interface))
        except FileExistsError:  # of an earlier start
            return

    def _forward(self, subnets: Sequence[IPNetwork]) -> None:
        versions = {subnet.version for subnet in subnets}
        if 4 in versions:
            _set_sysctl("ipv4/ip_forward", "1")
            # Lets 127.0.0.1:PORT of the host reach a pod; firewall.py closes the way back.
            _set_sysctl(f"ipv4/conf/{self.bridge}/route_localnet", "1")
        if 6 in versions:
            self._keep_default_routes()
            _set_sysctl("ipv6/conf/all/forwarding", "1")

    def _keep_default_routes(self) -> None:
        """Let uplinks go on taking router advertisements: a router ignores them by default."""
        names = {link.index: link.name for link in self.links()}
        for route in self.routes():
            if route.destination is None and route.version == 6 and route.interface in names:
                name = f"ipv6/conf/{names[route.interface]}/accept_ra"
                if _sysctl(name) == "1":
                    _set_sysctl(name, "2")  # also when forwarding (ip-sysctl.rst)

    def attach(
        self,
        sandbox_id: str,
        netns: int,
        pod: NetlinkSocket,
        interfaces: Sequence[IPInterface],
        bandwidth: Bandwidth,
    ) -> None:
        """Plug a pod in: `netns` is its namespace, `pod` a socket opened in there."""
        name = port_name(sandbox_id)
        bridge = self._get(self.bridge)  # made by this daemon, or by one before it
        self._netlink.request(
            rtnetlink.new_veth(
                name,
                bridge.index,
                bridge.mtu,
                INTERFACE,
                netns,
                _address_for(interfaces[0]),
            ),
            rtnetlink.set_bridge_port(name, self._mark(sandbox_id)),
        )
        try:
            index = _configure(pod, interfaces)
            if bandwidth.egress:
                pod.request(limit_rate(index, bandwidth.egress))
            if bandwidth.ingress:
                self._netlink.request(limit_rate(self._get(name).index, bandwidth.ingress))
        except OSError:
            self.delete(sandbox_id)
            raise

    def unplug(self, sandbox_id: str) -> None:
        """Cut a pod off: from here on another may have its address; idempotent.

        To delete a veth pair takes the kernel 20-40 ms, as it waits for RCU grace periods under a
        lock; this takes 0.3 ms. The pair goes with the pod's namespace, if need be by `delete`.
        """
        self._forgiving(rtnetlink.unplug(port_name(sandbox_id)))

    def delete(self, sandbox_id: str) -> None:
        """Delete a pod's veth pair; idempotent."""
        self._forgiving(rtnetlink.delete_link(port_name(sandbox_id)))

    def _forgiving(self, request: Request) -> None:
        try:
            self._netlink.request(request)
        except OSError as err:
            if err.errno != errno.ENODEV:  # gone with the pod's namespace
                raise

    def delete_strays(self, live: Collection[str]) -> None:
        """Delete every link of this instance's pods that belongs to none of `live`."""
        wanted = {self._mark(sandbox_id) for sandbox_id in live}
        for link in self.links():
            if link.alias.startswith(self._mark("")) and link.alias not in wanted:
                self._forgiving(rtnetlink.delete_link(link.name))

    def pod_links(self) -> list[PodLink]:
        """Return every link of this instance's pods."""
        mark = self._mark("")
        return [
            PodLink(link.name, str(link.index), link.alias.removeprefix(mark))
            for link in self.links()
            if link.alias.startswith(mark)
        ]

    def delete_named(self, name: str) -> None:
        """Delete a link by its name; idempotent."""
        self._forgiving(rtnetlink.delete_link(name))

    def _mark(self, sandbox_id: str) -> str:
        return f"{self._alias}:{sandbox_id}"

    def reset(self) -> None:
        """Delete the bridge and its ports, if they are this instance's."""
        if self.owned():
            self.delete_strays(())
            self._forgiving(rtnetlink.delete_link(self.bridge))

    def links(self) -> list[Link]:
        """Return every link of the host."""
        answers = self._netlink.request(rtnetlink.get_links())
        return [rtnetlink.parse_link(reply.body) for reply in answers if reply.type == RTM_NEWLINK]

    def other_bridges(self) -> list[str]:
        """Return the bridges of the other daemons on this host."""
        return [
            link.name
            for link in self.links()
            if link.kind == "bridge" and link.alias.startswith(ALIAS) and link.name != self.bridge
        ]

    def routes(self) -> list[Route]:
        """Return every route of the host, those to its own addresses among them."""
        answers = self._netlink.request(rtnetlink.get_routes())
        routes = (rtnetlink.parse_route(reply.body) for reply in answers)
        return [route for route in routes if route is not None]

    def _find(self, name: str) -> Link | None:
        try:
            return self._get(name)
        except OSError as err:
            if err.errno == errno.ENODEV:
                return None
            raise

    def _get(self, name: str) -> Link:
        (reply,) = self._netlink.request(rtnetlink.get_link(name))
        return rtnetlink.parse_link(reply.body)

    def _uplink_mtu(self) -> int:
        uplinks = {
            route.interface
            for route in self.routes()
            if route.destination is None and route.table == _MAIN_TABLE and route.interface
        }
        mtus = [link.mtu for link in self.links() if link.index in uplinks]
        return min(mtus, default=_DEFAULT_MTU)


def overlaps(subnet: IPNetwork, routes: Iterable[Route]) -> bool:
    """Say whether the host knows a way to any part of `subnet`, other than the default route."""
    return any(
        route.destination is not None
        and route.destination.prefixlen > 0
        and route.destination.version == subnet.version
        and route.destination.overlaps(subnet)
        for route in routes
    )


def _configure(pod: NetlinkSocket, interfaces: Sequence[IPInterface]) -> int:
    """Bring the pod's interface up with its addresses; returns its index."""
    replies = pod.request(rtnetlink.set_up(INTERFACE), rtnetlink.get_link(INTERFACE))
    index = rtnetlink.parse_link(replies[0].body).index
    for interface in interfaces:
        gateway = gateway_of(interface.network)
        pod.request(
            rtnetlink.new_address(index, interface), rtnetlink.new_default_route(index, gateway)
        )
    return index


def _interface(subnet: IPNetwork) -> IPInterface:
    gateway = gateway_of(subnet)
    return ipaddress.ip_interface(f"{gateway}/{subnet.prefixlen}")


def _address_for(interface: IPInterface) -> bytes:
    # Made from the address, so that a neighbour's cache stays right when the address has a new pod.
    return b"\x0a\x58" + interface.ip.packed[-4:]


def _random_address() -> bytes:
    # Locally administered, unicast.
    return b"\x0a\x58" + secrets.token_bytes(4)


def _sysctl(name: str) -> str:
    return (_SYSCTLS / name).read_text().strip()


def _set_sysctl(name: str, value: str) -> None:
    if _sysctl(name) != value:
        (_SYSCTLS / name).write_text(value)

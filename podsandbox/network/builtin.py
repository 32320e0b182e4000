"""The built-in network: a bridge, veth pairs, leases, masquerade and host ports; no program is run.

Bridge, subnet and table are made when the first pod needs them. Which ones were chosen is kept in
the database, so that they stay the same, and several daemons on a host find different ones.
Kernel work waits for locks of the kernel and so runs in one thread of its own; the database is used
on the event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import sqlite3
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from api.errors import InternalError, InvalidArgumentError
from podsandbox.network import (
    HOST_PORT,
    INTERFACE,
    LEASE,
    LINK,
    NOT_READY_REASON,
    Alive,
    NetworkResult,
    NetworkStatus,
    NetworkStray,
    PodNetworkRequest,
    PortMapping,
    State,
)
from podsandbox.network.addresses import HostPort, Leases, NetworkRecord
from podsandbox.network.bandwidth import bandwidth_of
from podsandbox.network.builtin_kernel import Kernel, PodLinks, Wanted, choice_lock, choose
from podsandbox.network.firewall import PortKey, key_of
from podsandbox.network.pod_cidrs import PodCIDRs
from podsandbox.network.qdisc import Bandwidth
from runtimeshim.linux.nftables import NftablesError

_NAME = "builtin"

# The kernel removes a namespace within 0.1 s of its last user's end.
_LINK_GRACE_SECONDS = 5.0

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltinConfig:
    """Settings; each None or empty one is found at first use. `mtu` is in bytes."""

    bridge: str | None = None
    subnets: tuple[str, ...] = ()
    mtu: int | None = None


class BuiltinNetwork:
    """A Network that needs nothing but the kernel and libnftables."""

    def __init__(
        self, config: BuiltinConfig, database: sqlite3.Connection, pod_cidrs: PodCIDRs
    ) -> None:
        self._config = config
        self._leases = Leases(database)
        self._cidrs = pod_cidrs
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._kernel = Kernel()
        self._failure = ""
        self._stray_ports: dict[str, PortKey] = {}
        self._deletions: set[asyncio.Task[None]] = set()
        self._leaving: set[str] = set()  # sandboxes whose links go within the grace

    async def status(self) -> NetworkStatus:
        """Not ready only after a failure to set the network up; the next pod tries again."""
        if self._failure:
            return NetworkStatus(False, NOT_READY_REASON, self._failure)
        return NetworkStatus(True)

    async def attach(self, pod: PodNetworkRequest) -> NetworkResult:
        """Lease addresses and host ports and plug the pod in.

        Raises InvalidArgumentError (host IP, bandwidth), ResourceExhaustedError (subnet),
        AlreadyExistsError (host port), InternalError.
        """
        netlink = pod.netlink
        if netlink is None:
            raise InvalidArgumentError(f"sandbox {pod.sandbox_id} has no netlink socket")
        wanted = [_host_port(mapping) for mapping in pod.port_mappings if mapping.host_port > 0]
        limits = bandwidth_of(pod.annotations)
        bandwidth = Bandwidth(limits.get("ingressRate", 0), limits.get("egressRate", 0))
        record = await self._ensure()
        interfaces = self._leases.acquire(pod.sandbox_id, record.subnets, wanted)
        ports = self._leases.ports(pod.sandbox_id)
        links = PodLinks(pod.sandbox_id, pod.netns, netlink, interfaces, bandwidth)
        try:
            await self._run(lambda: self._kernel.attach(record, links, ports))
        except BaseException:
            await self.discard(pod.sandbox_id)
            raise
        ips = tuple(str(interface.ip) for interface in interfaces)
        return NetworkResult(ips, (INTERFACE,), {})

    async def detach(self, pod: PodNetworkRequest, state: State) -> None:
        """Unplug the pod, then free its addresses; its links go when its namespace does."""
        await self.discard(pod.sandbox_id)

    async def discard(self, sandbox_id: str) -> None:
        """As detach, of a sandbox of which no more than the id is known."""
        record = self._leases.network(_NAME)
        if record is None or not self._leases.holds(sandbox_id):
            return
        ports = self._leases.ports(sandbox_id)
        await self._run(lambda: self._kernel.detach(record, sandbox_id, ports))
        self._leases.release([sandbox_id])
        task = asyncio.create_task(self._delete_later(record, sandbox_id))
        self._deletions.add(task)
        task.add_done_callback(self._deletions.discard)

    async def _delete_later(self, record: NetworkRecord, sandbox_id: str) -> None:
        """Delete the links of a pod whose namespace something else keeps alive."""
        self._leaving.add(sandbox_id)
        try:
            await asyncio.sleep(_LINK_GRACE_SECONDS)
            await self._run(lambda: self._kernel.delete(record, sandbox_id))
        except InternalError as err:  # the next start tries again
            _log.warning("sandbox %s: its links are left: %s", sandbox_id, err)
        finally:
            self._leaving.discard(sandbox_id)

    async def reconcile(self, live: Collection[str]) -> None:
        """Remove links, ports and leases of nobody; make bridge and rules whole for the others."""
        record = self._leases.network(_NAME)
        if record is None:
            return
        await self._run(lambda: self._kernel.delete_strays(record, live))
        for sandbox_id in self._leases.holders().difference(live):
            await self.discard(sandbox_id)
        if self._leases.holders():
            await self._ensure()

    async def strays(self, alive: Alive) -> list[NetworkStray]:
        """Find links, leases and host ports of pods that are gone."""
        record = self._leases.network(_NAME)
        if record is None:
            return []
        links, ports = await self._run(lambda: self._kernel.look(record))
        known = self._leaving.union(alive())
        opened = {key_of(port) for port in self._leases.ports()}
        self._stray_ports = {str(key): key for key in ports - opened}
        return [
            *(NetworkStray(LINK, *link) for link in links if link[2] not in known),
            *(NetworkStray(LEASE, key, "", key) for key in self._leases.holders() - known),
            *(NetworkStray(HOST_PORT, name) for name in self._stray_ports),
        ]

    async def remove_stray(self, kind: str, name: str) -> None:
        """Remove it."""
        record = self._leases.network(_NAME)
        if record is None:
            return
        if kind == LEASE:
            await self.discard(name)
        elif kind == LINK:
            await self._run(lambda: self._kernel.delete_link(record, name))
        elif (key := self._stray_ports.get(name)) is not None:
            await self._run(lambda: self._kernel.close_port(record, key))

    def holders(self) -> set[str]:
        """Return the ids of the sandboxes that hold an address or a host port."""
        return self._leases.holders()

    async def reset(self) -> str:
        """Remove bridge, ports, rules and leases without a trace. Pods lose their network.

        Returns the bridge's name, "" when there was none.
        """
        record = self._leases.network(_NAME)
        if record is None:
            return ""
        await self._run(lambda: self._kernel.reset(record))
        self._leases.forget(_NAME)
        return record.bridge

    async def close(self) -> None:
        """Close sockets and the thread; pods keep their network."""
        tasks = list(self._deletions)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._run(self._kernel.close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        """Run kernel work in the thread, to its end even if the caller is cancelled."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise
        except (OSError, NftablesError) as err:
            raise InternalError(f"built-in network: {err}") from err

    async def _ensure(self) -> NetworkRecord:
        """Choose at first use, and make whole what is missing."""
        async with self._lock:
            try:
                record = await self._chosen()
            except InternalError as err:
                self._failure = str(err)
                raise
            self._failure = ""
            return record

    async def _chosen(self) -> NetworkRecord:
        old, ports = self._leases.network(_NAME), self._leases.ports()
        idle = not self._leases.holders()
        mtu = self._config.mtu
        wanted = self._wanted()
        if old is not None and (wanted.is_met_by(old) or not idle):
            # With pods on the old bridge, new settings would cut them off.
            found = self._config.bridge is None  # not configured: then its name is ours to change
            if not (found and await self._run(lambda: self._kernel.has_lost(old))):
                await self._run(lambda: self._kernel.set_up(old, mtu, ports))
                return old
        elif old is not None:
            await self._run(lambda: self._kernel.reset(old))
        with contextlib.ExitStack() as stack:
            await self._run(lambda: stack.enter_context(choice_lock()))
            record = await self._run(lambda: choose(wanted, old))
            # Recorded before it is made: whatever dies next, it is known whose it is.
            self._leases.record_network(_NAME, record)
            await self._run(lambda: self._kernel.set_up(record, mtu, ports))
        return record

    def _wanted(self) -> Wanted:
        """Return the settings; the kubelet's pod CIDRs stand in for subnets that are not set."""
        subnets = self._config.subnets or self._cidrs.get()
        networks = tuple(ipaddress.ip_network(subnet) for subnet in subnets)
        return Wanted(self._config.bridge, networks, self._config.mtu)


def _host_port(mapping: PortMapping) -> HostPort:
    host_ip = mapping.host_ip
    try:
        if host_ip:
            ip = ipaddress.ip_address(host_ip)
            host_ip = "" if ip.is_unspecified else str(ip)
    except ValueError as err:
        raise InvalidArgumentError(f"port mapping's host IP: {err}") from err
    # The address is known once it is leased.
    return HostPort(mapping.protocol, host_ip, mapping.host_port, "", mapping.container_port)

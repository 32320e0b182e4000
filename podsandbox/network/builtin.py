"""The built-in network: a bridge, veth pairs, leases, masquerade and host ports; no program is run.

Bridge, subnet and table are made when the first pod needs them. Which ones were chosen is kept in
the database, so that they stay the same, and several daemons on a host find different ones.
Kernel work waits for locks of the kernel and so runs in one thread of its own; the database is used
on the event loop only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import sqlite3
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from api.errors import InternalError, InvalidArgumentError
from podsandbox.network import (
    INTERFACE,
    NOT_READY_REASON,
    NetworkResult,
    NetworkStatus,
    PodNetworkRequest,
    PortMapping,
    State,
)
from podsandbox.network.addresses import HostPort, Leases, NetworkRecord
from podsandbox.network.firewall import Firewall
from podsandbox.network.links import Links, overlaps
from podsandbox.network.netlink_socket import NetlinkSocket
from podsandbox.network.rtnetlink import IPInterface, IPNetwork
from runtimeshim.linux.nftables import NftablesError

# Not what Docker (172.17), flannel (10.244), kubeadm's services (10.96/12) and most homes use.
_CANDIDATE_SUBNETS = [f"10.{n}.0.0/16" for n in (*range(88, 96), *range(200, 240))]

# A host has one daemon, a test machine a few.
_CANDIDATE_BRIDGES = [f"criserver{n}" for n in range(100)]

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

    def __init__(self, config: BuiltinConfig, database: sqlite3.Connection) -> None:
        self._config = config
        self._leases = Leases(database)
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._parts: tuple[Links, Firewall] | None = None
        self._failure = ""
        self._deletions: set[asyncio.Task[None]] = set()

    def status(self) -> NetworkStatus:
        """Not ready only after a failure to set the network up; the next pod tries again."""
        if self._failure:
            return NetworkStatus(False, NOT_READY_REASON, self._failure)
        return NetworkStatus(True)

    async def attach(self, pod: PodNetworkRequest) -> NetworkResult:
        """Lease addresses and host ports and plug the pod in.

        Raises ResourceExhaustedError, AlreadyExistsError (host port), InternalError.
        """
        netlink = pod.netlink
        if netlink is None:
            raise InvalidArgumentError(f"sandbox {pod.sandbox_id} has no netlink socket")
        record = await self._ensure()
        wanted = [_host_port(mapping) for mapping in pod.port_mappings if mapping.host_port > 0]
        interfaces = self._leases.acquire(pod.sandbox_id, record.subnets, wanted)
        ports = self._leases.ports(pod.sandbox_id)
        try:
            await self._run(lambda: self._attach(record, pod, netlink, interfaces, ports))
        except BaseException:
            await self.detach(pod, {})
            raise
        ips = tuple(str(interface.ip) for interface in interfaces)
        return NetworkResult(ips, (INTERFACE,), {})

    async def detach(self, pod: PodNetworkRequest, state: State) -> None:
        """Unplug the pod, then free its addresses; its links go when its namespace does."""
        record = self._leases.network(_NAME)
        if record is None:
            return
        ports = self._leases.ports(pod.sandbox_id)
        await self._run(lambda: self._detach(record, pod.sandbox_id, ports))
        self._leases.release([pod.sandbox_id])
        task = asyncio.create_task(self._delete_later(record, pod.sandbox_id))
        self._deletions.add(task)
        task.add_done_callback(self._deletions.discard)

    async def _delete_later(self, record: NetworkRecord, sandbox_id: str) -> None:
        """Delete the links of a pod whose namespace something else keeps alive."""
        await asyncio.sleep(_LINK_GRACE_SECONDS)
        try:
            await self._run(lambda: self._open(record)[0].delete(sandbox_id))
        except InternalError as err:  # the next start tries again
            _log.warning("sandbox %s: its links are left: %s", sandbox_id, err)

    async def reconcile(self, live: Collection[str]) -> None:
        """Remove links, ports and leases of nobody; make bridge and rules whole for the others."""
        record = self._leases.network(_NAME)
        if record is None:
            return
        await self._run(lambda: self._open(record)[0].delete_strays(live))
        self._leases.release(self._leases.holders().difference(live))
        if self._leases.holders():
            await self._ensure()

    async def reset(self) -> None:
        """Remove bridge, ports, rules and leases without a trace. Pods lose their network."""
        record = self._leases.network(_NAME)
        if record is None:
            return
        await self._run(lambda: self._reset(record))
        self._leases.forget(_NAME)

    async def close(self) -> None:
        """Close sockets and the thread; pods keep their network."""
        tasks = list(self._deletions)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._run(self._close)
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
            old = self._leases.network(_NAME)
            ports = self._leases.ports()
            idle = not self._leases.holders()
            try:
                record = await self._run(lambda: self._set_up(old, ports, idle))
            except InternalError as err:
                self._failure = str(err)
                raise
            self._failure = ""
            if record != old:
                self._leases.record_network(_NAME, record)
            return record

    # What follows runs in the thread.

    def _open(self, record: NetworkRecord) -> tuple[Links, Firewall]:
        if self._parts is None or self._parts[0].bridge != record.bridge:
            self._close()
            alias = f"criserver:{record.owner}"
            self._parts = (
                Links(record.bridge, alias, self._config.mtu),
                Firewall(record.bridge),
            )
        return self._parts

    def _close(self) -> None:
        for part in self._parts or ():
            part.close()
        self._parts = None

    def _set_up(
        self, old: NetworkRecord | None, ports: Sequence[HostPort], idle: bool
    ) -> NetworkRecord:
        if old is None:
            record = self._choose(None)
        elif self._bridge_lost(old):
            record = self._choose(old)
        elif idle and self._settings_changed(old):
            # With pods on the old bridge, new settings would cut them off.
            self._reset(old)
            record = self._choose(old)
        else:
            record = old
        links, firewall = self._open(record)
        if not links.owned():
            links.ensure(record.subnets)
        if not firewall.present():
            firewall.ensure(record.subnets, ports)
        return record

    def _settings_changed(self, record: NetworkRecord) -> bool:
        return self._config.bridge not in (None, record.bridge) or self._wanted_subnets() not in (
            (),
            record.subnets,
        )

    def _bridge_lost(self, record: NetworkRecord) -> bool:
        """Say whether another has taken a name that was found, not configured."""
        return self._config.bridge is None and self._open(record)[0].owned() is False

    def _wanted_subnets(self) -> tuple[IPNetwork, ...]:
        return tuple(ipaddress.ip_network(subnet) for subnet in self._config.subnets)

    def _choose(self, old: NetworkRecord | None) -> NetworkRecord:
        owner = old.owner if old else uuid.uuid4().hex
        probe = Links("", "")
        try:
            taken = {link.name for link in probe.links()}
            routes = probe.routes()
        finally:
            probe.close()
        free = (name for name in _CANDIDATE_BRIDGES if name not in taken)
        subnets = self._wanted_subnets() or (old.subnets if old else ())
        if not subnets:
            candidates = (ipaddress.ip_network(subnet) for subnet in _CANDIDATE_SUBNETS)
            free_subnets = (subnet for subnet in candidates if not overlaps(subnet, routes))
            subnets = (_first(free_subnets, "subnet: set network.subnets"),)
        bridge = self._config.bridge or _first(free, "bridge name: set network.bridge")
        return NetworkRecord(bridge, owner, subnets)

    def _attach(
        self,
        record: NetworkRecord,
        pod: PodNetworkRequest,
        netlink: int,
        interfaces: Sequence[IPInterface],
        ports: Sequence[HostPort],
    ) -> None:
        links, firewall = self._open(record)
        netns = os.open(pod.netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # The caller keeps its socket; ours is a duplicate.
            with NetlinkSocket(os.dup(netlink)) as socket:
                links.attach(pod.sandbox_id, netns, socket, interfaces)
        finally:
            os.close(netns)
        firewall.add(ports)

    def _detach(self, record: NetworkRecord, sandbox_id: str, ports: Sequence[HostPort]) -> None:
        links, firewall = self._open(record)
        firewall.delete(ports)
        links.unplug(sandbox_id)

    def _reset(self, record: NetworkRecord) -> None:
        links, firewall = self._open(record)
        firewall.reset()
        links.reset()


def _first(candidates: Iterable[T], what: str) -> T:
    for candidate in candidates:
        return candidate
    raise InternalError(f"built-in network: the host has no free {what}")


def _host_port(mapping: PortMapping) -> HostPort:
    host_ip = mapping.host_ip
    try:
        if host_ip and ipaddress.ip_address(host_ip).is_unspecified:
            host_ip = ""
    except ValueError as err:
        raise InvalidArgumentError(f"port mapping's host IP: {err}") from err
    # The address is known once it is leased.
    return HostPort(mapping.protocol, host_ip, mapping.host_port, "", mapping.container_port)

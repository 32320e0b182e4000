"""A pod sandbox from its making to its removal: cgroup, files, namespaces, network.

    create   namespaces (podsandbox.namespaces), beside them cgroup, files and, as soon as there is
             one for it, network; a failure undoes all
    stop     network, beside it the PID namespace's processes and the other pins; then the network's
    remove   what is left on disk

What is on disk is the evidence: stop and remove look at RUN/sandboxes/ID and need no memory of what
create did, so that they also clean up after a daemon that was killed half-way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from api.cri import api_pb2 as cri
from api.errors import InternalError, InvalidArgumentError
from api.stages import stage
from podsandbox import pins, pod_init
from podsandbox.cgroup_names import SYSTEMD
from podsandbox.etc_files import write_etc_files
from podsandbox.namespaces import WORKER_TIMEOUT_SECONDS, Made, Making
from podsandbox.network import DNS, Network, NetworkResult, PodNetworkRequest, PortMapping
from podsandbox.plan import SandboxHost, SandboxPlan, own_cgroup_of, plan_sandbox
from runtimeshim.client import Spawner, read_to_end
from runtimeshim.linux.cgroups import CgroupError, CgroupManager, units

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")

_MAX_INIT_FAILURE = 4096  # bytes of one error message

# Containers' users may pass through to the files in it, and not look around.
_DIRECTORY_MODE = 0o711

_PROTOCOLS = {cri.TCP: "tcp", cri.UDP: "udp", cri.SCTP: "sctp"}


@dataclass(frozen=True)
class SandboxRuntime:
    """What a running sandbox consists of; JSON-serialisable, stored with it."""

    namespaces: dict[str, str] = field(default_factory=dict)
    """OCI namespace type -> path of the pinned file; absent: the host's, or each container's."""
    ips: list[str] = field(default_factory=list)
    """Primary first; empty on the host's network."""
    network: dict[str, Any] = field(default_factory=dict)
    """What the provider needs for detach."""
    cgroup_parent: str = ""
    """The cgroup below which the containers go."""
    files: dict[str, str] = field(default_factory=dict)
    """"hostname", "hosts", "resolv.conf", "shm" -> path on the host."""
    init_pid: int | None = None
    """Host pid of the shared PID namespace's pid 1."""


class Sandboxes:
    """Makes, stops and removes pod sandboxes. Raises api.errors.CRIError."""

    def __init__(
        self,
        run_dir: Path,
        spawner: Spawner,
        network: Network,
        cgroups: CgroupManager,
        host: SandboxHost | None = None,
    ) -> None:
        self._directory = run_dir / "sandboxes"
        self._spawner = spawner
        self._network = network
        self._cgroups = cgroups
        self._host = host or SandboxHost()
        self._init_program: int | None = None

    async def create(self, sandbox_id: str, config: cri.PodSandboxConfig) -> SandboxRuntime:
        """Make a sandbox and attach it to the network; on failure nothing is left.

        Raises InvalidArgumentError, and InternalError for the system's faults.
        """
        plan = plan_sandbox(sandbox_id, config, self._host)
        directory = self._directory / sandbox_id
        async with contextlib.AsyncExitStack() as undo:
            self._undo_cgroup(plan, undo)
            _make_directory(directory, undo)
            undo.callback(pins.release, directory)
            undo.push_async_callback(pins.kill_init, directory)
            request = partial(_network_request, sandbox_id, config, plan, directory)
            with contextlib.closing(Making(self._spawner, plan, directory)) as making:
                made, files, network = await _all_of(
                    self._make_namespaces(making, plan, undo),
                    self._prepare(making, config, plan, directory),
                    self._attach(making, request, undo),
                )
            if made.init_status is not None:
                with stage("init"):
                    await _init_started(made.init_status)
                os.close(made.init_status)
            undo.pop_all()
        files["shm"] = f"{directory}/shm" if plan.own_ipc else "/dev/shm"
        return _runtime(plan, directory, files, made.init_pid, network)

    async def stop(
        self, sandbox_id: str, config: cri.PodSandboxConfig, runtime: SandboxRuntime
    ) -> None:
        """Detach the network, end the PID namespace, release the namespaces; idempotent.

        The addresses are free when it returns.
        """
        plan = plan_sandbox(sandbox_id, config, self._host)
        directory = self._directory / sandbox_id
        ending = [self._end_all_but_network(plan, directory)]
        if runtime.network:
            pod = _network_request(sandbox_id, config, plan, directory, None)
            ending.append(self._network.detach(pod, runtime.network))
        with stage("network"):
            results = await asyncio.gather(*ending, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        with _system_faults("release the namespaces"):
            pins.release(directory)

    async def _end_all_but_network(self, plan: SandboxPlan, directory: Path) -> None:
        """End what the pod has while CNI plugins, which take longer, detach it."""
        await pins.kill_init(directory)
        with _system_faults("release the namespaces"):
            pins.release_but_network(directory)
            if plan.init_cgroup is not None:
                await self._delete_cgroup(plan.init_cgroup)

    async def remove(self, sandbox_id: str) -> None:
        """Remove what a sandbox has, stopped or not; idempotent."""
        directory = self._directory / sandbox_id
        # Before the pins: plugins clean up more while the namespace is there.
        await self._network.discard(sandbox_id)
        await pins.kill_init(directory)
        with _system_faults("remove the sandbox"):
            pins.release(directory)
            await self._delete_cgroup(own_cgroup_of(sandbox_id, self._host.cgroup_driver))
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(directory)

    async def reconcile(self, live: Collection[str]) -> None:
        """Remove the sandboxes that are none of `live`, and the network of those without one.

        A reboot takes the namespaces: what plugins and leases still hold for them is given back,
        whenever the pod itself is removed.
        """
        try:
            found = set(os.listdir(self._directory))
        except FileNotFoundError:  # no pod since boot
            found = set()
        await asyncio.gather(*(self.remove(sandbox_id) for sandbox_id in found.difference(live)))
        pinned = [
            sandbox_id
            for sandbox_id in found.intersection(live)
            if pins.is_pinned(self._directory / sandbox_id / "ns" / "net")
        ]
        await self._network.reconcile(pinned)

    def _undo_cgroup(self, plan: SandboxPlan, undo: contextlib.AsyncExitStack) -> None:
        if plan.own_cgroup:
            undo.push_async_callback(self._delete_cgroup, plan.cgroup_parent)
        elif plan.init_cgroup is not None:
            undo.push_async_callback(self._delete_cgroup, plan.init_cgroup)

    async def _prepare(
        self, making: Making, config: cri.PodSandboxConfig, plan: SandboxPlan, directory: Path
    ) -> dict[str, str]:
        """Make the cgroup and the files, while the worker does its part."""
        with contextlib.ExitStack() as failure:
            failure.callback(making.no_cgroup)
            with stage("cgroup"), _system_faults("create the pod's cgroup"):
                await self._make_cgroup(plan)
            making.cgroup_made()
            failure.pop_all()
        with stage("files"), _system_faults("write the pod's files"):
            owner = plan.user.root() if plan.user else None
            return write_etc_files(directory, config, plan.mount_label, owner)

    async def _make_cgroup(self, plan: SandboxPlan) -> None:
        await self._off_loop(self._cgroups.create, plan.init_cgroup or plan.cgroup_parent)
        if plan.resources:
            await self._off_loop(self._cgroups.apply, plan.cgroup_parent, plan.resources)

    async def _make_namespaces(
        self, making: Making, plan: SandboxPlan, undo: contextlib.AsyncExitStack
    ) -> Made:
        with stage("namespaces"):
            made = await making.make(None if plan.init_cgroup is None else self._program())
        if made.init_status is not None:
            undo.callback(os.close, made.init_status)
        return made

    async def _attach(
        self,
        making: Making,
        request: Callable[[int], PodNetworkRequest],
        undo: contextlib.AsyncExitStack,
    ) -> NetworkResult | None:
        """Attach a pod with a network of its own; None if it has none, or its making fails.

        `request` makes the request of an rtnetlink socket.
        """
        netlink = await making.network_made()
        if netlink is None:
            return None
        try:
            pod = request(netlink)
            with stage("network"):
                network = await self._network.attach(pod)
        finally:
            os.close(netlink)
        undo.push_async_callback(self._network.detach, pod, network.state)
        return network

    async def _delete_cgroup(self, path: str) -> None:
        await self._off_loop(self._cgroups.delete, path)

    async def _off_loop(self, work: Callable[..., None], *args: Any) -> None:
        """Do in a thread what waits for systemd; what only writes files is faster without."""
        if self._host.cgroup_driver == SYSTEMD:
            await asyncio.to_thread(work, *args)
        else:
            work(*args)

    def _program(self) -> int:
        if self._init_program is None:
            self._init_program = pod_init.sealed(os.uname().machine)
        return self._init_program


async def _all_of(
    first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B], third: Coroutine[Any, Any, C]
) -> tuple[A, B, C]:
    """Run them beside each other to the end of all, and raise what went wrong.

    Of several failures the second's is raised before the first's, which may come of it.
    """
    results = await asyncio.gather(first, second, third, return_exceptions=True)
    made, prepared, attached = results
    for result in (prepared, made, attached):
        if isinstance(result, BaseException):
            raise result
    return cast(tuple[A, B, C], tuple(results))


def _make_directory(directory: Path, undo: contextlib.AsyncExitStack) -> None:
    with _system_faults("make the pod's directory"):
        directory.parent.mkdir(_DIRECTORY_MODE, parents=True, exist_ok=True)
        directory.mkdir(_DIRECTORY_MODE)
        undo.callback(shutil.rmtree, directory)


async def _init_started(status: int) -> None:
    """Wait until pid 1 runs its own program, or say why it does not."""
    failure = bytearray()
    try:
        async with asyncio.timeout(WORKER_TIMEOUT_SECONDS):
            await read_to_end(status, failure, _MAX_INIT_FAILURE)
    except TimeoutError as err:
        raise InternalError(
            f"the pod's init did not start within {WORKER_TIMEOUT_SECONDS:g} s"
        ) from err
    if failure:
        raise InternalError(f"start the pod's init: {failure.decode(errors='replace')}")


@contextlib.contextmanager
def _system_faults(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        unacceptable = isinstance(err, CgroupError) and err.is_unacceptable
        kind = InvalidArgumentError if unacceptable else InternalError
        raise kind(f"{what}: {err}") from err


def _network_request(
    sandbox_id: str,
    config: cri.PodSandboxConfig,
    plan: SandboxPlan,
    directory: Path,
    netlink: int | None,
) -> PodNetworkRequest:
    dns = None
    if config.HasField("dns_config"):
        given = config.dns_config
        dns = DNS(tuple(given.servers), tuple(given.searches), tuple(given.options))
    return PodNetworkRequest(
        sandbox_id=sandbox_id,
        name=config.metadata.name,
        namespace=config.metadata.namespace,
        uid=config.metadata.uid,
        netns=directory / "ns" / "net",
        netlink=netlink,
        port_mappings=tuple(
            PortMapping(
                _PROTOCOLS[mapping.protocol],
                mapping.container_port,
                mapping.host_port,
                mapping.host_ip,
            )
            for mapping in config.port_mappings
        ),
        annotations=dict(config.annotations),
        labels=dict(config.labels),
        cgroup_path=units.directory(plan.cgroup_parent),
        dns=dns,
    )


def _runtime(
    plan: SandboxPlan,
    directory: Path,
    files: dict[str, str],
    init_pid: int | None,
    network: NetworkResult | None,
) -> SandboxRuntime:
    kinds = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid", "user": "user"}
    pinned = set(plan.namespaces)
    if plan.init_cgroup is not None:
        pinned.add("pid")
    if plan.user is not None:
        pinned.add("user")
    return SandboxRuntime(
        namespaces={
            name: f"{directory}/ns/{kind}" for name, kind in kinds.items() if kind in pinned
        },
        ips=list(network.ips) if network else [],
        network=network.state if network else {},
        cgroup_parent=plan.cgroup_parent,
        files=files,
        init_pid=init_pid,
    )

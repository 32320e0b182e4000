"""The network of pods: one interface, two providers (cni.py, builtin.py), chosen for each pod.

A provider's `state` is JSON: it is stored with the sandbox and is all that its detach needs, so
that a pod is detached by the provider that attached it, whatever the configuration says by then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from podsandbox.network.pod_cidrs import PodCIDRs

State = dict[str, Any]

# The pod's interface, as in every CNI runtime.
INTERFACE = "eth0"


@dataclass(frozen=True)
class PortMapping:
    """A wish for a host port; `host_ip` is "" for every address of the host."""

    protocol: str  # "tcp", "udp", "sctp"
    container_port: int
    host_port: int
    host_ip: str = ""


@dataclass(frozen=True)
class DNS:
    """The pod's resolver configuration."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class PodNetworkRequest:
    """What a provider may know of a pod.

    `netns` is the pinned namespace; at detach it may be gone. `netlink` is an rtnetlink socket that
    was opened inside it; it stays the caller's, and is None at detach.
    """

    sandbox_id: str
    name: str
    namespace: str
    uid: str
    netns: Path
    netlink: int | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    cgroup_path: str = ""
    dns: DNS | None = None


@dataclass(frozen=True)
class NetworkResult:
    """An attached pod: `ips` primary first, `interfaces` the names inside the pod."""

    ips: tuple[str, ...]
    interfaces: tuple[str, ...]
    state: State


class NetworkStatus(NamedTuple):
    """The NetworkReady condition: `reason` and `message` are empty when ready."""

    ready: bool
    reason: str = ""
    message: str = ""


LINK, LEASE, HOST_PORT, ATTACHMENT = "link", "lease", "host port", "CNI attachment"


class NetworkStray(NamedTuple):
    """What the network of no pod has left; see criserver.audit.Stray."""

    kind: str
    name: str
    mark: str = ""
    owner: str = ""  # a sandbox's id


# Returns the ids of the pods that exist; asked for when the kernel has been looked at.
Alive = Callable[[], Collection[str]]

NOT_READY_REASON = "NetworkPluginNotReady"  # the kubelet knows it by this name


class Network(Protocol):
    """What gives pods their network. Raises api.errors.CRIError."""

    async def attach(self, pod: PodNetworkRequest) -> NetworkResult:
        """Give the pod interfaces and addresses, or leave nothing behind and raise."""

    async def detach(self, pod: PodNetworkRequest, state: State) -> None:
        """Take back what attach gave; idempotent, also when the namespace is gone."""

    async def discard(self, sandbox_id: str) -> None:
        """As detach, for a sandbox of which no more than the id is known; idempotent."""

    async def status(self) -> NetworkStatus:
        """Say whether a pod could be attached now."""

    async def reconcile(self, live: Collection[str]) -> None:
        """Remove what belongs to no sandbox of `live` (ids), and restore what a crash took.

        What programs do for it goes on in the background.
        """

    async def strays(self, alive: Alive) -> list[NetworkStray]:
        """Find what belongs to no pod that is alive."""

    async def remove_stray(self, kind: str, name: str) -> None:
        """Remove what `strays` has found; idempotent."""

    async def close(self) -> None:
        """End what runs in the background; the pods keep their network."""


class ConfigurableNetwork(Network, Protocol):
    """A provider that is there only when someone configured it.

    `problems`: sandbox id -> what is wrong with the network of a pod that lives.
    """

    problems: dict[str, str]

    def configured(self) -> bool:
        """Say whether a configuration exists, usable or not."""

    def configure(
        self, conf_dirs: Sequence[Path], bin_dirs: Sequence[Path], timeout: float
    ) -> None:
        """Look for it and for plugins elsewhere; `timeout` is in seconds."""


class SelectedNetwork:
    """CNI where a configuration exists at that moment, otherwise the built-in network.

    A broken configuration does not fall back: pods would get addresses nobody expects.
    """

    STRAY_KINDS = (LINK, LEASE, HOST_PORT, ATTACHMENT)

    def __init__(
        self,
        cni: ConfigurableNetwork,
        builtin: Network,
        pod_cidrs: PodCIDRs,
        *,
        fall_back: bool = True,
    ) -> None:
        """With `fall_back` off, pods wait for a CNI configuration; old ones are still detached."""
        self.pod_cidrs = pod_cidrs
        self._cni = cni
        self._builtin = builtin
        self._fall_back = fall_back

    def configure(
        self, conf_dirs: Sequence[Path], bin_dirs: Sequence[Path], timeout: float
    ) -> None:
        """Look for CNI elsewhere from now on; `timeout`, in seconds, is that of a plugin's run."""
        self._cni.configure(conf_dirs, bin_dirs, timeout)

    def _current(self) -> tuple[str, Network]:
        if self._fall_back and not self._cni.configured():
            return "builtin", self._builtin
        return "cni", self._cni

    async def attach(self, pod: PodNetworkRequest) -> NetworkResult:
        """Attach by the provider of the moment, and record which one it was."""
        name, provider = self._current()
        result = await provider.attach(pod)
        state = {"provider": name, "state": result.state}
        return NetworkResult(result.ips, result.interfaces, state)

    async def detach(self, pod: PodNetworkRequest, state: State) -> None:
        """Detach by the provider that attached; a pod without state never got that far."""
        match state.get("provider"):
            case "cni":
                await self._cni.detach(pod, state["state"])
            case "builtin":
                await self._builtin.detach(pod, state["state"])

    async def discard(self, sandbox_id: str) -> None:
        """Detach by whichever provider knows the sandbox."""
        await self._cni.discard(sandbox_id)
        await self._builtin.discard(sandbox_id)

    def provider(self) -> str:
        """Return the name of the provider that the next pod would get."""
        return self._current()[0]

    async def status(self) -> NetworkStatus:
        """Return the status of the provider that the next pod would get."""
        return await self._current()[1].status()

    def problem(self, sandbox_id: str) -> str:
        """Return what is wrong with the network of a pod that lives; "" when nothing is known."""
        return self._cni.problems.get(sandbox_id, "")

    async def reconcile(self, live: Collection[str]) -> None:
        """Reconcile both: pods of either may be live."""
        await self._cni.reconcile(live)
        await self._builtin.reconcile(live)

    async def strays(self, alive: Alive) -> list[NetworkStray]:
        """Find what either has left."""
        return [*await self._cni.strays(alive), *await self._builtin.strays(alive)]

    async def remove_stray(self, kind: str, name: str) -> None:
        """Have it removed by whose it is."""
        provider = self._cni if kind == ATTACHMENT else self._builtin
        await provider.remove_stray(kind, name)

    async def close(self) -> None:
        """Close both."""
        await self._cni.close()
        await self._builtin.close()

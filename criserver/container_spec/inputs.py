"""What a container's spec is made from: the request, the image, the sandbox, the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from api.cri import api_pb2
from criserver.host_devices import Device
from criserver.users import ResolvedUser


class Sandbox(Protocol):
    """The part of podsandbox's SandboxRuntime that a container needs."""

    @property
    def namespaces(self) -> Mapping[str, str]:
        """OCI namespace type -> path of the pinned file; absent: the host's."""

    @property
    def files(self) -> Mapping[str, str]:
        """ "hostname", "hosts", "resolv.conf", "shm" -> path on the host; absent: none made."""

    @property
    def cgroup_parent(self) -> str:
        """The pod's cgroup."""


@dataclass(frozen=True)
class HostFacts:
    """What the machine and the daemon's configuration offer; the same for all containers."""

    machine: str  # uname -m
    hostname: str
    capabilities: tuple[str, ...]  # that the daemon holds: "ALL" and privileged get no more
    cgroup_version: int  # 1 or 2
    swap: bool  # accounted per cgroup
    hugetlb: bool  # the controller is there
    devices: tuple[Device, ...] = ()  # for privileged containers
    apparmor_profile: str = ""  # the default profile, loaded; "" without AppArmor
    selinux: bool = False
    recursive_read_only: bool = True


@dataclass(frozen=True)
class ContainerSpecInput:
    """One CreateContainer with all that had to be looked up for it."""

    container_id: str
    sandbox_id: str
    config: api_pb2.ContainerConfig
    sandbox_config: api_pb2.PodSandboxConfig
    sandbox: Sandbox
    image_name: str
    image_config: Mapping[str, Any]  # the `config` object of the OCI image configuration
    user: ResolvedUser
    host: HostFacts
    devices: tuple[Device, ...] = ()  # config.devices, resolved (host_devices.requested)
    volumes: Mapping[str, str] = field(default_factory=dict)  # of anonymous_volumes() -> host path
    image_mounts: Mapping[int, Sequence[str]] = field(default_factory=dict)
    # index in config.mounts -> the lower directories of its image, top first
    seccomp_profile: Mapping[str, Any] | None = None  # of localhost_profile(), parsed
    target_pid_namespace: str = ""  # for NamespaceMode TARGET: /proc/PID/ns/pid of the target

    @property
    def context(self) -> api_pb2.LinuxContainerSecurityContext:
        """The security context; one of defaults when the request has none."""
        return self.config.linux.security_context

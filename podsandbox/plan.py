"""What a sandbox's configuration asks for, as a function of it alone."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.cri import api_pb2 as cri
from api.errors import InvalidArgumentError, UnimplementedError
from podsandbox.sysctls import sysctls_for
from podsandbox.user_namespace import UserNamespace, user_namespace_of

# Of pods that come without a cgroup parent: those of crictl, never of the kubelet. There is no
# common parent, which would be left behind by the last of them.
_OWN_CGROUP = "/criserver-"

# The kernel's __NEW_UTS_LEN.
_MAX_HOSTNAME = 64


@dataclass(frozen=True)
class SandboxPlan:
    """The host's part and the pod's part of a sandbox.

    `namespaces` are those it has of its own, of "net", "ipc" and "uts". `init_cgroup` is that of
    pid 1 of its shared PID namespace, None without one. `own_cgroup`: `cgroup_parent` was made for
    it and goes with it. `resources` are OCI linux.resources for `cgroup_parent`. `user` owns the
    namespaces; None is the host's.
    """

    namespaces: tuple[str, ...]
    hostname: str
    sysctls: Mapping[str, str]
    cgroup_parent: str
    own_cgroup: bool
    init_cgroup: str | None
    resources: Mapping[str, Any]
    user: UserNamespace | None

    @property
    def own_network(self) -> bool:
        """Say whether the pod has a network namespace of its own."""
        return "net" in self.namespaces

    @property
    def own_ipc(self) -> bool:
        """Say whether the pod has an IPC namespace, and so a /dev/shm, of its own."""
        return "ipc" in self.namespaces


def own_cgroup_of(sandbox_id: str) -> str:
    """Return the cgroup of a pod that came without a cgroup parent."""
    return _OWN_CGROUP + sandbox_id


def plan_sandbox(sandbox_id: str, config: cri.PodSandboxConfig) -> SandboxPlan:
    """Read a configuration. Raises InvalidArgumentError, UnimplementedError."""
    linux = config.linux
    options = linux.security_context.namespace_options
    _refuse_unsupported(options)
    user = user_namespace_of(options)
    namespaces = _namespaces(options)
    own_cgroup = not linux.cgroup_parent
    parent = own_cgroup_of(sandbox_id) if own_cgroup else cgroup_path(linux.cgroup_parent)
    shared_pid = options.pid == cri.POD
    return SandboxPlan(
        namespaces=namespaces,
        hostname=_hostname(config.hostname) if "uts" in namespaces else "",
        sysctls=sysctls_for(linux.sysctls, namespaces, all_ids=user is None),
        cgroup_parent=parent,
        own_cgroup=own_cgroup,
        # A leaf: on cgroup v2 the pod's own cgroup cannot hold processes beside its children.
        init_cgroup=f"{parent}/{sandbox_id}" if shared_pid else None,
        # The kubelet has set the limits of a cgroup that it made itself. What it passes here are
        # sums that leave out every container without a limit, and would be too tight.
        resources=oci_resources(linux.resources) if own_cgroup else {},
        user=user,
    )


def _refuse_unsupported(options: cri.NamespaceOption) -> None:
    if options.pid == cri.TARGET:
        raise InvalidArgumentError("PID mode TARGET is for a container, not for a sandbox")
    for name in ("network", "ipc"):
        if getattr(options, name) not in (cri.POD, cri.NODE):
            raise InvalidArgumentError(f"{name} namespace mode of a sandbox is POD or NODE")


def _namespaces(options: cri.NamespaceOption) -> tuple[str, ...]:
    # A pod on the host's network has the host's name, as in the peers.
    own = ("net", "uts") if options.network == cri.POD else ()
    return (*own, "ipc") if options.ipc == cri.POD else own


def _hostname(hostname: str) -> str:
    if len(hostname.encode()) > _MAX_HOSTNAME or any(char.isspace() for char in hostname):
        raise InvalidArgumentError(
            f"hostname {hostname[:256]!r} is not a name of at most {_MAX_HOSTNAME} bytes"
        )
    return hostname


def cgroup_path(parent: str) -> str:
    """Return a CRI cgroup_parent as an absolute path within the hierarchy."""
    if parent.endswith(".slice"):
        raise UnimplementedError(
            f"cgroup_parent {parent[:256]!r} is a systemd slice, but the cgroup driver is cgroupfs"
        )
    parts = parent.strip("/").split("/")
    if "\0" in parent or any(part in ("", ".", "..") for part in parts):
        raise InvalidArgumentError(f"cgroup_parent {parent[:256]!r} is not a path")
    return posixpath.join("/", *parts)


def oci_resources(given: cri.LinuxContainerResources) -> dict[str, Any]:
    """Return OCI linux.resources; what is 0 or "" is not asked for."""
    sections: dict[str, dict[str, Any]] = {
        "cpu": {
            "shares": given.cpu_shares,
            "quota": given.cpu_quota,
            "period": given.cpu_period,
            "cpus": given.cpuset_cpus,
            "mems": given.cpuset_mems,
        },
        "memory": {
            "limit": given.memory_limit_in_bytes,
            "swap": given.memory_swap_limit_in_bytes,
        },
        "unified": dict(given.unified),
    }
    chosen: dict[str, Any] = {
        name: {key: value for key, value in section.items() if value}
        for name, section in sections.items()
    }
    chosen["hugepageLimits"] = [
        {"pageSize": limit.page_size, "limit": limit.limit} for limit in given.hugepage_limits
    ]
    return {name: section for name, section in chosen.items() if section}

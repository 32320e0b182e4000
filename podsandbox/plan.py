"""What a sandbox's configuration asks for, as a function of it alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.cri import api_pb2 as cri
from api.errors import InvalidArgumentError
from podsandbox.cgroup_names import SYSTEMD, cgroup_path
from podsandbox.sysctls import sysctls_for
from podsandbox.user_namespace import UserNamespace, user_namespace_of
from runtimeshim.linux.cgroups import units

# Of pods that come without a cgroup parent: those of crictl, never of the kubelet. There is no
# common parent, which would be left behind by the last of them.
_OWN_CGROUP = "/criserver-{}"
_OWN_SLICE = "criserver{}.slice"  # a "-" would put it into another slice

# The kernel's __NEW_UTS_LEN.
_MAX_HOSTNAME = 64


@dataclass(frozen=True)
class SandboxHost:
    """What matters of the machine and the settings for every sandbox."""

    cgroup_driver: str = "cgroupfs"
    selinux: bool = False
    hugetlb: bool = True


@dataclass(frozen=True)
class SandboxPlan:
    """The host's part and the pod's part of a sandbox.

    `namespaces` are those it has of its own, of "net", "ipc" and "uts". `init_cgroup` is that of
    pid 1 of its shared PID namespace, None without one. `own_cgroup`: `cgroup_parent` was made for
    it and goes with it. `resources` are OCI linux.resources for `cgroup_parent`. `user` owns the
    namespaces; None is the host's. `mount_label` is the SELinux label of its files and its shared
    memory, "" without SELinux.
    """

    namespaces: tuple[str, ...]
    hostname: str
    sysctls: Mapping[str, str]
    cgroup_parent: str
    own_cgroup: bool
    init_cgroup: str | None
    resources: Mapping[str, Any]
    user: UserNamespace | None
    mount_label: str

    @property
    def own_network(self) -> bool:
        """Say whether the pod has a network namespace of its own."""
        return "net" in self.namespaces

    @property
    def own_ipc(self) -> bool:
        """Say whether the pod has an IPC namespace, and so a /dev/shm, of its own."""
        return "ipc" in self.namespaces


def own_cgroup_of(sandbox_id: str, driver: str) -> str:
    """Return the cgroup of a pod that came without a cgroup parent."""
    return (_OWN_SLICE if driver == SYSTEMD else _OWN_CGROUP).format(sandbox_id)


def plan_sandbox(
    sandbox_id: str, config: cri.PodSandboxConfig, host: SandboxHost | None = None
) -> SandboxPlan:
    """Read a configuration. Raises InvalidArgumentError."""
    host = host or SandboxHost()
    linux = config.linux
    security = linux.security_context
    options = security.namespace_options
    _check_modes(options)
    if security.HasField("run_as_group") and not security.HasField("run_as_user"):
        raise InvalidArgumentError("linux.security_context: run_as_group without run_as_user")
    user = user_namespace_of(options)
    namespaces = _namespaces(options)
    own_cgroup = not linux.cgroup_parent
    parent = (
        own_cgroup_of(sandbox_id, host.cgroup_driver)
        if own_cgroup
        else cgroup_path(linux.cgroup_parent, host.cgroup_driver)
    )
    shared_pid = options.pid == cri.POD
    return SandboxPlan(
        namespaces=namespaces,
        hostname=_hostname(config.hostname) if "uts" in namespaces else "",
        sysctls=sysctls_for(linux.sysctls, namespaces, all_ids=user is None),
        cgroup_parent=parent,
        own_cgroup=own_cgroup,
        # A leaf: on cgroup v2 the pod's own cgroup cannot hold processes beside its children.
        init_cgroup=units.child(parent, sandbox_id) if shared_pid else None,
        # The kubelet has set the limits of a cgroup that it made itself. What it passes here are
        # sums that leave out every container without a limit, and would be too tight.
        resources=oci_resources(linux.resources, linux.overhead, hugetlb=host.hugetlb)
        if own_cgroup
        else {},
        user=user,
        mount_label=_mount_label(security.selinux_options) if host.selinux else "",
    )


def _check_modes(options: cri.NamespaceOption) -> None:
    if options.pid == cri.TARGET:
        raise InvalidArgumentError("PID mode TARGET is for a container, not for a sandbox")
    for name in ("network", "ipc"):
        if getattr(options, name) not in (cri.POD, cri.NODE):
            raise InvalidArgumentError(f"{name} namespace mode of a sandbox is POD or NODE")


def _namespaces(options: cri.NamespaceOption) -> tuple[str, ...]:
    # A pod on the host's network has the host's name, as in the peers.
    own = ("net", "uts") if options.network == cri.POD else ()
    return (*own, "ipc") if options.ipc == cri.POD else own


def _mount_label(option: cri.SELinuxOption) -> str:
    """Return the label that the pod's containers can read and write, at the pod's level."""
    level = option.level or "s0"
    if any(char.isspace() or char in '\0"' for char in level):
        raise InvalidArgumentError(f"selinux_options.level {level[:256]!r} is not a level")
    return f"system_u:object_r:container_file_t:{level}"


def _hostname(hostname: str) -> str:
    malformed = " " in hostname or not hostname.isprintable()
    if len(hostname.encode()) > _MAX_HOSTNAME or malformed:
        raise InvalidArgumentError(
            f"hostname {hostname[:256]!r} is not a name of at most {_MAX_HOSTNAME} bytes"
        )
    return hostname


def oci_resources(
    given: cri.LinuxContainerResources,
    overhead: cri.LinuxContainerResources | None = None,
    *,
    hugetlb: bool = True,
) -> dict[str, Any]:
    """Return OCI linux.resources; what is 0 or "" is not asked for.

    Without `hugetlb`, the cgroup controller, there are no huge pages to limit: the kubelet sends a
    limit for each size that there could be, so that is no error.
    `overhead` is what the pod itself takes beside its containers: it comes on top of each limit.
    """
    more = overhead or cri.LinuxContainerResources()
    sections: dict[str, dict[str, Any]] = {
        "cpu": {
            "shares": _with(given.cpu_shares, more.cpu_shares),
            "quota": _with(given.cpu_quota, _scaled(more, given.cpu_period)),
            "period": given.cpu_period,
            "cpus": given.cpuset_cpus,
            "mems": given.cpuset_mems,
        },
        "memory": {
            "limit": _with(given.memory_limit_in_bytes, more.memory_limit_in_bytes),
            "swap": _with(given.memory_swap_limit_in_bytes, more.memory_limit_in_bytes),
        },
        "unified": dict(given.unified),
    }
    chosen: dict[str, Any] = {
        name: {key: value for key, value in section.items() if value}
        for name, section in sections.items()
    }
    chosen["hugepageLimits"] = [
        {"pageSize": limit.page_size, "limit": limit.limit}
        for limit in given.hugepage_limits
        if hugetlb
    ]
    return {name: section for name, section in chosen.items() if section}


def _with(limit: int, overhead: int) -> int:
    """Add the overhead to a limit; no limit (0, or -1) stays none."""
    return limit + overhead if limit > 0 else limit


def _scaled(overhead: cri.LinuxContainerResources, period: int) -> int:
    """Return the overhead's CPU quota for another period."""
    if not overhead.cpu_period or not period:
        return overhead.cpu_quota
    return overhead.cpu_quota * period // overhead.cpu_period

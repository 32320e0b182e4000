"""Which sysctls a pod may set: those that belong to a namespace of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from api.errors import InvalidArgumentError

# Values that containerd sets where the pod does not: a network namespace has its own ports and
# ICMP sockets to give, so that no privilege is needed for them.
_UNPRIVILEGED_PORTS = {"net/ipv4/ip_unprivileged_port_start": "0"}
_UNPRIVILEGED_ICMP = {"net/ipv4/ping_group_range": "0 2147483647"}

# ipc/ipc_sysctl.c
_IPC = frozenset(
    f"kernel/{name}"
    for name in (
        "msgmax",
        "msgmnb",
        "msgmni",
        "sem",
        "shmall",
        "shmmax",
        "shmmni",
        "shm_rmid_forced",
    )
)
_MQUEUE = "fs/mqueue/"  # ipc/mq_sysctl.c
_NET = "net/"
# The hostname has a field of its own; the (NIS) domain name has not.
_DOMAINNAME = "kernel/domainname"


def sysctls_for(
    wanted: Mapping[str, str], namespaces: Collection[str], *, all_ids: bool = True
) -> dict[str, str]:
    """Return path below /proc/sys -> value, the defaults included.

    `namespaces` are the pod's own, of "net", "ipc" and "uts". Without `all_ids` a user namespace
    has not all the groups that the default gives ICMP sockets to, and the kernel would refuse it.
    Raises InvalidArgumentError for a sysctl that is not namespaced, or whose namespace is the
    host's.
    """
    chosen: dict[str, str] = {}
    if "net" in namespaces:
        chosen |= _UNPRIVILEGED_PORTS | (_UNPRIVILEGED_ICMP if all_ids else {})
    for name, value in wanted.items():
        path = path_of(name)
        kind = _namespace_of(path)
        if kind is None:
            raise InvalidArgumentError(f"sysctl {name!r} does not belong to a pod's namespaces")
        if kind not in namespaces:
            raise InvalidArgumentError(
                f"sysctl {name!r} cannot be set: the pod has the host's {kind} namespace"
            )
        if "\0" in value:
            raise InvalidArgumentError(f"the value of sysctl {name!r} contains a NUL byte")
        chosen[path] = value
    return chosen


def path_of(name: str) -> str:
    """Return a sysctl's path below /proc/sys, for both ways of writing its name.

    Whichever of "." and "/" comes first is the separator, the other one then stands for itself
    (man 5 sysctl.d): net.ipv4.conf.eth0/1.forwarding is net/ipv4/conf/eth0.1/forwarding.
    """
    separators = [char for char in name if char in "./"]
    path = name
    if separators and separators[0] == ".":
        path = name.translate(str.maketrans("./", "/."))
    if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise InvalidArgumentError(f"sysctl name {name[:256]!r} is malformed")
    return path


def _namespace_of(path: str) -> str | None:
    if path.startswith(_NET):
        return "net"
    if path in _IPC or path.startswith(_MQUEUE):
        return "ipc"
    if path == _DOMAINNAME:
        return "uts"
    return None

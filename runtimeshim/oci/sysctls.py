"""linux.sysctl: which kernel parameters a container may set, and how they are written.

Only what belongs to one of the container's own namespaces: anything else would change the host
(CVE-2022-0811 began with a value that was taken for another setting).
"""

from __future__ import annotations

import os

from runtimeshim.linux import mounts as m
from runtimeshim.linux import syscalls
from runtimeshim.oci import resolve
from runtimeshim.oci.schema import Wrong, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

IPC = frozenset(
    {
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "kernel/shm_rmid_forced",
    }
)


def path(name: str) -> str:
    """Return the path below /proc/sys of a name with dots or with slashes (man 8 sysctl).

    The separator that comes first is the one; the other stands for a dot within a component, as
    in the name of a network interface. Raises Wrong.
    """
    first = min((name.find(each) for each in "./" if each in name), default=-1)
    if first >= 0 and name[first] == ".":
        found = name.translate({ord("."): "/", ord("/"): "."})
    else:
        found = name
    if {"", ".", ".."} & set(found.split("/")):
        raise Wrong(f"{quote(name)} is no name of a kernel parameter", "linux.sysctl")
    return found


def check(sysctls: Mapping[str, str], namespaces: Mapping[str, str]) -> None:
    """Refuse what is not in a namespace of the container's; `namespaces` are paths by type.

    A network or IPC namespace given by path must not be the host's. Raises Wrong.
    """
    for name in sysctls:
        needed = _namespace(path(name))
        if needed is None:
            raise Wrong(f"{quote(name)} is not in a namespace of its own", "linux.sysctl")
        if needed not in namespaces or _is_own(needed, namespaces[needed]):
            raise Wrong(
                f"{quote(name)} needs a {needed} namespace beside the host's", "linux.sysctl"
            )


def _namespace(found: str) -> str | None:
    """Return the type of namespace that a parameter belongs to, None for none."""
    if found in IPC or found.startswith("fs/mqueue/"):
        return "ipc"
    if found.startswith("net/"):
        return "network"
    if found == "kernel/domainname":  # hostname has a field of its own
        return "uts"
    if found.startswith("user/"):
        return "user"
    return None


_FILES = {"network": "net", "ipc": "ipc", "uts": "uts", "user": "user"}


def _is_own(kind: str, given: str) -> bool:
    """Tell whether a namespace given by path is the one that we are in."""
    if not given:
        return False
    try:
        found, own = os.stat(given), os.stat(f"/proc/self/ns/{_FILES[kind]}")
    except OSError:
        return False  # its path is opened next, and refused there
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def write(sysctls: Mapping[str, str]) -> None:
    """Write them through a procfs that only we can see.

    The container's own /proc is no place to write from: an image could have put something else
    there (CVE-2019-16884, CVE-2025-52881).
    """
    if not sysctls:
        return
    proc = m.new_mount("proc", [("source", "proc")])
    try:
        for name, value in sysctls.items():
            fd = syscalls.openat2(proc, f"sys/{path(name)}", os.O_WRONLY, resolve.ONE_STEP)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
    finally:
        os.close(proc)

"""Control groups: creating, limiting, joining, killing and removing them, on v1, hybrid and v2."""

from __future__ import annotations

import errno
import os

from runtimeshim.linux.cgroups.base import CgroupManager, OomWatch
from runtimeshim.linux.cgroups.files import PROCS, CgroupError

__all__ = ["CgroupError", "CgroupManager", "OomWatch", "hierarchy", "manager"]

ROOT = "/sys/fs/cgroup"

# Where systemd mounts the version 2 hierarchy of a hybrid machine.
UNIFIED = "unified"

_hierarchy: CgroupManager | None = None


def hierarchy() -> CgroupManager:
    """Return this machine's cgroups, looked for once: forks inherit the answer."""
    global _hierarchy
    if _hierarchy is None:
        _hierarchy = manager()
    return _hierarchy


def manager(root: str = ROOT) -> CgroupManager:
    """Find out which cgroup version is mounted at `root` and return its manager.

    On version 2 it takes paths of systemd's units too (runtimeshim.linux.cgroups.units): containers
    of both drivers can be on one machine, as after a change of the setting.

    A hybrid machine counts as version 1, as in the kubelet and containerd: the limits live in the
    v1 hierarchies. Its v2 tree is not used: joining it costs more than all others together. The
    code of the other version is never imported.
    """
    if os.path.exists(f"{root}/cgroup.controllers"):
        from runtimeshim.linux.cgroups.systemd import UnitManager
        from runtimeshim.linux.cgroups.v2 import V2Manager

        return UnitManager(V2Manager(root))
    from runtimeshim.linux.cgroups.v1 import Hierarchy, V1Manager

    hierarchies, links = _v1_hierarchies(root)
    if not hierarchies:
        raise CgroupError(errno.ENODEV, "no cgroup hierarchy is mounted", root)
    unified = f"{root}/{UNIFIED}"
    mounted = [Hierarchy(name, f"{root}/{name}") for name in hierarchies]
    return V1Manager(mounted, links, unified if os.path.isdir(unified) else None)


def _v1_hierarchies(root: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the hierarchies below `root`, and the (link, target) of controllers mounted together.

    systemd mounts e.g. "cpu,cpuacct" and makes the links "cpu" and "cpuacct" to it.
    """
    hierarchies: list[str] = []
    links: list[tuple[str, str]] = []
    try:
        names = sorted(os.listdir(root))
    except OSError as err:
        raise CgroupError(err.errno or errno.EIO, "cannot list cgroup hierarchies", root) from err
    for name in names:
        directory = f"{root}/{name}"
        if os.path.islink(directory):
            links.append((name, os.readlink(directory)))
        elif _is_v1(directory):
            hierarchies.append(name)
    return hierarchies, links


def _is_v1(directory: str) -> bool:
    return os.path.exists(f"{directory}/{PROCS}") and not os.path.exists(
        f"{directory}/cgroup.controllers"
    )

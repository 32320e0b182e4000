"""Where a pod's cgroup is: the CRI's cgroup_parent as a path, for both cgroup drivers."""

from __future__ import annotations

import posixpath

from api.errors import InvalidArgumentError
from runtimeshim.linux.cgroups import CgroupError, units

SYSTEMD = "systemd"


def cgroup_path(parent: str, driver: str = "cgroupfs") -> str:
    """Return a cgroup_parent as runtimeshim.linux.cgroups takes it.

    Under the driver "systemd" it is the name of a slice, alone or with the slices around it, and
    stays a name; under "cgroupfs" an absolute path within the hierarchy. The kubelet's driver and
    ours must be the same: the wrong kind of name is an InvalidArgumentError.
    """
    is_slice = parent.endswith(units.SLICE)
    if driver == SYSTEMD:
        if not is_slice:
            raise _invalid(parent, "is no slice, but the cgroup driver is systemd")
        return _slice(parent)
    if is_slice:
        raise _invalid(parent, "is a systemd slice, but the cgroup driver is cgroupfs")
    parts = parent.strip("/").split("/")
    if "\0" in parent or any(part in ("", ".", "..") for part in parts):
        raise _invalid(parent, "is not a path")
    return posixpath.join("/", *parts)


def _slice(parent: str) -> str:
    name = posixpath.basename(parent)
    try:
        units.parse(name)
    except CgroupError as err:
        raise _invalid(parent, "is not the name of a slice") from err
    return name


def _invalid(parent: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"cgroup_parent {parent[:256]!r} {why}")

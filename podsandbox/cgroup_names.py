"""Where a pod's cgroup is: the CRI's cgroup_parent as a path, for both cgroup drivers."""

from __future__ import annotations

import posixpath

from api.errors import InvalidArgumentError

_SLICE = ".slice"


def cgroup_path(parent: str, driver: str = "cgroupfs") -> str:
    """Return a cgroup_parent as an absolute path within the hierarchy.

    Under the driver "systemd" it is the name of a slice, under "cgroupfs" a path. The kubelet's
    driver and ours must be the same: the wrong kind of name is an InvalidArgumentError.
    """
    is_slice = parent.endswith(_SLICE)
    if driver == "systemd":
        if not is_slice:
            raise _invalid(parent, "is no slice, but the cgroup driver is systemd")
        return slice_path(posixpath.basename(parent))
    if is_slice:
        raise _invalid(parent, "is a systemd slice, but the cgroup driver is cgroupfs")
    parts = parent.strip("/").split("/")
    if "\0" in parent or any(part in ("", ".", "..") for part in parts):
        raise _invalid(parent, "is not a path")
    return posixpath.join("/", *parts)


def slice_path(name: str) -> str:
    """Return where systemd puts a slice: below the slices that its name is made of.

    kubepods-burstable-pod1.slice is in /kubepods.slice/kubepods-burstable.slice; "-.slice" is the
    root (man 5 systemd.slice).
    """
    stem = name.removesuffix(_SLICE)
    if stem == "-":
        return "/"
    parts = stem.split("-")
    if "\0" in name or "/" in name or any(part in ("", ".", "..") for part in parts):
        raise _invalid(name, "is not the name of a slice")
    slices = ["-".join(parts[: n + 1]) + _SLICE for n in range(len(parts))]
    return posixpath.join("/", *slices)


def _invalid(parent: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"cgroup_parent {parent[:256]!r} {why}")

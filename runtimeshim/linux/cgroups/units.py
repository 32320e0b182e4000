"""Units of systemd for cgroups, by their names (man 5 systemd.slice, systemd.scope).

The path of a unit is "a-b.slice" or, for a scope in it, "a-b.slice:PREFIX:NAME", as in runc. Paths
of a cgroup filesystem look different: they begin with "/".
"""

from __future__ import annotations

import errno

from runtimeshim.linux.cgroups.files import CgroupError

SLICE, SCOPE = ".slice", ".scope"
SCOPE_PREFIX = "cri-criserver"
ROOT_SLICE = "-.slice"
MAX_NAME = 255  # of a unit (UNIT_NAME_MAX), and of a directory

_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.\\")


class Unit:
    """A slice, or a scope in a slice."""

    __slots__ = ("scope", "slice")

    def __init__(self, slice: str, scope: str = "") -> None:
        self.slice = slice
        self.scope = scope

    @property
    def name(self) -> str:
        """The name that systemd knows it by."""
        return self.scope or self.slice

    def path(self) -> str:
        """Return its path in the cgroup hierarchy: "a-b.slice" is /a.slice/a-b.slice."""
        return "/".join(["", *ancestry(self.slice), *([self.scope] if self.scope else [])])


def is_unit(path: str) -> bool:
    """Tell whether a path names a unit rather than a directory."""
    return not path.startswith("/")


def parse(path: str) -> Unit:
    """Return the unit that a path names. Raises CgroupError."""
    parts = path.split(":")
    if len(parts) == 1:
        return Unit(_checked_slice(path, path))
    if len(parts) != 3:
        raise _wrong(path, 'it has to be of the form "slice:prefix:name"')
    slice_, prefix, name = parts
    slice_ = _checked_slice(slice_ or "system.slice", path)
    if name.endswith(SLICE):
        return Unit(_checked_slice(name, path))
    scope = f"{prefix}-{name}{SCOPE}" if prefix else f"{name}{SCOPE}"
    if not name or not _is_name(scope) or len(scope) > MAX_NAME:
        raise _wrong(path, f"{scope!r} is no name of a unit")
    return Unit(slice_, scope)


def directory(path: str) -> str:
    """Return a path in the cgroup hierarchy, of a unit's path or of one that is one already."""
    return parse(path).path() if is_unit(path) else path


def child(parent: str, name: str) -> str:
    """Return the path of a cgroup `name` below a pod's, whichever kind that is.

    The kubelet's statistics know a container by what follows the last "-" of a scope's name.
    """
    return f"{parent}:{SCOPE_PREFIX}:{name}" if is_unit(parent) else f"{parent}/{name}"


def ancestry(slice_: str) -> list[str]:
    """Return a slice with those that it is in, the outermost first; none for the root slice."""
    if slice_ == ROOT_SLICE:
        return []
    parts = slice_.removesuffix(SLICE).split("-")
    return ["-".join(parts[: index + 1]) + SLICE for index in range(len(parts))]


def _checked_slice(name: str, path: str) -> str:
    stem = name.removesuffix(SLICE)
    valid = name == ROOT_SLICE or (name.endswith(SLICE) and _is_name(stem))
    if not valid or len(name) > MAX_NAME:
        raise _wrong(path, f"{name!r} is no name of a slice")
    return name


def _is_name(stem: str) -> bool:
    """Tell whether units may be called so: "-" divides what has characters of its own."""
    return all(part and _CHARACTERS.issuperset(part) for part in stem.split("-"))


def _wrong(path: str, why: str) -> CgroupError:
    return CgroupError(errno.EINVAL, f"cgroup path {path!r} names no unit of systemd: {why}")

"""Namespaces of a spec: which to enter, which to make (runtime-spec, config-linux.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from runtimeshim.linux import syscalls
from runtimeshim.oci.errors import SpecError

FLAGS = {
    "pid": syscalls.CLONE_NEWPID,
    "network": syscalls.CLONE_NEWNET,
    "mount": syscalls.CLONE_NEWNS,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
}
_NOT_YET = frozenset({"user", "time"})

# What exec joins of a container's init: everything, since setns to one's own is no change.
ALL = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWCGROUP
)


class Namespaces:
    """The namespaces of one container, with those to enter already open."""

    __slots__ = ("entered", "made", "pid_fd", "pid_new")

    def __init__(self, listed: Sequence[Mapping[str, Any]]) -> None:
        """Open what is given by path. Raises SpecError, or OSError for a path."""
        self.made = 0
        self.entered: list[tuple[int, int]] = []
        self.pid_fd: int | None = None
        self.pid_new = False
        for number, namespace in enumerate(listed):
            self._add(namespace, f"linux.namespaces[{number}]")

    def _add(self, namespace: Mapping[str, Any], field: str) -> None:
        kind, path = namespace["type"], namespace.get("path")
        if kind in _NOT_YET:
            raise SpecError(f"{field}.type: {kind!r} is not supported yet")
        if kind not in FLAGS:
            raise SpecError(f"{field}.type: {kind!r} is none of {', '.join(FLAGS)}")
        if kind == "mount":
            if path:
                raise SpecError(f"{field}.path: a container has a mount namespace of its own")
            return  # always made, with the root filesystem
        if path is None or path == "":
            self.pid_new = self.pid_new or kind == "pid"
            self.made |= 0 if kind == "pid" else FLAGS[kind]
            return
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if kind == "pid":
            self.pid_fd = fd
        else:
            self.entered.append((fd, FLAGS[kind]))

    def enter(self) -> None:
        """Enter the given ones, then make the others; the caller has joined its cgroup."""
        for fd, flag in self.entered:
            syscalls.setns(fd, flag)
        if self.made:
            syscalls.unshare(self.made)
        self.close()

    def fork(self) -> int:
        """Fork a child into the PID namespace; its children's one stays as it was for us."""
        if self.pid_fd is None and not self.pid_new:
            return os.fork()
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if self.pid_fd is not None:
                syscalls.setns(self.pid_fd, syscalls.CLONE_NEWPID)
            else:
                syscalls.unshare(syscalls.CLONE_NEWPID)
            pid = os.fork()
            if pid != 0:
                syscalls.setns(own, syscalls.CLONE_NEWPID)
        finally:
            os.close(own)
        return pid

    def close(self) -> None:
        """Close the open namespaces."""
        for fd, _ in self.entered:
            os.close(fd)
        self.entered.clear()
        if self.pid_fd is not None:
            os.close(self.pid_fd)
            self.pid_fd = None

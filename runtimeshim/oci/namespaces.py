"""Namespaces of a spec: which to enter, which to make (runtime-spec, config-linux.md)."""

from __future__ import annotations

import errno
import os

from runtimeshim.linux import syscalls, userns
from runtimeshim.oci.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

FLAGS = {
    "pid": syscalls.CLONE_NEWPID,
    "network": syscalls.CLONE_NEWNET,
    "mount": syscalls.CLONE_NEWNS,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "user": syscalls.CLONE_NEWUSER,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "time": syscalls.CLONE_NEWTIME,
}

# These take a process's children, never itself (man 2 unshare).
_OF_CHILDREN = {syscalls.CLONE_NEWPID: "pid", syscalls.CLONE_NEWTIME: "time"}

_NEWPID = syscalls.CLONE_NEWPID

# What exec joins of a container's init: everything, since setns to one's own is no change. But
# for the user namespace, where it is an error.
ALL = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWCGROUP
    # A kernel without time namespaces takes no such flag.
    | (syscalls.CLONE_NEWTIME if os.path.exists("/proc/self/ns/time") else 0)
)


class Namespaces:
    """The namespaces of one container, with those to enter already open."""

    __slots__ = ("entered", "made", "pid_fd", "pid_new", "time_fd", "time_offsets", "user_fd")

    def __init__(
        self, listed: Sequence[Mapping[str, Any]], linux: Mapping[str, Any] | None = None
    ) -> None:
        """Open what is given by path; make the user namespace, by the maps in `linux`.

        Raises SpecError, or OSError for a path or the maps.
        """
        self.made = 0
        self.entered: list[tuple[int, int]] = []
        self.pid_fd: int | None = None
        self.pid_new = False
        self.time_fd: int | None = None
        self.time_offsets: Mapping[str, Any] | None = None  # of a new time namespace
        self.user_fd: int | None = None
        try:
            for number, namespace in enumerate(listed):
                self._add(namespace, f"linux.namespaces[{number}]", linux or {})
        except BaseException:
            self.close()
            raise

    def _add(self, namespace: Mapping[str, Any], field: str, linux: Mapping[str, Any]) -> None:
        kind, path = namespace["type"], namespace.get("path")
        if kind not in FLAGS:
            raise SpecError(f"{field}.type: {kind!r} is none of {', '.join(FLAGS)}")
        if kind == "mount" and path:
            raise SpecError(f"{field}.path: a container has a mount namespace of its own")
        if path is None or path == "":
            self._make(kind, linux)
            return
        fd = _open(path, field)
        if kind == "pid":
            self.pid_fd = fd
        elif kind == "time":
            self.time_fd = fd
        elif kind == "user":
            self.user_fd = fd
        else:
            self.entered.append((fd, FLAGS[kind]))

    def _make(self, kind: str, linux: Mapping[str, Any]) -> None:
        if kind == "pid":
            self.pid_new = True
        elif kind == "time":
            self.time_offsets = linux.get("timeOffsets") or {}
        elif kind == "user":
            self.user_fd = userns.create(linux["uidMappings"], linux["gidMappings"])
        elif kind != "mount":  # always made, with the root filesystem
            self.made |= FLAGS[kind]

    def enter(self) -> None:
        """Enter the given ones, then make the others; the caller has joined its cgroup."""
        for fd, flag in self.entered:
            syscalls.setns(fd, flag)
        if self.made:
            syscalls.unshare(self.made)
        self.close()

    def plain(self) -> bool:
        """Tell whether a child that stands by in a new PID namespace will do for them."""
        return self.pid_new and self.user_fd is None and self._flags_of_children() == [_NEWPID]

    def fork(self, cgroup: int | None = None) -> int:
        """Fork a child into the PID and time namespaces; our own children's stay as they were.

        Not with a user namespace: the child enters that first, and forks again. `cgroup` is the fd
        of one of version 2's directories, where the child is to begin.
        """
        if self.user_fd is not None or not self._flags_of_children():
            return _fork(cgroup)
        own = [
            (os.open(f"/proc/self/ns/{_OF_CHILDREN[flag]}", os.O_RDONLY | os.O_CLOEXEC), flag)
            for flag in self._flags_of_children()
        ]
        pid = -1
        try:
            self._enter_for_children()
            pid = _fork(cgroup)
        finally:
            for fd, flag in own:
                if pid != 0:
                    syscalls.setns(fd, flag)
                os.close(fd)
        return pid

    def _flags_of_children(self) -> list[int]:
        flags = []
        if self.pid_new or self.pid_fd is not None:
            flags.append(syscalls.CLONE_NEWPID)
        if self.time_fd is not None or self.time_offsets is not None:
            flags.append(syscalls.CLONE_NEWTIME)
        return flags

    def _enter_for_children(self) -> None:
        self._enter_time()
        if self.pid_fd is not None:
            # The child is seen from inside at once: it is to be closed to them from its birth on
            # (CVE-2016-9962), and it has that from us.
            syscalls.set_not_dumpable()
            syscalls.setns(self.pid_fd, syscalls.CLONE_NEWPID)
        elif self.pid_new:
            syscalls.unshare(syscalls.CLONE_NEWPID)

    def _enter_time(self) -> None:
        if self.time_fd is not None:
            syscalls.setns(self.time_fd, syscalls.CLONE_NEWTIME)
        elif self.time_offsets is not None:
            syscalls.unshare(syscalls.CLONE_NEWTIME)
            _write_time_offsets(self.time_offsets)

    def enter_user(self) -> None:
        """Enter the user namespace, as its root, and what is given; the rest is made in it.

        What was made before would belong to the host: its network could not be configured from
        inside. The given ones come first, while we may still enter them.
        """
        assert self.user_fd is not None
        for fd, flag in self.entered:
            syscalls.setns(fd, flag)
            os.close(fd)
        self.entered.clear()
        self._enter_time()
        if self.pid_fd is not None:
            syscalls.setns(self.pid_fd, syscalls.CLONE_NEWPID)
        syscalls.setns(self.user_fd, syscalls.CLONE_NEWUSER)
        userns.become_root()
        if self.pid_new:
            syscalls.unshare(syscalls.CLONE_NEWPID)

    def close(self) -> None:
        """Close the open namespaces."""
        for fd, _ in self.entered:
            os.close(fd)
        self.entered.clear()
        for single in (self.pid_fd, self.time_fd, self.user_fd):
            if single is not None:
                os.close(single)
        self.pid_fd = self.time_fd = self.user_fd = None


def _open(path: str, field: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as err:
        raise OSError(err.errno, f"{field}.path: {path}: {err.strerror}") from err


def _write_time_offsets(offsets: Mapping[str, Any]) -> None:
    """Write man 7 time_namespaces, /proc/PID/timens_offsets: before the first child is in it."""
    lines = [
        f"{clock} {offset.get('secs') or 0} {offset.get('nanosecs') or 0}"
        for clock, offset in offsets.items()
    ]
    if not lines:
        return
    fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, "\n".join(lines).encode())
    except OSError as err:
        raise OSError(err.errno, f"linux.timeOffsets: {lines}: {err.strerror}") from err
    finally:
        os.close(fd)


def join_all(pidfd: int) -> None:
    """Enter all namespaces of a process but its PID namespace, with the ids of its root.

    A user namespace that is our own already is the one case of EINVAL (man 2 setns).
    """
    try:
        syscalls.setns(pidfd, ALL | syscalls.CLONE_NEWUSER)
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        syscalls.setns(pidfd, ALL)
    else:
        userns.become_root()


def _fork(cgroup: int | None) -> int:
    return os.fork() if cgroup is None else syscalls.fork_into_cgroup(cgroup)

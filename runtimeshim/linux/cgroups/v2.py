"""Cgroup version 2: one hierarchy for all controllers."""

from __future__ import annotations

import errno
import os

from runtimeshim.linux.cgroups import files, v2_limits
from runtimeshim.linux.cgroups import resources as oci
from runtimeshim.linux.cgroups.base import CgroupManager, OomWatch
from runtimeshim.linux.cgroups.files import CgroupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# Controllers that a container's limits need; others (misc, dmem, …) stay as the host has them.
USED = ("cpu", "cpuset", "io", "memory", "pids", "hugetlb", "rdma")


class V2Manager(CgroupManager):
    """The unified hierarchy mounted at `root`."""

    version = 2

    def __init__(self, root: str) -> None:
        self._root = root
        available = files.read(f"{root}/cgroup.controllers").split()
        self.controllers = frozenset(available) | {"devices"}
        self._enable = [name for name in USED if name in available]
        # memory.swap.max is missing in the root cgroup, so the kernel's list of swaps decides.
        self.swap = "memory" in available and os.path.exists("/proc/swaps")

    def create(self, path: str) -> None:
        """See CgroupManager. The controllers are enabled in every ancestor."""
        path = files.checked(path)
        made = files.make(self._root, path)
        try:
            self._enable_controllers(path)
        except BaseException:
            files.remove_made(made)
            raise

    def _enable_controllers(self, path: str) -> None:
        ancestor = self._root
        for part in path.split("/")[1:]:
            _enable(ancestor, self._enable)
            ancestor = f"{ancestor}/{part}"

    def apply(self, path: str, resources: Mapping[str, object]) -> None:
        """See CgroupManager."""
        directory = self._root + files.checked(path)
        oci.refuse(resources, v2_limits.UNSUPPORTED, "is not supported on cgroup v2")
        for limit in v2_limits.LIMITS:
            if not limit.wanted(resources):
                continue
            if limit.controller not in self.controllers:
                raise CgroupError(
                    errno.ENOENT,
                    f"linux.resources.{limit.field} needs the {limit.controller} controller, "
                    "which this machine does not have on cgroup v2",
                )
            limit.apply(directory, resources)
        v2_limits.unified(directory, resources)

    def join(self, path: str, pid: int) -> None:
        """See CgroupManager."""
        files.write(f"{self._root}{files.checked(path)}/{files.PROCS}", str(pid))

    def join_own(self, path: str, name: str, init: int) -> str:
        """See CgroupManager. A child is refused to a threaded cgroup, and by cgroup.max.*."""
        path = files.checked(path)
        own = f"{path}/{name}"
        try:
            os.mkdir(self._root + own, 0o755)
            self.join(own, 0)
        except OSError:
            files.remove_if_empty(self._root + own)
        else:
            return own
        self.join_beside(path, init)
        return ""

    def open_own(self, path: str, name: str) -> tuple[str, int] | None:
        """See CgroupManager."""
        own = f"{files.checked(path)}/{name}"
        try:
            os.mkdir(self._root + own, 0o755)
            return own, os.open(self._root + own, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # as in join_own, which finds another way
            files.remove_if_empty(self._root + own)
            return None

    def _of(self, pid: int) -> str:
        """Return the cgroup of a process (man 7 cgroups, /proc/PID/cgroup)."""
        lines = files.read(f"/proc/{pid}/cgroup").splitlines()
        return next(line[3:] for line in lines if line.startswith("0::"))

    def remove_empty(self, path: str) -> bool:
        """See CgroupManager."""
        return files.remove_if_empty(self._root + files.checked_leaf(path))

    def join_beside(self, path: str, init: int) -> None:
        """See CgroupManager."""
        try:
            self.join(path, 0)
        except CgroupError as err:
            own = self._of(init)
            if err.errno != errno.EBUSY or not own.startswith(f"{files.checked(path)}/"):
                raise
            self.join(own, 0)

    def pids(self, path: str) -> list[int]:
        """See CgroupManager."""
        return files.pids(self._root + files.checked(path))

    def kill(self, path: str) -> None:
        """See CgroupManager. Kernels before 5.14 lack cgroup.kill: they are killed one by one."""
        directory = self._root + files.checked_leaf(path)
        try:
            files.write(f"{directory}/cgroup.kill", "1")
        except CgroupError as err:
            if err.errno == errno.ENODEV:  # removed meanwhile
                return
            if err.errno != errno.ENOENT:
                raise
            files.kill_until_empty(directory)

    def freeze(self, path: str) -> None:
        """See CgroupManager."""
        directory = self._root + files.checked_leaf(path)
        files.write(f"{directory}/cgroup.freeze", "1")
        events = f"{directory}/cgroup.events"
        try:
            files.await_frozen(directory, lambda: files.counter(events, "frozen") == 1)
        except CgroupError:
            files.write(f"{directory}/cgroup.freeze", "0")
            raise

    def thaw(self, path: str) -> None:
        """See CgroupManager."""
        files.write(f"{self._root}{files.checked_leaf(path)}/cgroup.freeze", "0")

    def is_frozen(self, path: str) -> bool:
        """See CgroupManager."""
        try:
            return files.read(f"{self._root}{files.checked_leaf(path)}/cgroup.freeze") == "1"
        except CgroupError as err:
            if err.errno in (errno.ENOENT, errno.ENODEV):  # gone, and nobody in it
                return False
            raise

    def watch_oom(self, path: str) -> OomWatch | None:
        """See CgroupManager. The file notifies its pollers (cgroup-v2.rst, memory.events)."""
        file = f"{self._root}{files.checked(path)}/memory.events"
        try:
            watch = OomWatch(os.open(file, os.O_RDONLY | os.O_CLOEXEC), eventfd=False)
        except OSError:  # the cgroup has gone, or has no memory controller
            return None
        watch.clear()
        return watch

    def oom_kills(self, path: str) -> int:
        """See CgroupManager. The v2 counter includes the descendants."""
        return files.counter(f"{self._root}{files.checked(path)}/memory.events", "oom_kill")

    def delete(self, path: str) -> None:
        """See CgroupManager."""
        files.remove(self._root + files.checked_leaf(path))

    def mounts(self) -> list[tuple[str, str, str]]:
        """See CgroupManager."""
        return [("", "cgroup2", "")]

    def directories(self, path: str) -> list[tuple[str, str]]:
        """See CgroupManager."""
        return [("", self._root + files.checked(path))]


def _enable(directory: str, controllers: list[str]) -> None:
    """Enable the controllers for the children of a cgroup, as far as it has them.

    One that the kernel refuses (a cgroup with processes of its own, a controller not delegated)
    must not keep the others out. It is missed only by a container that sets a limit of it, and
    that error names the file.
    """
    file = f"{directory}/cgroup.subtree_control"
    present = files.read(file).split()
    missing = [f"+{name}" for name in controllers if name not in present]
    if not missing:
        return
    try:
        files.write(file, " ".join(missing))
    except CgroupError:
        for name in missing:
            try:
                files.write(file, name)
            except CgroupError:
                continue

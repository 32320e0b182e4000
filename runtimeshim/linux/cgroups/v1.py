"""Cgroup version 1: one hierarchy per controller."""

from __future__ import annotations

import errno
import os
import time

from runtimeshim.linux.cgroups import files, v1_limits
from runtimeshim.linux.cgroups import resources as oci
from runtimeshim.linux.cgroups.base import CgroupManager, OomWatch
from runtimeshim.linux.cgroups.files import CgroupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# A frozen cgroup cannot fork, so one pass kills all of it. A process in an uninterruptible sleep
# does not freeze: after 100 ms the kill goes on without it.
FREEZE_POLLS = 1000
FREEZE_DELAY = 0.0001

TASKS = "tasks"
FREEZER_STATE = "freezer.state"

# What a control file answers whose cgroup has been removed meanwhile.
GONE = (errno.ENOENT, errno.ENODEV)

CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")


class Hierarchy:
    """One mounted hierarchy: the name of its directory, which lists its controllers."""

    __slots__ = ("directory", "name")

    def __init__(self, name: str, directory: str) -> None:
        self.name = name
        self.directory = directory

    def mount_options(self) -> str:
        """Return the options that mount this hierarchy again; systemd's has no controller."""
        return "none,name=systemd" if self.name == "systemd" else self.name


class V1Manager(CgroupManager):
    """All v1 hierarchies, including the named one of systemd, are created and joined alike."""

    version = 1

    def __init__(
        self,
        hierarchies: Sequence[Hierarchy],
        links: Sequence[tuple[str, str]] = (),
        unified: str | None = None,
    ) -> None:
        self._unified = unified  # the v2 hierarchy of a hybrid machine: runc uses it, we do not
        self._hierarchies = tuple(hierarchies)
        self._links = tuple(links)
        self._by_controller = {
            controller: hierarchy.directory
            for hierarchy in hierarchies
            for controller in hierarchy.name.split(",")
        }
        self.controllers = frozenset(self._by_controller) - {"systemd"}
        memory = self._by_controller.get("memory")
        self.swap = memory is not None and os.path.exists(f"{memory}/{v1_limits.SWAP_LIMIT}")
        # A listing is asked of the freezer's hierarchy, because a kill freezes before it lists.
        self._listed = self._by_controller.get("freezer", self._hierarchies[0].directory)

    def create(self, path: str) -> None:
        """See CgroupManager. An empty cpuset is given its parent's: nobody could join it."""
        path = files.checked(path)
        made: list[str] = []
        try:
            for hierarchy in self._hierarchies:
                made += files.make(hierarchy.directory, path)
            if "cpuset" in self._by_controller:
                _inherit_cpuset(self._by_controller["cpuset"], path)
        except BaseException:
            files.remove_made(made)
            raise

    def apply(self, path: str, resources: Mapping[str, object]) -> None:
        """See CgroupManager."""
        path = files.checked(path)
        oci.refuse(resources, v1_limits.UNSUPPORTED, "is not supported on cgroup v1")
        for limit in v1_limits.LIMITS:
            if not limit.wanted(resources):
                continue
            root = self._by_controller.get(limit.controller)
            if root is None:
                raise CgroupError(
                    errno.ENOENT,
                    f"linux.resources.{limit.field} needs the {limit.controller} controller, "
                    "which this machine has not mounted",
                )
            limit.apply(root + path, resources)

    def join(self, path: str, pid: int) -> None:
        """See CgroupManager.

        A thread that moves itself alone does so without the kernel's global lock, which costs the
        first to take it an RCU grace period: 6 to 15 ms (kernel/cgroup/cgroup.c,
        cgroup_procs_write_start).
        """
        path = files.checked(path)
        file = TASKS if pid == 0 and _is_single_threaded() else files.PROCS
        for hierarchy in self._hierarchies:
            files.write(f"{hierarchy.directory}{path}/{file}", str(pid))

    def join_own(self, path: str, name: str, init: int) -> str:
        """See CgroupManager. The child is of the freezer's hierarchy only: it limits nothing."""
        path = files.checked(path)
        freezer = self._by_controller.get("freezer")
        if freezer is None:
            self.join(path, 0)
            return ""
        own = f"{path}/{name}"
        files.make(freezer, own)
        for hierarchy in self._hierarchies:
            target = own if hierarchy.directory == freezer else path
            files.write(f"{hierarchy.directory}{target}/{TASKS}", "0")
        return own

    def remove_empty(self, path: str) -> bool:
        """See CgroupManager."""
        return files.remove_if_empty(self._listed + files.checked_leaf(path))

    def pids(self, path: str) -> list[int]:
        """See CgroupManager."""
        return files.pids(self._listed + files.checked(path))

    def kill(self, path: str) -> None:
        """See CgroupManager."""
        path = files.checked_leaf(path)
        freezer = self._by_controller.get("freezer")
        if freezer is None:
            files.kill_until_empty(self._listed + path)
        elif files.pids(freezer + path):  # most often nobody is left: that is cheap to see
            try:
                _kill_frozen(freezer + path)
            except CgroupError as err:
                if err.errno not in GONE:  # all have ended, and another has removed it
                    raise

    def freeze(self, path: str) -> None:
        """See CgroupManager."""
        directory = self._freezer() + files.checked_leaf(path)
        state = f"{directory}/{FREEZER_STATE}"
        files.write(state, "FROZEN")
        try:
            files.await_frozen(directory, lambda: files.read(state) == "FROZEN")
        except CgroupError:
            files.write(state, "THAWED")
            raise

    def thaw(self, path: str) -> None:
        """See CgroupManager."""
        files.write(f"{self._freezer()}{files.checked_leaf(path)}/{FREEZER_STATE}", "THAWED")

    def is_frozen(self, path: str) -> bool:
        """See CgroupManager."""
        if "freezer" not in self._by_controller:
            return False
        try:
            return files.read(f"{self._freezer()}{files.checked(path)}/{FREEZER_STATE}") != "THAWED"
        except CgroupError as err:
            if err.errno in GONE:
                return False
            raise

    def _freezer(self) -> str:
        try:
            return self._by_controller["freezer"]
        except KeyError:
            raise CgroupError(
                errno.ENOENT, "this machine has not mounted the freezer controller"
            ) from None

    def watch_oom(self, path: str) -> OomWatch | None:
        """See CgroupManager. An eventfd, registered for the file (cgroup-v1/memory.rst, 10)."""
        memory = self._by_controller.get("memory")
        if memory is None:
            return None
        directory = memory + files.checked(path)
        try:
            control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # the cgroup has gone, and nobody is left in it to be killed
            return None
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            files.write(f"{directory}/cgroup.event_control", f"{event} {control}")
        except CgroupError:  # gone as well, or a kernel with PREEMPT_RT: the counter is left
            os.close(event)
            return None
        finally:
            os.close(control)
        return OomWatch(event, eventfd=True)

    def oom_kills(self, path: str) -> int:
        """See CgroupManager. The v1 counter is that of one cgroup, so descendants are added."""
        path = files.checked(path)
        memory = self._by_controller.get("memory")
        if memory is None:
            return 0
        return sum(
            files.counter(f"{cgroup}/memory.oom_control", "oom_kill")
            for cgroup in files.below(memory + path)
        )

    def delete(self, path: str) -> None:
        """See CgroupManager."""
        path = files.checked_leaf(path)
        for hierarchy in self._hierarchies:
            files.remove(hierarchy.directory + path)
        if self._unified is not None:
            files.remove(self._unified + path)

    def mounts(self) -> list[tuple[str, str, str]]:
        """See CgroupManager."""
        mounted = [(each.name, "cgroup", each.mount_options()) for each in self._hierarchies]
        return mounted + [(name, "link", target) for name, target in self._links]

    def directories(self, path: str) -> list[tuple[str, str]]:
        """See CgroupManager."""
        path = files.checked(path)
        return [(each.name, each.directory + path) for each in self._hierarchies]


def _is_single_threaded() -> bool:
    return os.stat("/proc/self/task").st_nlink == 3  # ".", "..", and one thread


def _inherit_cpuset(root: str, path: str) -> None:
    for name in CPUSET_FILES:
        _inherit(root, path, name)


def _inherit(root: str, path: str, name: str) -> str:
    """Fill an empty cpuset file from the nearest ancestor that has a value; returns the value."""
    file = f"{root}{path}/{name}"
    value = files.read(file)
    if value or not path:
        return value
    value = _inherit(root, path[: path.rindex("/")], name)
    files.write(file, value)
    return value


def _kill_frozen(directory: str) -> None:
    state = f"{directory}/{FREEZER_STATE}"
    try:
        files.write(state, "FROZEN")
        _await_frozen(state)
        files.signal_all(files.pids(directory))
    finally:
        # A killed task dies only once it is thawed, and a descendant may have been frozen itself.
        for cgroup in files.below(directory):
            files.write(f"{cgroup}/{FREEZER_STATE}", "THAWED")


def _await_frozen(state: str) -> None:
    for _ in range(FREEZE_POLLS):
        if files.read(state) == "FROZEN":
            return
        time.sleep(FREEZE_DELAY)

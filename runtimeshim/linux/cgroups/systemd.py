"""Cgroups of systemd's units: the systemd cgroup driver, on version 2.

systemd is the one who makes and removes them, and hears of the limits; all else is done in the
hierarchy, as its delegation allows. A scope begins with its first process: it is started by `join`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from runtimeshim.linux import systemd
from runtimeshim.linux.cgroups import unit_properties, units
from runtimeshim.linux.cgroups.base import CgroupManager, OomWatch
from runtimeshim.linux.cgroups.files import CgroupError
from runtimeshim.linux.dbus import DBusError, Variant
from runtimeshim.linux.systemd import Property


class UnitManager(CgroupManager):
    """Takes paths of units (see units.py) and of directories; the latter go to `plain`."""

    def __init__(self, plain: CgroupManager) -> None:
        self._plain = plain
        self.version = plain.version
        self.controllers = plain.controllers
        self.swap = plain.swap
        # Limits of scopes that are still to be started.
        self._pending: dict[str, Mapping[str, object]] = {}
        # What slices counted when their scopes' counters were last read.
        self._around: dict[str, int] = {}

    def create(self, path: str) -> None:
        """See CgroupManager. A scope comes to be when it is joined; its slice is made now."""
        if not units.is_unit(path):
            self._plain.create(path)
            return
        unit = units.parse(path)
        if not self._exists(unit):
            self._start_slice(unit.slice)

    def apply(self, path: str, resources: Mapping[str, object]) -> None:
        """See CgroupManager."""
        if not units.is_unit(path):
            self._plain.apply(path, resources)
            return
        unit = units.parse(path)
        properties = unit_properties.properties(resources)
        if not self._exists(unit):
            self._pending[path] = {**self._pending.get(path, {}), **resources}
            return
        # The kernel first: what it refuses, or would call the OOM killer for, systemd would only
        # log, and keep. And once more after systemd, which rounds some values.
        self._plain.apply(unit.path(), resources)
        if properties:
            with _explained(f"change {unit.name}"):
                systemd.change(unit.name, properties)
            self._plain.apply(unit.path(), resources)

    def begin(self, path: str, pid: int) -> None:
        """See CgroupManager. A scope is started."""
        if units.is_unit(path):
            self.join(path, pid)

    def join(self, path: str, pid: int) -> None:
        """See CgroupManager. The first process of a scope starts it, never without its limits."""
        if not units.is_unit(path):
            self._plain.join(path, pid)
            return
        unit = units.parse(path)
        if not unit.scope or self._exists(unit):
            self._plain.join(unit.path(), pid)
            return
        resources = self._pending.pop(path, None)
        if resources is None:
            raise CgroupError(
                errno.ENOENT, f"{unit.name} does not exist, and its limits are not known here"
            )
        # A caller in a PID namespace is known to systemd by the number that the host's /proc has.
        process = pid or int(os.readlink("/proc/self"))
        with _explained(f"start {unit.name}"):
            systemd.start(unit.name, _scope(unit, process) + unit_properties.properties(resources))
        self._plain.create(unit.path())  # what systemd knows nothing of, like hugetlb, is enabled
        self._plain.apply(unit.path(), resources)

    def join_own(self, path: str, name: str, init: int) -> str:
        """See CgroupManager."""
        return self._plain.join_own(units.directory(path), name, init)

    def open_own(self, path: str, name: str) -> tuple[str, int] | None:
        """See CgroupManager."""
        return self._plain.open_own(units.directory(path), name)

    def remove_empty(self, path: str) -> bool:
        """See CgroupManager."""
        return self._plain.remove_empty(units.directory(path))

    def join_beside(self, path: str, init: int) -> None:
        """See CgroupManager."""
        self._plain.join_beside(units.directory(path), init)

    def pids(self, path: str) -> list[int]:
        """See CgroupManager."""
        return self._plain.pids(units.directory(path))

    def kill(self, path: str) -> None:
        """See CgroupManager."""
        directory = units.directory(path)
        if not units.is_unit(path) or self._exists(units.parse(path)):
            self._plain.kill(directory)

    def freeze(self, path: str) -> None:
        """See CgroupManager."""
        self._plain.freeze(units.directory(path))

    def thaw(self, path: str) -> None:
        """See CgroupManager."""
        self._plain.thaw(units.directory(path))

    def is_frozen(self, path: str) -> bool:
        """See CgroupManager."""
        return self._plain.is_frozen(units.directory(path))

    def watch_oom(self, path: str) -> OomWatch | None:
        """See CgroupManager. systemd removes a scope at its end, with its counter."""
        return self._plain.watch_oom(units.directory(path))

    def oom_kills(self, path: str) -> int:
        """See CgroupManager."""
        if not units.is_unit(path):
            return self._plain.oom_kills(path)
        unit = units.parse(path)
        around = self._plain.oom_kills(units.Unit(unit.slice).path())
        kills = self._plain.oom_kills(unit.path())
        if self._exists(unit):
            self._around[path] = around
        return kills

    def was_oom_killed(self, path: str) -> bool:
        """See CgroupManager.

        systemd removes a scope as soon as it is empty, and the kernel may hold back a notification
        for 10 ms (CGROUP_FILE_NOTIFY_MIN_INTV). So the slice's counter decides, which has that of
        its scopes in it: by how much it has risen since `oom_kills` was asked at the last
        notification, that of the limit being reached.
        """
        if not units.is_unit(path) or path not in self._around:
            return False
        unit = units.parse(path)
        around = self._plain.oom_kills(units.Unit(unit.slice).path())
        return not self._exists(unit) and around > self._around[path]

    def delete(self, path: str) -> None:
        """See CgroupManager."""
        if units.is_unit(path):
            self._pending.pop(path, None)
            self._around.pop(path, None)
            unit = units.parse(path)
            with _explained(f"stop {unit.name}"):
                systemd.stop(unit.name)
        self._plain.delete(units.directory(path))

    def mounts(self) -> list[tuple[str, str, str]]:
        """See CgroupManager."""
        return self._plain.mounts()

    def directories(self, path: str) -> list[tuple[str, str]]:
        """See CgroupManager."""
        return self._plain.directories(units.directory(path))

    def _exists(self, unit: units.Unit) -> bool:
        return all(os.path.isdir(found) for _, found in self._plain.directories(unit.path()))

    def _start_slice(self, name: str) -> None:
        if name == units.ROOT_SLICE or self._exists(units.Unit(name)):
            return
        outer = units.ancestry(name)[-2:-1]
        wants: list[Property] = [("Wants", Variant("as", outer))] if outer else []
        with _explained(f"start {name}"):
            try:
                systemd.start(name, [_described(name), *_ACCOUNTED, *wants])
            except DBusError as err:
                if err.name != systemd.UNIT_EXISTS:
                    raise
                systemd.await_started(name)  # another was faster, and may not be done
        self._plain.create(units.Unit(name).path())


_ACCOUNTED: list[Property] = [
    (f"{kind}Accounting", Variant("b", True)) for kind in ("CPU", "Memory", "IO", "Tasks")
]


def _described(name: str) -> Property:
    return "Description", Variant("s", f"criserver {name}")


def _scope(unit: units.Unit, process: int) -> list[Property]:
    """Return what makes a scope a container's.

    Delegate: what is below it is not systemd's. CollectMode: one that failed is forgotten at once.
    """
    return [
        _described(unit.scope),
        ("Slice", Variant("s", unit.slice)),
        ("PIDs", Variant("au", [process])),
        ("Delegate", Variant("b", True)),
        ("DefaultDependencies", Variant("b", False)),
        ("CollectMode", Variant("s", "inactive-or-failed")),
        *_ACCOUNTED,
    ]


class _explained:  # noqa: N801 - used as a function
    """Turn a DBusError into a CgroupError that says what was to be done."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, DBusError):
            raise CgroupError(
                error.errno or errno.EIO, f"systemd: {self._what}: {error.strerror}"
            ) from error

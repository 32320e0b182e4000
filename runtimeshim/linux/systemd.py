"""systemd's manager: transient units started, changed and stopped (org.freedesktop.systemd1(5))."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from runtimeshim.linux.dbus import MEMBER, Connection, DBusError, Variant

SERVICE = "org.freedesktop.systemd1"
PATH = "/org/freedesktop/systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
NO_SUCH_UNIT = f"{SERVICE}.NoSuchUnit"
UNIT_EXISTS = f"{SERVICE}.UnitExists"
JOBS = f"type='signal',sender='{SERVICE}',interface='{MANAGER}',member='JobRemoved'"

# A job takes milliseconds; the rest is for a machine under heavy load. runc waits as long.
TIMEOUT_SECONDS = 30.0

Property = tuple[str, Variant]


def start(unit: str, properties: Sequence[Property]) -> None:
    """Start a transient unit and wait for it; one of the same name that failed is forgotten first.

    Raises DBusError; its name is UNIT_EXISTS when there is one that has not failed.
    """
    with _Manager() as manager:
        arguments = ("ssa(sv)a(sa(sv))", unit, "replace", properties, ())
        try:
            manager.run_job("StartTransientUnit", *arguments)
        except DBusError as err:
            if err.name != UNIT_EXISTS or not manager.forget_failed(unit):
                raise
            manager.run_job("StartTransientUnit", *arguments)


def await_started(unit: str) -> None:
    """Wait until a unit that another has started is there, by their job. Raises DBusError."""
    with _Manager() as manager:
        manager.run_job("StartUnit", "ss", unit, "replace")


def stop(unit: str) -> None:
    """Stop a unit and wait for its end; fine when there is none. Raises DBusError."""
    with _Manager() as manager:
        try:
            manager.run_job("StopUnit", "ss", unit, "replace")
        except DBusError as err:
            if err.name != NO_SUCH_UNIT:
                raise
        manager.forget_failed(unit)


def change(unit: str, properties: Sequence[Property]) -> None:
    """Change properties of a unit until it ends. Raises DBusError."""
    with _Manager() as manager:
        manager.call("SetUnitProperties", "sba(sv)", unit, True, properties)


class _Manager:
    """A connection for one task; none is kept, since every shim would hold one."""

    def __init__(self) -> None:
        self._connection = Connection(SERVICE, timeout=TIMEOUT_SECONDS)
        self._subscribed = False  # a second time is an error

    def __enter__(self) -> _Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def call(self, member: str, signature: str = "", *values: Any) -> tuple[Any, ...]:
        return self._connection.call(PATH, MANAGER, member, signature, *values)

    def run_job(self, member: str, signature: str, *values: Any) -> None:
        """Call a method that queues a job, and wait until the job is done."""
        if not self._subscribed:
            self._subscribe()
        (job,) = self.call(member, signature, *values)
        while True:
            signal = self._connection.signal()
            if signal.fields.get(MEMBER) == "JobRemoved" and signal.body[1] == job:
                break
        _, _, unit, result = signal.body
        if result != "done":
            raise DBusError(errno.EIO, f"systemd: {member} of {unit}: its job is {result}")

    def _subscribe(self) -> None:
        if self._connection.on_bus:
            bus = "/org/freedesktop/DBus", "org.freedesktop.DBus"
            self._connection.call(*bus, "AddMatch", "s", JOBS)
        self.call("Subscribe")
        self._subscribed = True

    def forget_failed(self, unit: str) -> bool:
        """Take a failed unit out of systemd's memory; False when there is no such unit."""
        try:
            self.call("ResetFailedUnit", "s", unit)
        except DBusError as err:
            if err.name != NO_SUCH_UNIT:
                raise
            return False
        return True

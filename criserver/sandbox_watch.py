"""Watches the pid 1 of shared PID namespaces: without it a sandbox can run nothing any more."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from pathlib import Path

from criserver.store.sandboxes import Sandbox, SandboxStore

log = logging.getLogger(__name__)

# How often a database that cannot be written is tried again.
RECORD_INTERVAL_SECONDS = 1.0


class SandboxWatch:
    """One pidfd for each READY sandbox that has an init; its end makes the sandbox NOTREADY."""

    def __init__(self, sandboxes: SandboxStore) -> None:
        self._sandboxes = sandboxes
        self._pidfds: dict[str, int] = {}

    def add(self, sandbox: Sandbox) -> None:
        """Watch the init of a sandbox, if it has one; one that is gone ends the sandbox now."""
        made = sandbox.runtime_values or {}
        pid, pin = made.get("init_pid"), made.get("namespaces", {}).get("pid")
        if pid is None or pin is None:
            return
        pidfd = _open(pid, Path(pin))
        if pidfd is None:
            self._ended(sandbox.id)
            return
        self._pidfds[sandbox.id] = pidfd
        # A pidfd is readable once its process has ended (man 2 pidfd_open).
        asyncio.get_running_loop().add_reader(pidfd, self._ended, sandbox.id)

    def remove(self, sandbox_id: str) -> None:
        """Watch a sandbox no more; idempotent."""
        pidfd = self._pidfds.pop(sandbox_id, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        """Watch nothing any more."""
        for sandbox_id in list(self._pidfds):
            self.remove(sandbox_id)

    def _ended(self, sandbox_id: str) -> None:
        log.warning("pod sandbox %s is not ready any more: its init has ended", sandbox_id)
        self.remove(sandbox_id)
        self._record(sandbox_id, time.time_ns())

    def _record(self, sandbox_id: str, ended_at: int) -> None:
        """Record an end, later where the database cannot be written now (a full disk)."""
        if sandbox_id not in self._sandboxes.mirror:  # removed meanwhile
            return
        try:
            self._sandboxes.stopped(sandbox_id, ended_at)
        except sqlite3.OperationalError as err:
            log.warning("the end of pod sandbox %s cannot be recorded now: %s", sandbox_id, err)
            loop = asyncio.get_running_loop()
            loop.call_later(RECORD_INTERVAL_SECONDS, self._record, sandbox_id, ended_at)


def _open(pid: int, pin: Path) -> int | None:
    """Return a pidfd of the process if it is in the pinned namespace: a pid may be another's."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        # Compared after the open, so that what was compared is what the pidfd is of.
        if Path(f"/proc/{pid}/ns/pid").stat().st_ino == pin.stat().st_ino:
            return pidfd
    except OSError:  # it has ended in between
        pass
    os.close(pidfd)
    return None

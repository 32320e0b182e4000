"""The scheduling fields of a process object, and linux.personality and linux.memoryPolicy."""

from __future__ import annotations

import os

from runtimeshim.linux import scheduling
from runtimeshim.oci import fields
from runtimeshim.oci.errors import StageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def apply(process: Mapping[str, Any], pid: int) -> None:
    """Set process.scheduler and process.ioPriority of a process, whatever user it has become.

    From outside: the process itself may no longer, and a policy may not survive a fork.
    """
    wanted = process.get("scheduler")
    if wanted:
        try:
            _set_scheduler(wanted, pid)
        except OSError as err:
            raise StageError("scheduling", f"process.scheduler: {err.strerror}") from err
    wanted = process.get("ioPriority")
    if wanted:
        level = (fields.IO_CLASSES[wanted["class"]], wanted.get("priority") or 0)
        try:
            scheduling.ioprio_set(pid, *level)
        except OSError as err:
            raise StageError("scheduling", f"process.ioPriority: {err.strerror}") from err


def _set_scheduler(wanted: Mapping[str, Any], pid: int) -> None:
    scheduling.sched_setattr(
        pid,
        policy=fields.POLICIES[wanted["policy"]],
        flags=sum({fields.SCHEDULER_FLAGS[flag] for flag in wanted.get("flags") or ()}),
        nice=wanted.get("nice") or 0,
        priority=wanted.get("priority") or 0,
        runtime=wanted.get("runtime") or 0,
        deadline=wanted.get("deadline") or 0,
        period=wanted.get("period") or 0,
    )


def apply_own(linux: Mapping[str, Any]) -> None:
    """Set linux.personality and linux.memoryPolicy of the caller."""
    wanted = linux.get("personality")
    if wanted:
        scheduling.personality(fields.PERSONALITIES[wanted["domain"]])
    wanted = linux.get("memoryPolicy")
    if wanted:
        mode = fields.MEMORY_MODES[wanted["mode"]]
        for flag in wanted.get("flags") or ():
            mode |= fields.MEMORY_FLAGS[flag]
        try:
            scheduling.set_mempolicy(mode, fields.parse_list(wanted.get("nodes") or ""))
        except OSError as err:
            raise StageError("scheduling", f"linux.memoryPolicy: {err.strerror}") from err


def set_affinity(process: Mapping[str, Any], which: str) -> None:
    """Run the caller on the CPUs of process.execCPUAffinity, `initial` or `final`."""
    wanted = (process.get("execCPUAffinity") or {}).get(which)
    if not wanted:
        return
    try:
        os.sched_setaffinity(0, fields.parse_list(wanted))
    except OSError as err:
        raise StageError(
            "scheduling", f"process.execCPUAffinity.{which}: {wanted}: {err.strerror}"
        ) from err

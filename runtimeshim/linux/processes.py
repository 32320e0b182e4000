"""What processes hold: open files, sockets and their limit, from /proc (man 5 proc)."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from typing import NamedTuple

# How many descriptors are looked at to find sockets: a container with a million must not hold up
# the metrics of all others.
MAX_DESCRIPTORS = 10_000

_UNLIMITED = -1


class Descriptors(NamedTuple):
    """Open descriptors, and the sockets among those that were looked at."""

    open: int
    sockets: int


def descriptors(pids: Iterable[int]) -> Descriptors:
    """Count the descriptors of processes; those that have ended meanwhile hold none.

    Nor do those that may not be looked at: without CAP_SYS_PTRACE, what is not dumpable.
    """
    found = sockets = 0
    for pid in pids:
        directory = f"/proc/{pid}/fd"
        try:
            # The kernel counts them since 6.2; before, the size is 0.
            count = os.stat(directory).st_size
            if count > MAX_DESCRIPTORS - found:
                found += count
                continue
            names = os.listdir(directory)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        found += len(names)
        sockets += sum(_is_socket(f"{directory}/{name}") for name in names)
    return Descriptors(found, sockets)


def _is_socket(path: str) -> bool:
    try:
        return os.readlink(path).startswith("socket:")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False


def uninterruptible(pids: Iterable[int]) -> int:
    """Count the processes that sleep in the kernel where no signal reaches them (state D)."""
    return sum(state(pid) == "D" for pid in pids)


def state(pid: int) -> str:
    """Return the letter of a process's state, of its main thread (man 5 proc); "" if it has ended.

    The name before it may hold anything, parentheses and line ends too.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            stat = file.read(4096)
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat[stat.rindex(b")") + 2 :][:1].decode("ascii")


def max_open_files(pid: int) -> int | None:
    """Return the soft limit of open files; -1 is unlimited, None that the process has ended.

    prlimit(2) takes a tenth of the time that /proc does, and needs CAP_SYS_RESOURCE for a process
    of another user.
    """
    try:
        return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except ProcessLookupError:
        return None
    except PermissionError:
        return _max_open_files_of_proc(pid)


def _max_open_files_of_proc(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/limits", encoding="ascii") as file:
            lines = file.read().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    for line in lines:
        if line.startswith("Max open files"):
            soft = line.split()[3]
            return int(soft) if soft.isdigit() else _UNLIMITED
    return None


def set_oom_score_adj(pids: Iterable[int], value: int) -> None:
    """Set oom_score_adj of processes; those that have ended meanwhile need none.

    Raises PermissionError where CAP_SYS_RESOURCE is missing for a lower value.
    """
    for pid in pids:
        try:
            with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
                file.write(str(value))
        except (FileNotFoundError, ProcessLookupError):
            continue

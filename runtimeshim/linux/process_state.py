"""What a process is doing and what it does with a signal, in words, from /proc (man 5 proc)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "in uninterruptible sleep",
    "T": "stopped by a signal",
    "t": "stopped by a tracer",
    "Z": "a zombie",
    "I": "an idle kernel thread",
    "X": "dead",
}
UNINTERRUPTIBLE = "D"
ZOMBIE = "Z"

# Kernel functions that are worth showing of a process that sleeps in the kernel.
MAX_FRAMES = 8
# Processes that are described at once: a person reads it.
MAX_DESCRIBED = 10
MAX_COMMAND = 120


@dataclass(frozen=True)
class ProcessState:
    """A process at one moment. `state` is the letter of ps(1); masks have bit N-1 for signal N."""

    pid: int
    name: str
    command: str
    state: str
    wchan: str
    stack: tuple[str, ...]
    ignored: int
    caught: int
    blocked: int
    is_namespace_init: bool

    def __str__(self) -> str:
        """Say what it is doing, with the kernel's function where it sleeps in one."""
        words = f"process {self.pid} ({self.command or self.name}) is "
        words += f"{STATES.get(self.state, self.state)} ({self.state})"
        if self.wchan:
            words += f" in {self.wchan}"
        if self.state == UNINTERRUPTIBLE and self.stack:
            words += f" [{' < '.join(self.stack[:MAX_FRAMES])}]"
        return words

    def disregards(self, number: int) -> str:
        """Say why a signal has no effect on it; "" when it may have."""
        bit = 1 << (number - 1)
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        if self.state == UNINTERRUPTIBLE:
            return f"no signal, not even SIGKILL, reaches it before {self.wchan or 'it wakes up'}"
        if self.ignored & bit:
            return f"it ignores {name}"
        if self.blocked & bit:
            return f"it blocks {name}"
        if self.caught & bit:
            return f"it has a handler for {name}, and has not ended yet"
        if self.is_namespace_init:
            return (
                f"it has no handler for {name}, and as PID 1 of its namespace the kernel keeps "
                "from it what it does not handle: run it under an init, or handle the signal"
            )
        return ""


def look(pid: int) -> ProcessState | None:
    """Return the state of a process; None when it has ended."""
    try:
        fields = status(pid)
        state = fields.get("State", "?")[:1]
        return ProcessState(
            pid=pid,
            name=fields.get("Name", "?"),
            # To read it takes a lock of the process's memory, which one that is stuck may hold.
            command="" if state == UNINTERRUPTIBLE else command(pid),
            state=state,
            wchan=_wchan(pid),
            stack=_stack(pid),
            ignored=int(fields.get("SigIgn", "0"), 16),
            caught=int(fields.get("SigCgt", "0"), 16),
            blocked=int(fields.get("SigBlk", "0"), 16),
            is_namespace_init=fields.get("NSpid", str(pid)).split()[-1] == "1",
        )
    except (FileNotFoundError, ProcessLookupError):
        return None


def look_at(pids: Iterable[int], only: str = "") -> list[ProcessState]:
    """Return the states of those that live, what is stuck in the kernel first; bounded.

    only: the letter of a state: the others are left out.
    """
    letters = {pid: _letter(pid) for pid in pids}
    chosen = [pid for pid, letter in letters.items() if letter not in ("", ZOMBIE)]
    if only:
        chosen = [pid for pid in chosen if letters[pid] == only]
    chosen.sort(key=lambda pid: letters[pid] != UNINTERRUPTIBLE)
    return [state for pid in chosen[:MAX_DESCRIBED] if (state := look(pid)) is not None]


def _letter(pid: int) -> str:
    """Return the letter of a process's state; "" when it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descendants(pid: int) -> Iterator[int]:
    """Give a process's descendants, itself left out, parents first."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            children = [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in children:
        yield child
        yield from descendants(child)


def parent(pid: int) -> int:
    """Return the pid of a process's parent; 0 when it has ended."""
    try:
        return int(status(pid)["PPid"])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def start_time(pid: int) -> str:
    """Return when a process started, in ticks since boot: with its pid it is one process for ever.

    Raises FileNotFoundError or ProcessLookupError when it has ended.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b") ")[2].split()[19].decode()


def status(pid: int) -> dict[str, str]:
    """Return /proc/PID/status. Raises FileNotFoundError or ProcessLookupError when it has ended."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        pairs = (line.partition(":") for line in file)
        return {key: value.strip() for key, _, value in pairs}


def command(pid: int, limit: int = MAX_COMMAND) -> str:
    """Return a command line that can play no tricks with a terminal, of `limit` characters at most.

    A kernel thread and a zombie have none: "". Raises as `status`.
    """
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read(4 * limit).rstrip(b"\0").replace(b"\0", b" ")
    text = words.decode(errors="replace")
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return printable if len(printable) <= limit else printable[: limit - 1] + "…"


def _wchan(pid: int) -> str:
    with open(f"/proc/{pid}/wchan", encoding="ascii", errors="replace") as file:
        name = file.read()
    return "" if name == "0" else name


def _stack(pid: int) -> tuple[str, ...]:
    """Return the kernel functions that it is in, innermost first; nothing without the right."""
    try:
        with open(f"/proc/{pid}/stack", encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except PermissionError:
        return ()
    except OSError as err:
        if not os.path.exists(f"/proc/{pid}"):
            raise ProcessLookupError(pid) from err
        return ()  # a kernel without CONFIG_STACKTRACE
    return tuple(line.split()[-1].partition("+")[0] for line in lines if line)

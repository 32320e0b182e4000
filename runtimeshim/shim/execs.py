"""Processes that were started in the container beside its init.

    shim                                     exec'd process
      ├── fork into the PID namespace ──────────►│ reads what it is to be; joins a cgroup of its own
      │                                          │ below the container's, if it was not forked into
      │                                          │ it, and its namespaces
      │◄─────────────────────── terminal, ready ─┤ timings; execve
      │◄────────────────── end of file, or error ┘

The shim waits for nothing of that: it goes on with the container's output meanwhile. With an OCI
binary as handler the fork runs that, and its last message names the process that it has started.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence

from runtimeshim import wire
from runtimeshim.oci import terminal
from runtimeshim.shim.poller import READ, Poller
from runtimeshim.shim.task import Task

Send = Callable[[socket.socket, wire.Message, Sequence[int]], None]


class ExecProcess:
    """One process; the shim keeps its terminal's master to resize it."""

    __slots__ = (
        "cgroup",
        "client",
        "failed",
        "name",
        "pid",
        "request",
        "sync",
        "terminal",
        "timings",
    )

    def __init__(self, name: int, client: socket.socket, request: int) -> None:
        self.name = name
        self.client = client
        self.request = request  # what the client gets its answer to
        self.pid = 0
        self.failed = False  # to execve: the answer said so, and no exit is told
        self.sync: socket.socket | None = None  # until execve
        self.terminal: int | None = None
        self.cgroup = ""  # its own, or "": a kernel that refuses it
        self.timings: dict[str, int] = {}

    def kill(self, number: int, task: Task) -> None:
        """Signal it; SIGKILL reaches its descendants too, also those in sessions of their own."""
        if number != signal.SIGKILL:
            _kill(self.pid, number)
        elif self.cgroup:
            task.manager.kill(self.cgroup)
        else:
            _kill(self.pid, signal.SIGSTOP)  # or it would see its children die, and go on
            for pid in descendants(self.pid):
                _kill(pid, signal.SIGKILL)
            _kill(self.pid, signal.SIGKILL)

    def resize(self, width: int, height: int) -> None:
        """Set its terminal's size. Raises ValueError without a terminal."""
        if self.terminal is None:
            raise ValueError("the process has no terminal")
        terminal.set_size(self.terminal, width, height)

    def close(self) -> None:
        """Let go of the terminal."""
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None


class Execs:
    """The exec'd processes of one container, from the request to the exit code."""

    def __init__(self, task: Task, poller: Poller, send: Send) -> None:
        self._task = task
        self._poller = poller
        self._send = send
        self._running: dict[int, ExecProcess] = {}
        self._unclaimed: dict[int, int] = {}
        self._last = 0
        self._cgroups: list[str] = []  # of processes that have left others behind

    def start(self, client: socket.socket, message: wire.Message, fds: Sequence[int]) -> None:
        """Begin to start a process; the answer is sent when execve has come, or failed.

        The first fd is a file with its OCI process object, three more are its streams.
        """
        self._last += 1
        process = ExecProcess(self._last, client, message["id"])
        stdio = (fds[1], fds[2], fds[3]) if len(fds) == 4 else None
        name = f"exec-{os.getpid()}-{process.name}"
        forked = self._task.handler.fork_exec(self._task, fds[0], stdio, name)
        process.pid, process.sync, process.cgroup = forked
        self._running[process.pid] = process
        self._poller.register(process.sync.fileno(), READ, lambda _: self._on_sync(process))

    def find(self, name: int) -> ExecProcess:
        """Return a process by the name that its client has. Raises ProcessLookupError."""
        for process in self._running.values():
            if process.name == name:
                return process
        raise ProcessLookupError

    def exited(self, pid: int, code: int) -> None:
        """Take the exit code of a child, and tell the client whose it was."""
        process = self._running.pop(pid, None)
        if process is None:
            if any(other.sync is not None for other in self._running.values()):
                self._unclaimed[pid] = code  # of a handler that has not said yet what it started
            return
        while process.sync is not None:  # what it said before its end comes first
            self._on_sync(process)
        if process.pid != pid:  # it was the handler's, which has done its part
            return
        process.close()
        self._remove_cgroups(process)
        if not process.failed:
            event = {"event": "exec-exit", "exec": process.name, "code": code}
            self._send(process.client, event, [])

    def _on_sync(self, process: ExecProcess) -> None:
        """Read one message of a process that is being started, or the end: it is started."""
        assert process.sync is not None
        received = wire.receive(process.sync)
        if received is None:  # or it was killed: its exit code tells
            self._started(process)
            return
        message, fds = received
        if "error" in message:
            self._failed(process, message)
        elif fds:
            process.terminal = fds[0]
        else:
            process.cgroup, process.timings = message["cgroup"], message["timings"]
            if "pid" in message:
                self._running.pop(process.pid, None)
                process.pid = message["pid"]
                self._running[process.pid] = process

    def _end_sync(self, process: ExecProcess) -> None:
        assert process.sync is not None
        self._poller.unregister(process.sync.fileno())
        process.sync.close()
        process.sync = None

    def _started(self, process: ExecProcess) -> None:
        self._end_sync(process)
        answer = {"exec": process.name, "pid": process.pid, "timings": process.timings}
        given = [] if process.terminal is None else [process.terminal]
        self._send(process.client, {"id": process.request, **answer}, given)
        if process.pid in self._unclaimed:
            self.exited(process.pid, self._unclaimed.pop(process.pid))
        if not any(other.sync is not None for other in self._running.values()):
            self._unclaimed.clear()

    def _failed(self, process: ExecProcess, message: wire.Message) -> None:
        self._end_sync(process)
        process.failed = True
        error = {"error": message["error"], "stage": message["stage"], "kind": message["kind"]}
        self._send(process.client, {"id": process.request, **error}, [])

    def _remove_cgroups(self, process: ExecProcess) -> None:
        """Remove its cgroup, and those whose last process has ended since they were tried."""
        tried = [*self._cgroups, process.cgroup] if process.cgroup else self._cgroups
        self._cgroups = [path for path in tried if not self._task.manager.remove_empty(path)]


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it has gone by itself
        pass


def descendants(pid: int) -> list[int]:
    """Return the pids below `pid`, each stopped first so that it cannot fork away."""
    found = []
    for child in _children(pid):
        _kill(child, signal.SIGSTOP)
        found.append(child)
        found += descendants(child)
    return found


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as source:
            return [int(child) for child in source.read().split()]
    except FileNotFoundError:  # it has gone
        return []

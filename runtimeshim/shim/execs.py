"""Processes that were started in the container beside its init.

    shim                                     exec'd process
      ├── fork into the PID namespace ──────────►│ reads what it is to be; joins a cgroup of its own
      │                                          │ below the container's, and its namespaces
      │◄─────────────────────── terminal, ready ─┤ timings; execve
      │◄────────────────── end of file, or error ┘

The shim waits for nothing of that: it goes on with the container's output meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from runtimeshim import wire
from runtimeshim.oci import container as oci
from runtimeshim.oci import init, join, spec, terminal
from runtimeshim.oci.errors import StageError
from runtimeshim.oci.namespaces import Namespaces
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
        process.pid, process.sync = fork(self._task, fds[0], stdio, name)
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
            return
        while process.sync is not None:  # what it said before its end comes first
            self._on_sync(process)
        process.close()
        self._remove_cgroups(process)
        if not process.failed:
            event = {"event": "exec-exit", "exec": process.name, "code": code}
            self._send(process.client, event, [])

    def _on_sync(self, process: ExecProcess) -> None:
        """Read one message of a process that is being started, or the end: it is started."""
        assert process.sync is not None
        try:
            received = wire.receive(process.sync)
        except ConnectionResetError:  # killed: its exit code tells
            received = None
        if received is None:
            self._started(process)
            return
        message, fds = received
        if "error" in message:
            self._failed(process, message)
        elif fds:
            process.terminal = fds[0]
        else:
            process.cgroup, process.timings = message["cgroup"], message["timings"]

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


def fork(
    task: Task, target: int, stdio: tuple[int, int, int] | None, name: str
) -> tuple[int, socket.socket]:
    """Fork a process that becomes what the file `target` says; returns its pid and its socket.

    Raises OSError: the init has gone.
    """
    ours, theirs = wire.pair()
    namespaces = Namespaces([])
    try:
        # By the pidfd: the init's number may be another's by now (man 2 setns, Linux 5.8).
        namespaces.pid_fd = os.dup(task.pidfd)
        pid = namespaces.fork()
        if pid == 0:
            _become(task, target, stdio, theirs, name)
    except BaseException:
        ours.close()
        raise
    finally:
        namespaces.close()
        theirs.close()
    return pid, ours


def _become(
    task: Task,
    target: int,
    stdio: tuple[int, int, int] | None,
    sync: socket.socket,
    name: str,
) -> NoReturn:
    try:
        wanted = _read_process(target)
        if not wanted.get("terminal") and stdio is None:
            raise StageError("spec", "an exec without a terminal needs three streams", "spec")
        container = oci.load_unchecked(task.bundle)
        linux: Mapping[str, Any] = container.get("linux") or {}
        state = oci.describe(task.bundle, container, task.pid, "running")
    except BaseException as err:  # noqa: BLE001 - a forked child must not unwind into its parent
        init.report(sync, "spec", err)
        os._exit(init.START_FAILED)
    join.run(
        wanted,
        pidfd=task.pidfd,
        manager=task.manager,
        cgroup_path=task.cgroup_path,
        own_cgroup=name,
        init_pid=task.pid,
        seccomp_profile=linux.get("seccomp"),
        seccomp_cache=task.seccomp_cache,
        stdio=stdio,
        sync=sync,
        linux=linux,
        state=state,
    )


def _read_process(file: int) -> Mapping[str, Any]:
    """Read the OCI process object, and see that it can be carried out. Raises SpecError."""
    content = os.pread(file, oci.MAX_SPEC, 0)
    wanted: Mapping[str, Any] = json.loads(content)
    spec.check_process(wanted)
    return wanted

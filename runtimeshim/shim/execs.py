"""Processes that were started in the container beside its init."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from typing import Any

from runtimeshim import wire
from runtimeshim.oci import join, spec, terminal
from runtimeshim.oci.container import Container
from runtimeshim.oci.errors import SpecError, StageError
from runtimeshim.oci.namespaces import Namespaces


class ExecProcess:
    """One started process; the shim keeps its terminal's master to resize it."""

    __slots__ = ("client", "name", "pid", "terminal")

    def __init__(self, name: int, client: socket.socket) -> None:
        self.name = name
        self.client = client
        self.pid = 0
        self.terminal: int | None = None

    def kill(self, number: int) -> None:
        """Signal it; SIGKILL reaches its descendants too, also those in sessions of their own."""
        if number == signal.SIGKILL:
            _kill(self.pid, signal.SIGSTOP)  # or it would see its children die, and go on
            for pid in descendants(self.pid):
                _kill(pid, signal.SIGKILL)
        _kill(self.pid, number)

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


def start(
    container: Container,
    target: Mapping[str, Any],
    stdio: tuple[int, int, int] | None,
    exec_process: ExecProcess,
) -> list[int]:
    """Start `target` in the container; returns the fds for the caller: a terminal's master.

    Raises StageError with what failed; nothing is left running then.
    """
    if not target.get("terminal") and stdio is None:
        raise StageError("spec", "an exec without a terminal needs three streams", "spec")
    try:
        spec.check_process(target)
    except SpecError as err:
        raise StageError("spec", str(err), "spec") from err
    ours, theirs = wire.pair()
    with ours:
        namespaces = Namespaces([])
        namespaces.pid_fd = os.open(f"/proc/{container.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            exec_process.pid = namespaces.fork()
            if exec_process.pid == 0:
                _become(container, target, stdio, theirs)
        finally:
            namespaces.close()
            theirs.close()
        try:
            return _outcome(ours, exec_process)
        except StageError:
            os.waitpid(exec_process.pid, 0)
            exec_process.close()
            raise


def _become(
    container: Container,
    target: Mapping[str, Any],
    stdio: tuple[int, int, int] | None,
    sync: socket.socket,
) -> None:
    join.run(
        target,
        pidfd=container.pidfd,
        manager=container.manager,
        cgroup_path=container.cgroup_path,
        seccomp_profile=(container.spec.get("linux") or {}).get("seccomp"),
        seccomp_cache=container.seccomp_cache,
        stdio=stdio,
        sync=sync,
        linux=container.spec.get("linux"),
        state=container.state("running"),
    )


def _outcome(sync: socket.socket, exec_process: ExecProcess) -> list[int]:
    """Read messages until execve closes the socket; returns a terminal's master, if any."""
    given: list[int] = []
    while True:
        try:
            received = wire.receive(sync)
        except ConnectionResetError:  # killed: its exit code tells
            received = None
        if received is None:
            return given
        message, fds = received
        if fds:
            exec_process.terminal = fds[0]
            given = [os.dup(fds[0])]
        if "error" in message:
            for fd in given:
                os.close(fd)
            raise StageError(message["stage"], message["error"], message["kind"])

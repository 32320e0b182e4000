"""exec, from the side of who starts it: the fork into the container, and its outcome."""

from __future__ import annotations

import os

from runtimeshim import wire
from runtimeshim.linux import cgroups
from runtimeshim.oci import filters, join, spec
from runtimeshim.oci.errors import SpecError, StageError
from runtimeshim.oci.namespaces import Namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class Target:
    """The running container that a process is started in."""

    __slots__ = ("cgroup_path", "linux", "manager", "pid", "pidfd", "seccomp_cache", "state")

    def __init__(
        self,
        *,
        pid: int,
        pidfd: int,
        manager: cgroups.CgroupManager,
        cgroup_path: str,
        seccomp_cache: str | None,
        linux: Mapping[str, Any],
        state: Mapping[str, Any],
    ) -> None:
        self.pid = pid  # of the init
        self.pidfd = pidfd  # of the init
        self.manager = manager
        self.cgroup_path = cgroup_path
        self.seccomp_cache = seccomp_cache
        self.linux = linux  # of the container's specification
        self.state = state  # what a seccomp listener is told


def start(
    target: Target,
    wanted: Mapping[str, Any],
    stdio: tuple[int, int, int] | None,
    *,
    preserve_fds: int = 0,
) -> tuple[int, int | None]:
    """Start an OCI process object; returns its pid, and its terminal's master without `stdio`.

    Raises StageError with what failed; nothing is left running then.
    """
    try:
        spec.check_process(wanted)
    except SpecError as err:
        raise StageError("spec", str(err), "spec") from err
    if target.linux.get("seccomp"):
        filters.load()
    ours, theirs = wire.core_pair()
    try:
        namespaces = Namespaces([])
        namespaces.pid_fd = os.open(f"/proc/{target.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            pid = namespaces.fork()
            if pid == 0:
                ours.close()
                join.run(
                    wanted,
                    init_pid=target.pid,
                    pidfd=target.pidfd,
                    manager=target.manager,
                    cgroup_path=target.cgroup_path,
                    seccomp_profile=target.linux.get("seccomp"),
                    seccomp_cache=target.seccomp_cache,
                    stdio=stdio,
                    sync=theirs,
                    preserve_fds=preserve_fds,
                    linux=target.linux,
                    state=target.state,
                )
        finally:
            namespaces.close()
            theirs.close()
        try:
            return pid, _outcome(ours)
        except StageError:
            os.waitpid(pid, 0)
            raise
    finally:
        ours.close()


def _outcome(sync: wire.Socket) -> int | None:
    """Read messages until execve closes the socket; returns a terminal's master, if any."""
    master: int | None = None
    while True:
        received = wire.receive(sync)
        if received is None:  # or it was killed: its exit code tells
            return master
        message, fds = received
        if fds:
            master = fds[0]
        if "error" in message:
            if master is not None:
                os.close(master)
            raise StageError(message["stage"], message["error"], message["kind"])

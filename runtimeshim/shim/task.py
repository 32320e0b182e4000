"""What a shim has of its container once that is created.

The specification is not kept: it is on disk for the little that needs it later, and a shim lives
as long as its container.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from runtimeshim import wire
from runtimeshim.linux import cgroups
from runtimeshim.linux.process_exits import ExitWatch
from runtimeshim.oci.errors import StageError
from runtimeshim.oci.stdio import Streams
from runtimeshim.shim.handler import Handler

STREAMS = ("stdin", "stdout", "stderr", "terminal")


class Task:
    """A created container: its init, which waits for `start`, and the shim's ends of its streams.

    `made` and the fds are what `describe` and `fds` of another process returned.
    """

    __slots__ = (
        "bundle",
        "cgroup_path",
        "container_id",
        "exits",
        "forked",
        "handler",
        "hooks",
        "manager",
        "pid",
        "pidfd",
        "seccomp_cache",
        "streams",
        "sync",
        "timings",
        "warnings",
    )

    def __init__(
        self,
        handler: Handler,
        request: wire.Message,
        made: Mapping[str, Any],
        fds: Mapping[str, int],
    ) -> None:
        self.handler = handler
        self.bundle: str = request["bundle"]
        self.container_id: str = request["container"]
        self.seccomp_cache: str = request["options"]["seccomp_cache"]
        self.manager = cgroups.hierarchy()
        self.cgroup_path: str = made["cgroup"]
        self.pid: int = made["pid"]
        self.timings: dict[str, int] = made["timings"]
        self.warnings: list[str] = made["warnings"]
        self.hooks: bool = made["hooks"]  # something is to be done after start and at the end
        # No process that stood by could become its init. Not told by older shims.
        self.forked: bool = made.get("forked", False)
        self.pidfd = fds["pidfd"]
        self.sync = socket.socket(fileno=fds["sync"]) if "sync" in fds else None
        # Of an init that somebody else may come to reap.
        self.exits = ExitWatch(socket.socket(fileno=fds["exits"])) if "exits" in fds else None
        self.streams = Streams()
        for name in STREAMS:
            setattr(self.streams, name, fds.get(name))

    def describe(self) -> dict[str, Any]:
        """Return what makes this task again, together with `fds`."""
        return {
            "pid": self.pid,
            "cgroup": self.cgroup_path,
            "hooks": self.hooks,
            "forked": self.forked,
            "timings": self.timings,
            "warnings": self.warnings,
        }

    def fds(self) -> dict[str, int]:
        """Return the open files by name."""
        found = fds_of(self.streams, self.pidfd, self.sync)
        return found if self.exits is None else {**found, "exits": self.exits.fileno()}

    def started(self) -> StageError | None:
        """Read the outcome of a start: None when the program runs."""
        assert self.sync is not None
        answer = wire.receive(self.sync)
        self.close_sync()
        if answer is None:
            return self.handler.started(self)
        message, _ = answer
        return StageError(message["stage"], message["error"], message["kind"])

    def close_sync(self) -> None:
        """Let go of the socket that tells of a start."""
        if self.sync is not None:
            self.sync.close()
            self.sync = None


def fds_of(streams: Streams, pidfd: int, sync: socket.socket | None) -> dict[str, int]:
    """Return the fds of a created container, by the names that a Task knows them by."""
    found = {name: getattr(streams, name) for name in STREAMS}
    found["pidfd"] = pidfd
    found["sync"] = None if sync is None else sync.fileno()
    return {name: fd for name, fd in found.items() if fd is not None}

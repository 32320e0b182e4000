"""What a shim has of its container once that is created.

The specification is not kept: it is on disk for the little that needs it later, and a shim lives
as long as its container.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from runtimeshim import wire
from runtimeshim.oci import container as oci
from runtimeshim.oci.errors import StageError

STREAMS = ("stdin", "stdout", "stderr", "terminal")


class Task:
    """A created container: its init, which waits for `start`, and the shim's ends of its streams.

    `made` and the fds are what `describe` and `fds` of another process returned.
    """

    __slots__ = (
        "_hooks",
        "bundle",
        "cgroup_path",
        "container_id",
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
        self, request: wire.Message, made: Mapping[str, Any], fds: Mapping[str, int]
    ) -> None:
        self.bundle: str = request["bundle"]
        self.container_id: str = request["container"]
        self.seccomp_cache: str = request["options"]["seccomp_cache"]
        self.manager = oci.hierarchy()
        self.cgroup_path: str = made["cgroup"]
        self.pid: int = made["pid"]
        self.timings: dict[str, int] = made["timings"]
        self.warnings: list[str] = made["warnings"]
        self._hooks: bool = made["hooks"]
        self.pidfd = fds["pidfd"]
        self.sync = socket.socket(fileno=fds["sync"]) if "sync" in fds else None
        self.streams = oci.Streams()
        for name in STREAMS:
            setattr(self.streams, name, fds.get(name))

    def describe(self) -> dict[str, Any]:
        """Return what makes this task again, together with `fds`."""
        return {
            "pid": self.pid,
            "cgroup": self.cgroup_path,
            "hooks": self._hooks,
            "timings": self.timings,
            "warnings": self.warnings,
        }

    def fds(self) -> dict[str, int]:
        """Return the open files by name."""
        found = {name: getattr(self.streams, name) for name in STREAMS}
        found["pidfd"] = self.pidfd
        found["sync"] = None if self.sync is None else self.sync.fileno()
        return {name: fd for name, fd in found.items() if fd is not None}

    def start(self) -> None:
        """Let the init execve; the outcome comes from `started`. Raises OSError: it has gone."""
        assert self.sync is not None
        wire.send(self.sync, {"op": "start"})

    def started(self) -> StageError | None:
        """Read the outcome of execve: None when the program runs."""
        assert self.sync is not None
        try:
            answer = wire.receive(self.sync)
        except ConnectionResetError:
            answer = None
        self.sync.close()
        self.sync = None
        if answer is None:
            return self._load().run_poststart() if self._hooks else None
        message, _ = answer
        return StageError(message["stage"], message["error"], message["kind"])

    def run_poststop(self) -> list[str]:
        """Run what is to be run once the container is gone; returns warnings."""
        return self._load().run_poststop() if self._hooks else []

    def _load(self) -> oci.Container:
        loaded = oci.Container(self.bundle, oci.load(self.bundle), self.seccomp_cache)
        loaded.pid = self.pid
        return loaded


def made_of(container: oci.Container) -> tuple[dict[str, Any], dict[str, int]]:
    """Return what makes a Task of a container that has just been created, and its fds by name."""
    spec = container.spec
    made = {
        "pid": container.pid,
        "cgroup": container.cgroup_path,
        "hooks": bool(spec.get("hooks") or (spec.get("linux") or {}).get("intelRdt")),
        "timings": container.timings,
        "warnings": container.warnings,
    }
    found = {name: getattr(container.streams, name) for name in STREAMS}
    found["pidfd"] = container.pidfd
    found["sync"] = None if container.sync is None else container.sync.fileno()
    return made, {name: fd for name, fd in found.items() if fd is not None}

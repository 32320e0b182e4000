"""create, from the shim's side: cgroup, streams, the fork, and the wait for the init."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from runtimeshim import wire
from runtimeshim.linux import cgroups
from runtimeshim.oci import init, process
from runtimeshim.oci.errors import SpecError, StageError
from runtimeshim.oci.namespaces import Namespaces

# config.json holds a seccomp profile and mounts; one that is larger is no honest spec.
MAX_SPEC = 8 * 1024 * 1024


_hierarchy: cgroups.CgroupManager | None = None


def hierarchy() -> cgroups.CgroupManager:
    """Return this machine's cgroups, looked for once: shims inherit the answer."""
    global _hierarchy
    if _hierarchy is None:
        _hierarchy = cgroups.manager()
    return _hierarchy


class Streams:
    """The shim's ends of a container's stdio; None where there is none."""

    __slots__ = ("stderr", "stdin", "stdout", "terminal")

    def __init__(self) -> None:
        self.stdin: int | None = None
        self.stdout: int | None = None
        self.stderr: int | None = None
        self.terminal: int | None = None


class Container:
    """A created container: its init waits for `start`."""

    def __init__(self, bundle: str, spec: Mapping[str, Any], seccomp_cache: str | None) -> None:
        self.bundle = bundle
        self.spec = spec
        self.seccomp_cache = seccomp_cache
        self.manager = hierarchy()
        linux: Mapping[str, Any] = spec.get("linux") or {}
        # The specification leaves the path to the runtime where the spec has none.
        self.cgroup_path = linux.get("cgroupsPath") or f"/{os.path.basename(bundle)}"
        self.streams = Streams()
        self.pid = 0
        self.pidfd = -1
        self.sync: socket.socket | None = None
        self.timings: dict[str, int] = {}
        self.warnings: list[str] = []

    def create(
        self,
        overlay: Mapping[str, Any] | None,
        *,
        stdin: bool = False,
        stdio: tuple[int, int, int] | None = None,
    ) -> None:
        """Make everything up to the wait before execve. Raises StageError; undoes what it made.

        The container's streams are pipes in `streams`, or the caller's own `stdio`.
        """
        undo: list[Callable[[], None]] = []
        stage = "spec"
        try:
            began = time.monotonic_ns()
            check(self.spec)
            namespaces = Namespaces((self.spec.get("linux") or {}).get("namespaces") or ())
            undo.append(namespaces.close)
            stage = "cgroup"
            undo.append(self.delete_cgroup)
            self.manager.create(self.cgroup_path)
            # Without any rule for devices, a container still has the default ones only.
            resources = {"devices": [], **((self.spec.get("linux") or {}).get("resources") or {})}
            self.manager.apply(self.cgroup_path, resources)
            self.timings["cgroup"] = time.monotonic_ns() - began
            stage = "fork"
            if stdio is not None:
                self._fork(namespaces, overlay, stdio)
            elif self.spec["process"].get("terminal"):
                self._fork(namespaces, overlay, None)
            else:
                self._fork_with_pipes(namespaces, overlay, stdin)
            undo.append(self._kill)
            stage = "init"
            self._wait_ready()
            namespaces.close()
            self.timings["total"] = time.monotonic_ns() - began
        except BaseException as err:
            for step in reversed(undo):
                step()
            if isinstance(err, OSError | SpecError):
                raise StageError(stage, str(err)) from err
            raise

    def _fork_with_pipes(
        self, namespaces: Namespaces, overlay: Mapping[str, Any] | None, stdin: bool
    ) -> None:
        stdio = self._open_streams(stdin)
        try:
            self._fork(namespaces, overlay, stdio)
        finally:
            for fd in stdio:
                os.close(fd)

    def _fork(
        self,
        namespaces: Namespaces,
        overlay: Mapping[str, Any] | None,
        stdio: tuple[int, int, int] | None,
    ) -> None:
        ours, theirs = wire.pair()
        plan = init.Plan(
            spec=self.spec,
            bundle=self.bundle,
            overlay=overlay,
            manager=self.manager,
            cgroup_path=self.cgroup_path,
            namespaces=namespaces,
            stdio=stdio,
            seccomp_cache=self.seccomp_cache,
        )
        began = time.monotonic_ns()
        self.pid = namespaces.fork()
        if self.pid == 0:
            ours.close()
            init.run(plan, theirs)
        self.timings["fork"] = time.monotonic_ns() - began
        self.pidfd = os.pidfd_open(self.pid)
        theirs.close()
        self.sync = ours

    def _open_streams(self, stdin: bool) -> tuple[int, int, int]:
        """Make the pipes; returns the container's ends."""
        if stdin:
            theirs_in, self.streams.stdin = os.pipe2(os.O_CLOEXEC)
        else:
            theirs_in = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.streams.stdout, theirs_out = os.pipe2(os.O_CLOEXEC)
        self.streams.stderr, theirs_err = os.pipe2(os.O_CLOEXEC)
        return theirs_in, theirs_out, theirs_err

    def _wait_ready(self) -> None:
        assert self.sync is not None
        answer = wire.receive(self.sync)
        if answer is None:
            raise StageError(
                "init", "the container's init died before it was ready: " + self._why()
            )
        message, fds = answer
        if "error" in message:
            raise StageError(message["stage"], message["error"], message["kind"])
        self.timings |= message["timings"]
        self.warnings += message["warnings"]
        if fds:
            self.streams.terminal = fds[0]

    def _why(self) -> str:
        """Explain an init that died without a word: most often its memory limit was too small."""
        if self.manager.oom_kills(self.cgroup_path):
            return "the kernel killed it at its memory limit; the limit is too small to start"
        return "it was killed, or crashed"

    def start(self) -> None:
        """Let the init execve; the outcome comes from `started`."""
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
            return None
        message, _ = answer
        return StageError(message["stage"], message["error"], message["kind"])

    def _kill(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)

    def delete_cgroup(self) -> None:
        """End what is left of the container, and remove its cgroup."""
        self.manager.kill(self.cgroup_path)
        self.manager.delete(self.cgroup_path)


def load(bundle: str) -> Mapping[str, Any]:
    """Read config.json. Raises StageError."""
    path = f"{bundle}/config.json"
    try:
        with open(path, "rb", buffering=0) as source:
            content = source.read(min(os.fstat(source.fileno()).st_size, MAX_SPEC) + 1)
        spec = json.loads(content)
    except (OSError, ValueError) as err:
        raise StageError("spec", f"{path} cannot be read: {err}") from err
    if len(content) > MAX_SPEC or not isinstance(spec, dict):
        raise StageError("spec", f"{path} is no JSON object of at most {MAX_SPEC} bytes")
    return spec


def check(spec: Mapping[str, Any]) -> None:
    """Refuse a spec that cannot be carried out, before anything is made. Raises SpecError."""
    for field in ("root", "process"):
        if not isinstance(spec.get(field), dict):
            raise SpecError(f"{field}: missing, or not an object")
    wanted = spec["process"]
    if not wanted.get("args"):
        raise SpecError("process.args: empty; there is nothing to execute")
    if not str(wanted.get("cwd", "")).startswith("/"):
        raise SpecError(f"process.cwd: {wanted.get('cwd')!r} is not an absolute path")
    if not isinstance(wanted.get("user", {}), dict):
        raise SpecError("process.user: not an object")
    process.check_user(wanted.get("user", {}))
    for number, mount in enumerate(spec.get("mounts") or ()):
        if not str(mount.get("destination", "")).startswith("/"):
            raise SpecError(f"mounts[{number}].destination: not an absolute path")
    check_cgroup_path((spec.get("linux") or {}).get("cgroupsPath") or "/default")


def check_cgroup_path(path: str) -> None:
    """Refuse a path that is not below the hierarchy's root: all in it is killed at the end."""
    parts = path.strip("/").split("/")
    if not path.startswith("/") or not parts[0] or {"", ".", ".."} & set(parts):
        raise SpecError(f"linux.cgroupsPath: {path!r} is not an absolute path below the root")

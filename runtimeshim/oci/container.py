"""create, from the shim's side: cgroup, streams, the fork, and the wait for the init."""

from __future__ import annotations

import os
import time

from runtimeshim import json_text, wire
from runtimeshim.linux import cgroups
from runtimeshim.linux.syscalls import set_child_subreaper
from runtimeshim.oci import filters, hooks, init, intel_rdt, net_devices, scheduling
from runtimeshim.oci import spec as oci_spec
from runtimeshim.oci.errors import SpecError, StageError
from runtimeshim.oci.idmaps import IdMaps
from runtimeshim.oci.namespaces import Namespaces
from runtimeshim.oci.stdio import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtimeshim.oci.standby import Standby

# config.json holds a seccomp profile and mounts; one that is larger is no honest spec.
MAX_SPEC = 8 * 1024 * 1024


def _load_modules(linux: Mapping[str, Any]) -> None:
    """Import, ahead of the fork, what not every container needs."""
    if linux.get("seccomp"):
        filters.load()
    if linux.get("netDevices"):
        net_devices.load()


class Container:
    """A created container: its init waits for `start`."""

    def __init__(self, bundle: str, spec: Mapping[str, Any], seccomp_cache: str | None) -> None:
        self.bundle = bundle
        self.spec = spec
        self.seccomp_cache = seccomp_cache
        self.manager = cgroups.hierarchy()
        linux: Mapping[str, Any] = spec.get("linux") or {}
        # The specification leaves the path to the runtime where the spec has none.
        self.cgroup_path = linux.get("cgroupsPath") or f"/{os.path.basename(bundle)}"
        self.invocation = init.Invocation()
        self.streams = Streams()
        self._rdt_class = ""
        self._standby: Standby | None = None
        self.needs_fork = False  # no process that stands by can become its init
        self.pid = 0
        self.pidfd = -1
        self.sync: wire.Socket | None = None
        self.timings: dict[str, int] = {}
        self.warnings: list[str] = []

    def create(
        self,
        overlay: Mapping[str, Any] | None,
        *,
        stdin: bool = False,
        stdio: tuple[int, int, int] | None = None,
        invocation: init.Invocation | None = None,
        standby: Standby | None = None,
    ) -> None:
        """Make everything up to the wait before execve. Raises StageError; undoes what it made.

        The container's streams are pipes in `streams`, or the caller's own `stdio`. With a gate in
        `invocation` it is that which starts the container, not `start`. The process that stands by
        becomes the init if it can; else it is ended.
        """
        self.invocation = invocation or self.invocation
        undo: list[Callable[[], None]] = []
        stage = "spec"
        try:
            began = time.monotonic_ns()
            oci_spec.check_cgroup_path(self.cgroup_path)
            linux: Mapping[str, Any] = self.spec.get("linux") or {}
            _load_modules(linux)
            namespaces = Namespaces(linux.get("namespaces") or (), linux)
            undo.append(namespaces.close)
            self._idmaps = IdMaps(self.spec, namespaces.user_fd)
            undo.append(self._idmaps.close)
            rdt = linux.get("intelRdt")
            if rdt:
                undo.append(self._leave_rdt_class)
                self._rdt_class = intel_rdt.prepare(rdt, self._id())
            stage = "fork"
            self.needs_fork = bool(self._idmaps.by_mount) or not namespaces.plain()
            if standby is not None and self.needs_fork:
                standby.end()
                standby = None
            self._standby = standby
            undo.append(self.delete_cgroup)
            if stdio is not None:
                self._fork(namespaces, overlay, stdio)
            elif self.spec["process"].get("terminal"):
                self._fork(namespaces, overlay, None)
            else:
                self._fork_with_pipes(namespaces, overlay, stdin)
            undo.append(self._kill)
            stage = "cgroup"
            self._make_cgroup(linux.get("resources") or {}, namespaces)
            stage = "init"
            self._wait_ready()
            namespaces.close()
            self._idmaps.close()
            self.timings["total"] = time.monotonic_ns() - began
        except BaseException as err:
            for step in reversed(undo):
                step()
            if isinstance(err, OSError | SpecError):
                raise StageError(stage, str(err), _kind(err)) from err
            raise

    def _fork_with_pipes(
        self, namespaces: Namespaces, overlay: Mapping[str, Any] | None, stdin: bool
    ) -> None:
        stdio = self.streams.open_pipes(stdin)
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
        began = time.monotonic_ns()
        if self._standby is not None and self._standby.give(self._given(overlay), stdio or ()):
            self.pid, self.sync = self._standby.pid, self._standby.sync
            self.timings["fork"] = time.monotonic_ns() - began
            self.pidfd = os.pidfd_open(self.pid)
            return
        ours, theirs = wire.core_pair()
        plan = init.Plan(
            spec=self.spec,
            bundle=self.bundle,
            overlay=overlay,
            manager=self.manager,
            cgroup_path=self.cgroup_path,
            namespaces=namespaces,
            stdio=stdio,
            seccomp_cache=self.seccomp_cache,
            invocation=self.invocation,
            idmaps=self._idmaps.by_mount,
        )
        if namespaces.user_fd is not None:
            set_child_subreaper()  # the init will be our child's child
        self.pid = namespaces.fork()
        if self.pid == 0:
            ours.close()
            init.run(plan, theirs)
        self.timings["fork"] = time.monotonic_ns() - began
        self.pidfd = os.pidfd_open(self.pid)
        theirs.close()
        self.sync = ours

    def _given(self, overlay: Mapping[str, Any] | None) -> wire.Message:
        """Return what `plan` makes the same plan of."""
        return {
            "bundle": self.bundle,
            "overlay": overlay,
            "cgroup": self.cgroup_path,
            "seccomp_cache": self.seccomp_cache,
        }

    def _make_cgroup(self, resources: Mapping[str, Any], namespaces: Namespaces) -> None:
        """Make it while the init prepares what does not depend on it, and let the init go on."""
        self.manager.create(self.cgroup_path)
        # Without any rule for devices, a container still has the default ones only.
        self.manager.apply(self.cgroup_path, {"devices": [], **resources})
        if namespaces.user_fd is None:  # else the init is a child that is still to come
            self._begin_cgroup()
        try:
            self._answer_go()
        except BrokenPipeError:  # it has ended: what it says of that is still to be read
            pass

    def _begin_cgroup(self) -> None:
        """Make one that needs a first process, unless that has ended: it says itself why."""
        try:
            self.manager.begin(self.cgroup_path, self.pid)
        except cgroups.CgroupError:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                raise

    def _wait_ready(self) -> None:
        while True:
            message, fds = self._receive()
            if "moved" in message:
                self._follow(message["moved"])
            elif "join" in message:
                self.manager.join(self.cgroup_path, self.pid)
            elif "hooks" in message:
                self._do_create_hooks()
            else:
                break
            self._answer_go()
        self.timings |= message["timings"]
        self.warnings += message["warnings"]
        if fds:
            self.streams.terminal = fds[0]
        scheduling.apply(self.spec["process"], self.pid)
        if self._rdt_class:
            intel_rdt.join(self._rdt_class, self.pid)

    def _receive(self) -> tuple[wire.Message, list[int]]:
        """Read what the init says next. Raises StageError when it says what failed, or died."""
        assert self.sync is not None
        answer = wire.receive(self.sync)
        if answer is None:
            raise StageError(
                "init", "the container's init died before it was ready: " + self._why()
            )
        message, fds = answer
        if "error" in message:
            raise StageError(message["stage"], message["error"], message["kind"])
        return message, fds

    def _answer_go(self) -> None:
        assert self.sync is not None
        wire.send(self.sync, {"op": "go"})

    def _follow(self, pid: int) -> None:
        """Go on with the child that our child made in the user namespace, and is now ours."""
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)

    def _do_create_hooks(self) -> None:
        """Do what is the runtime's before the pivot: network devices and hooks."""
        wanted = (self.spec.get("linux") or {}).get("netDevices")
        if wanted:
            net_devices.move_all(wanted, self.pid)
        hooks.run(hooks.of(self.spec, "prestart", "createRuntime"), self.state("creating"))

    def state(self, status: str) -> dict[str, Any]:
        """Return the container's state, as hooks get it."""
        pid = self.pid if status != "stopped" else 0
        return describe(self.bundle, self.spec, pid, status, self._id())

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
        answer = wire.receive(self.sync)
        self.sync.close()
        self.sync = None
        if answer is None:
            return self.run_poststart()
        message, _ = answer
        return StageError(message["stage"], message["error"], message["kind"])

    def run_poststart(self) -> StageError | None:
        """Run the poststart hooks; with one that fails the container is killed, as runc has it."""
        wanted = hooks.of(self.spec, "poststart")
        try:
            hooks.run(wanted, self.state("running") if wanted else {})
        except StageError as err:
            self.manager.kill(self.cgroup_path)
            return err
        return None

    def _id(self) -> str:
        return self.invocation.container_id or os.path.basename(self.bundle)

    def _leave_rdt_class(self) -> None:
        wanted = (self.spec.get("linux") or {}).get("intelRdt")
        if wanted:
            intel_rdt.remove(wanted, self._id())

    def run_poststop(self) -> list[str]:
        """Run the poststop hooks, once the container is gone; returns warnings."""
        self._leave_rdt_class()
        wanted = hooks.of(self.spec, "poststop")
        return hooks.run_all(wanted, self.state("stopped")) if wanted else []

    def _kill(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)

    def delete_cgroup(self) -> None:
        """End what is left of the container, and remove its cgroup."""
        self.manager.kill(self.cgroup_path)
        self.manager.delete(self.cgroup_path)


def describe(
    bundle: str, spec: Mapping[str, Any], pid: int, status: str, container_id: str = ""
) -> dict[str, Any]:
    """Return a container's state; its id is the bundle's name unless it has another."""
    return hooks.state(
        spec,
        container_id=container_id or os.path.basename(bundle),
        status=status,
        pid=pid,
        bundle=bundle,
    )


def _kind(err: OSError | SpecError) -> str:
    """Return the StageError's kind: "spec" for what no machine, or not this one, can do."""
    if isinstance(err, cgroups.CgroupError):
        return "spec" if err.is_unacceptable else "error"
    return "spec" if isinstance(err, SpecError) else "error"


def plan(given: wire.Message, fds: list[int]) -> init.Plan:
    """Return the plan of an init that has stood by, in its PID namespace already."""
    spec = load_unchecked(given["bundle"])
    linux: Mapping[str, Any] = spec.get("linux") or {}
    others = [each for each in linux.get("namespaces") or () if each["type"] != "pid"]
    return init.Plan(
        spec=spec,
        bundle=given["bundle"],
        overlay=given["overlay"],
        manager=cgroups.hierarchy(),
        cgroup_path=given["cgroup"],
        namespaces=Namespaces(others, linux),
        stdio=(fds[0], fds[1], fds[2]) if fds else None,
        seccomp_cache=given["seccomp_cache"],
        invocation=init.Invocation(),
        idmaps={},
    )


def load(bundle: str) -> Mapping[str, Any]:
    """Read config.json, and see that it can be carried out. Raises StageError."""
    spec = load_unchecked(bundle)
    try:
        oci_spec.check(spec)
    except SpecError as err:
        raise StageError("spec", str(err), "spec") from err
    return spec


def load_unchecked(bundle: str) -> Mapping[str, Any]:
    """Read config.json again: that of a created container has been checked. Raises StageError."""
    path = f"{bundle}/config.json"
    try:
        with open(path, "rb", buffering=0) as source:
            content = source.read(min(os.fstat(source.fileno()).st_size, MAX_SPEC) + 1)
        spec = json_text.loads(content)
    except (OSError, ValueError) as err:
        raise StageError("spec", f"{path} cannot be read: {err}") from err
    if len(content) > MAX_SPEC or not isinstance(spec, dict):
        raise StageError("spec", f"{path} is no JSON object of at most {MAX_SPEC} bytes")
    return spec

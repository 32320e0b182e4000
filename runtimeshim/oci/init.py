"""The child that becomes the container: from the fork to the wait before execve, and beyond.

    shim                                     init
      │ pipes, namespaces open                 │
      ├── fork ───────────────────────────────►│ limits, label, seccomp filter
      │ makes the cgroup                       │
      ├── go ─────────────────────────────────►│ joins the cgroup
      │                                        │ namespaces, root, mounts, masks, pivot
      │                                        │ user, capabilities, cwd, look-up of the program
      │◄────────────────────────────── ready ──┤ timings, warnings, the terminal's master
      ├── start ──────────────────────────────►│ seccomp, execve
      │◄──────────────── end of file, or error ┘

The socket is close-on-exec: its end is how the shim learns that execve succeeded. Without a shim,
`runtimeshim create` is on the left until "ready", and another process from "start" on: then the
two meet at runtimeshim.oci.gate.
"""

from __future__ import annotations

import _socket
import codecs
import errno
import os
import sys
import time

from runtimeshim import wire
from runtimeshim.linux import cgroups, syscalls
from runtimeshim.linux import mounts as m
from runtimeshim.oci import (
    devices,
    filters,
    hooks,
    listener,
    mapped,
    mounting,
    process,
    resolve,
    rootfs,
    scheduling,
    sysctls,
    terminal,
)
from runtimeshim.oci.errors import SpecError, StageError
from runtimeshim.oci.gate import Gate
from runtimeshim.oci.namespaces import Namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

# The exit code of a container whose program could not be started, as the peers report it.
START_FAILED = 128


# Codecs are modules that Python imports at their first use: after the pivot that would be the
# image's file, run with our privileges.
for _codec in ("ascii", "latin-1", "utf-8"):
    codecs.lookup(_codec)


def forbid_imports() -> None:
    """Leave no place to import from: everything needed is loaded, the rest is the image's."""
    sys.path.clear()
    sys.meta_path.clear()


class Invocation:
    """What a caller may ask for beside the spec: the flags of the OCI command line."""

    __slots__ = ("container_id", "gate", "new_keyring", "pivot", "preserve_fds")

    def __init__(
        self,
        *,
        gate: Gate | None = None,
        preserve_fds: int = 0,
        pivot: bool = True,
        new_keyring: bool = True,
        container_id: str = "",
    ) -> None:
        self.gate = gate  # None: the creator stays and starts it itself
        self.preserve_fds = preserve_fds  # how many from 3 on the program gets
        self.pivot = pivot  # False: chroot, for a root on a ramdisk
        self.new_keyring = new_keyring
        self.container_id = container_id  # "": the bundle's name is the container's

    def fds(self) -> list[int]:
        """Return the fds that must outlive the closing of all others."""
        preserved = list(range(3, 3 + self.preserve_fds))
        return preserved + ([] if self.gate is None else list(self.gate.fds()))


class Plan:
    """All that an init needs, put together by the shim before the fork."""

    __slots__ = (
        "bundle",
        "cgroup_path",
        "idmaps",
        "invocation",
        "manager",
        "namespaces",
        "overlay",
        "rootfs",
        "seccomp_cache",
        "spec",
        "stdio",
    )

    def __init__(
        self,
        *,
        spec: Mapping[str, Any],
        bundle: str,
        overlay: Mapping[str, Any] | None,
        manager: cgroups.CgroupManager,
        cgroup_path: str,
        namespaces: Namespaces,
        stdio: tuple[int, int, int] | None,
        seccomp_cache: str | None,
        invocation: Invocation,
        idmaps: Mapping[int, int],
    ) -> None:
        self.spec = spec
        self.bundle = bundle
        self.overlay = overlay
        self.manager = manager
        self.cgroup_path = cgroup_path
        self.namespaces = namespaces
        self.stdio = stdio  # None: a terminal
        self.seccomp_cache = seccomp_cache
        self.invocation = invocation
        self.idmaps = idmaps  # mount number -> user namespace
        self.rootfs = os.path.join(bundle, spec["root"]["path"])

    def state(self, status: str, pid: int) -> dict[str, Any]:
        """Return the container's state, as hooks and seccomp listeners get it."""
        container_id = self.invocation.container_id or os.path.basename(self.bundle)
        return hooks.state(
            self.spec, container_id=container_id, status=status, pid=pid, bundle=self.bundle
        )


class Stages:
    """Names the stage that is under way, and times those that are done."""

    __slots__ = ("_began", "name", "timings", "warnings")

    def __init__(self) -> None:
        self.name = "init"
        self.timings: dict[str, int] = {}
        self.warnings: list[str] = []
        self._began = time.monotonic_ns()

    def enter(self, name: str) -> None:
        """End the running stage and begin `name`."""
        now = time.monotonic_ns()
        self.timings[self.name] = self.timings.get(self.name, 0) + now - self._began
        self.name = name
        self._began = now


def run(plan: Plan, sync: wire.Socket) -> NoReturn:
    """Become the container, or tell the shim why not; never returns."""
    stages = Stages()
    gate = plan.invocation.gate
    forbid_imports()
    try:
        launch, master = _isolate(plan, sync, stages)
        stages.enter("created")
        if gate is not None and launch.failure is not None:
            raise launch.failure  # callers of an OCI runtime expect it of create
        warnings = stages.warnings + launch.warnings
        ready = {"timings": stages.timings, "warnings": warnings}
        wire.send(sync, ready, [] if master is None else [master])
        if master is not None:
            os.close(master)
        if gate is not None:
            sync.close()
            gate.wait()
        elif wire.receive(sync) is None:  # the shim is gone, and with it who could start us
            os._exit(START_FAILED)
        hooks.run(hooks.of(plan.spec, "startContainer"), plan.state("created", os.getpid()))
        launch.go()
    except BaseException as err:  # noqa: BLE001 - a forked child must not unwind into its parent
        if gate is not None and sync.fileno() < 0:
            gate.report(failure_message(stages.name, err))
        else:
            report(sync, stages.name, err)
    finally:
        os._exit(START_FAILED)


def report(sync: wire.Socket, stage: str, err: BaseException) -> None:
    """Tell the other end what failed and where."""
    wire.send(sync, failure_message(stage, err))


def failure_message(stage: str, err: BaseException) -> wire.Message:
    """Return what Container makes a StageError of again."""
    if isinstance(err, StageError):
        return {"error": err.message, "stage": err.stage, "kind": err.kind}
    if isinstance(err, SpecError):
        return {"error": wire.brief(str(err)), "stage": stage, "kind": "spec"}
    if isinstance(err, OSError) and err.filename is not None:
        text = f"{err.strerror}: {err.filename}"
    else:
        text = str(err) or type(err).__name__
    return {"error": wire.brief(text), "stage": stage, "kind": "error"}


def _isolate(plan: Plan, sync: wire.Socket, stages: Stages) -> tuple[process.Launch, int | None]:
    spec = plan.spec
    syscalls.set_not_dumpable()
    _prepare_host_side(plan, stages)
    stages.enter("seccomp-compile")
    filter_ = filters.prepare((spec.get("linux") or {}).get("seccomp"), plan.seccomp_cache)
    connection = listener.connect((spec.get("linux") or {}).get("seccomp"))
    around = _surroundings(plan)
    stages.enter("cgroup")  # is being made meanwhile
    _await_go(sync)
    in_user_namespace = plan.namespaces.user_fd is not None
    if not in_user_namespace:
        plan.manager.join(plan.cgroup_path, 0)
    stages.enter("namespaces")
    if in_user_namespace:
        root, master, label = _enter_by_user_namespace(plan, sync, stages, around)
    else:
        label = process.open_exec_label(spec["process"])
        root, master = _enter(plan, sync, stages, around)
    install = _notifying(plan, filter_, connection)
    stages.enter("pivot")
    if plan.invocation.pivot:
        rootfs.pivot(root)
    else:
        rootfs.move_to_root(root)
    os.close(root)
    rootfs.set_propagation((spec.get("linux") or {}).get("rootfsPropagation"))
    if (spec.get("root") or {}).get("readonly"):
        rootfs.make_root_readonly()
    stages.enter("credentials")
    needed = [fd for fd in (label and label[0], master, connection) if fd is not None]
    syscalls.close_all_but([sync.fileno(), *plan.invocation.fds(), *needed])
    scheduling.apply_own(spec.get("linux") or {})
    return process.prepare(spec["process"], install, label), master


def _surroundings(plan: Plan) -> mounting.Surroundings:
    linux: Mapping[str, Any] = plan.spec.get("linux") or {}
    label = linux.get("mountLabel") or ""
    mounting.check_label(label)
    own = any(each["type"] == "cgroup" for each in linux.get("namespaces") or ())
    return mounting.Surroundings(
        cgroups=plan.manager.mounts(),
        cgroup_directories=() if own else plan.manager.directories(plan.cgroup_path),
        idmaps=plan.idmaps,
        label=label,
    )


def _notifying(
    plan: Plan, filter_: Callable[[], int] | None, connection: int | None
) -> Callable[[], object] | None:
    """Return the filter's installation, with the notify fd sent to the listener if there is one."""
    if filter_ is None or connection is None:
        return filter_
    profile = plan.spec["linux"]["seccomp"]
    return listener.wrap(filter_, connection, profile, plan.state("creating", listener.host_pid()))


def _enter(
    plan: Plan, sync: wire.Socket, stages: Stages, around: mounting.Surroundings
) -> tuple[int, int | None]:
    """Enter the namespaces and fill the root; returns its fd, and the terminal's master."""
    plan.namespaces.enter()
    _set_names(plan.spec)
    stages.enter("rootfs")
    rootfs.detach_from_host((plan.spec.get("linux") or {}).get("rootfsPropagation"), plan.rootfs)
    if plan.overlay is not None:
        rootfs.mount_overlay(plan.overlay, plan.rootfs, around.label)
    else:
        rootfs.bind_root(plan.rootfs)
    root = os.open(plan.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return root, _fill_root(root, plan, sync, stages, around, None)


def _enter_by_user_namespace(
    plan: Plan, sync: wire.Socket, stages: Stages, around: mounting.Surroundings
) -> tuple[int, int | None, tuple[int, bytes] | None]:
    """The same with a user namespace, which must own the others; only our child returns.

    A PID namespace is entered by a fork, so it takes one more once we are in the user namespace.
    The shim hears of the child's pid; only the child joins the cgroup, whose limit may be one task.
    The child opens its LSM label, too, which it returns: the kernel lets nobody else write to it.
    """
    user = plan.namespaces.user_fd
    assert user is not None
    rootfs.detach_from_host((plan.spec.get("linux") or {}).get("rootfsPropagation"), plan.rootfs)
    prepared = mapped.prepare(plan.spec, plan.rootfs, plan.overlay, user, around)
    cgroup = mapped.open_cgroup(plan.manager.directories(plan.cgroup_path))
    plan.namespaces.enter_user()
    pid = os.fork()
    if pid != 0:
        wire.send(sync, {"moved": pid})
        os._exit(0)
    _await_go(sync)
    if not mapped.join_cgroup(cgroup):
        wire.send(sync, {"join": True})
        _await_go(sync)
    os.setsid()
    label = process.open_exec_label(plan.spec["process"])
    syscalls.set_not_dumpable()  # a change of uid has reset it
    plan.namespaces.made |= syscalls.CLONE_NEWNS
    plan.namespaces.enter()
    _set_names(plan.spec)
    stages.enter("rootfs")
    m.move_mount(prepared.root, m.AT_FDCWD)
    master = _fill_root(prepared.root, plan, sync, stages, around, prepared)
    return prepared.root, master, label


def _await_go(sync: wire.Socket) -> None:
    if wire.receive(sync) is None:  # the shim is gone, and with it who could start us
        os._exit(START_FAILED)


def _prepare_host_side(plan: Plan, stages: Stages) -> None:
    """What needs the host's procfs, or a kernel that still trusts us."""
    os.setsid()
    if plan.invocation.new_keyring:
        _leave_keyring()
    wanted = plan.spec["process"]
    warning = process.set_oom_score_adj(wanted.get("oomScoreAdj"))
    if warning is not None:
        stages.warnings.append(warning)
    process.set_rlimits(wanted.get("rlimits") or ())
    if plan.stdio is not None:
        for target, fd in enumerate(plan.stdio):
            os.dup2(fd, target)


def _leave_keyring() -> None:
    """Begin a session keyring of our own: keys of the caller are none of the container's."""
    try:
        syscalls.join_session_keyring(None)
    except OSError as err:
        if err.errno != errno.ENOSYS:  # a kernel without keys has none to leave
            raise


def _set_names(spec: Mapping[str, Any]) -> None:
    """Set host and domain name; the spec's check has seen that it has a UTS namespace."""
    if spec.get("hostname"):
        _socket.sethostname(spec["hostname"])
    if spec.get("domainname"):
        syscalls.setdomainname(spec["domainname"])


def _fill_root(
    root: int,
    plan: Plan,
    sync: wire.Socket,
    stages: Stages,
    around: mounting.Surroundings,
    prepared: mapped.Prepared | None,
) -> int | None:
    """Make mounts, devices, masks; returns the terminal's master where there is one."""
    spec = plan.spec
    linux: Mapping[str, Any] = spec.get("linux") or {}
    mounts = spec.get("mounts") or ()
    stages.enter("mounts")
    mounting.mount_all(root, mounts, around)
    os.close(resolve.make_directory(root, spec["process"]["cwd"]))
    stages.enter("devices")
    if prepared is not None and prepared.devices is not None:
        devices.bind(root, prepared.devices)
    elif prepared is None and not mounting.is_bind(mounts, "/dev"):
        devices.fill(root, linux.get("devices") or ())
    master = _open_terminal(root, spec["process"]) if plan.stdio is None else None
    _run_create_hooks(plan, sync, stages)
    stages.enter("masks")
    sysctls.write(linux.get("sysctl") or {})
    rootfs.mask_paths(root, linux.get("maskedPaths") or (), around.label)
    rootfs.protect_paths(root, linux.get("readonlyPaths") or ())
    return master


def _run_create_hooks(plan: Plan, sync: wire.Socket, stages: Stages) -> None:
    """Let the runtime do its part, then run the container's hooks, as all mounts are there."""
    linux: Mapping[str, Any] = plan.spec.get("linux") or {}
    if linux.get("netDevices") or hooks.of(plan.spec, "prestart", "createRuntime"):
        stages.enter("hooks")
        wire.send(sync, {"hooks": True})
        _await_go(sync)
    own = hooks.of(plan.spec, "createContainer")
    if own:
        stages.enter("hooks")
        hooks.run(own, plan.state("creating", os.getpid()))


def _open_terminal(root: int, wanted: Mapping[str, Any]) -> int:
    master, slave = terminal.open_pair(root)
    terminal.bind_console(root, slave)
    size = wanted.get("consoleSize") or {}
    terminal.set_size(master, size.get("width", 0), size.get("height", 0))
    terminal.take_control(slave)
    return master

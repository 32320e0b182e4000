"""The child that becomes the container: from the fork to the wait before execve, and beyond.

    shim                                     init
      │ cgroup made, pipes, namespaces open    │
      ├── fork ───────────────────────────────►│ joins the cgroup
      │                                        │ namespaces, root, mounts, masks, pivot
      │                                        │ user, capabilities, cwd, look-up of the program
      │◄────────────────────────────── ready ──┤ timings, warnings, the terminal's master
      ├── start ──────────────────────────────►│ seccomp, execve
      │◄──────────────── end of file, or error ┘

The socket is close-on-exec: its end is how the shim learns that execve succeeded.
"""

from __future__ import annotations

import codecs
import os
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from runtimeshim import wire
from runtimeshim.linux import cgroups, syscalls
from runtimeshim.oci import filters, process, resolve, rootfs, terminal
from runtimeshim.oci.errors import SpecError, StageError
from runtimeshim.oci.namespaces import Namespaces

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


class Plan:
    """All that an init needs, put together by the shim before the fork."""

    __slots__ = (
        "bundle",
        "cgroup_path",
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
    ) -> None:
        self.spec = spec
        self.bundle = bundle
        self.overlay = overlay
        self.manager = manager
        self.cgroup_path = cgroup_path
        self.namespaces = namespaces
        self.stdio = stdio  # None: a terminal
        self.seccomp_cache = seccomp_cache
        self.rootfs = os.path.join(bundle, spec["root"]["path"])


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


def run(plan: Plan, sync: socket.socket) -> NoReturn:
    """Become the container, or tell the shim why not; never returns."""
    stages = Stages()
    forbid_imports()
    try:
        launch, master = _isolate(plan, sync, stages)
        stages.enter("created")
        warnings = stages.warnings + launch.warnings
        ready = {"timings": stages.timings, "warnings": warnings}
        wire.send(sync, ready, [] if master is None else [master])
        if master is not None:
            os.close(master)
        if wire.receive(sync) is None:  # the shim is gone, and with it who could start us
            os._exit(START_FAILED)
        launch.go()
    except BaseException as err:  # noqa: BLE001 - a forked child must not unwind into its parent
        report(sync, stages.name, err)
    finally:
        os._exit(START_FAILED)


def report(sync: socket.socket, stage: str, err: BaseException) -> None:
    """Tell the other end what failed and where."""
    if isinstance(err, StageError):
        message = {"error": err.message, "stage": err.stage, "kind": err.kind}
    elif isinstance(err, SpecError):
        message = {"error": str(err), "stage": stage, "kind": "spec"}
    elif isinstance(err, OSError) and err.filename is not None:
        message = {"error": f"{err.strerror}: {err.filename}", "stage": stage, "kind": "error"}
    else:
        message = {"error": str(err) or type(err).__name__, "stage": stage, "kind": "error"}
    wire.send(sync, message)


def _isolate(plan: Plan, sync: socket.socket, stages: Stages) -> tuple[process.Launch, int | None]:
    spec = plan.spec
    linux: Mapping[str, Any] = spec.get("linux") or {}
    stages.enter("cgroup-join")
    plan.manager.join(plan.cgroup_path, 0)
    syscalls.set_not_dumpable()
    _prepare_host_side(plan, stages)
    label = process.open_exec_label(spec["process"])
    stages.enter("seccomp-compile")
    filter_ = filters.prepare(linux.get("seccomp"), plan.seccomp_cache)
    stages.enter("namespaces")
    plan.namespaces.enter()
    _set_names(spec, plan.namespaces.made)
    stages.enter("rootfs")
    rootfs.detach_from_host(linux.get("rootfsPropagation"), plan.rootfs)
    if plan.overlay is not None:
        rootfs.mount_overlay(plan.overlay, plan.rootfs)
    else:
        rootfs.bind_root(plan.rootfs)
    root = os.open(plan.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    master = _fill_root(root, plan, stages)
    stages.enter("pivot")
    rootfs.pivot(root)
    os.close(root)
    if (spec.get("root") or {}).get("readonly"):
        rootfs.make_root_readonly()
    stages.enter("credentials")
    syscalls.close_all_but(
        [sync.fileno()]
        + ([] if label is None else [label[0]])
        + ([] if master is None else [master])
    )
    return process.prepare(spec["process"], filter_, label), master


def _prepare_host_side(plan: Plan, stages: Stages) -> None:
    """What needs the host's procfs, or a kernel that still trusts us."""
    os.setsid()
    wanted = plan.spec["process"]
    warning = process.set_oom_score_adj(wanted.get("oomScoreAdj"))
    if warning is not None:
        stages.warnings.append(warning)
    process.set_rlimits(wanted.get("rlimits") or ())
    if plan.stdio is not None:
        for target, fd in enumerate(plan.stdio):
            os.dup2(fd, target)


def _set_names(spec: Mapping[str, Any], made: int) -> None:
    """Set host and domain name, in a UTS namespace of our own only: another one is not ours."""
    if not made & syscalls.CLONE_NEWUTS:
        return
    if spec.get("hostname"):
        socket.sethostname(spec["hostname"])
    if spec.get("domainname"):
        syscalls.setdomainname(spec["domainname"])


def _fill_root(root: int, plan: Plan, stages: Stages) -> int | None:
    """Make mounts, devices, masks; returns the terminal's master where there is one."""
    spec = plan.spec
    linux: Mapping[str, Any] = spec.get("linux") or {}
    mounts = spec.get("mounts") or ()
    stages.enter("mounts")
    rootfs.mount_all(root, mounts, plan.manager.mounts())
    os.close(resolve.make_directory(root, spec["process"]["cwd"]))
    stages.enter("devices")
    if not rootfs.is_bind(mounts, "/dev"):
        rootfs.make_devices(root, linux.get("devices") or ())
    master = _open_terminal(root, spec["process"]) if plan.stdio is None else None
    stages.enter("masks")
    rootfs.write_sysctls(linux.get("sysctl") or {})
    rootfs.mask_paths(root, linux.get("maskedPaths") or ())
    rootfs.protect_paths(root, linux.get("readonlyPaths") or ())
    return master


def _open_terminal(root: int, wanted: Mapping[str, Any]) -> int:
    master, slave = terminal.open_pair(root)
    terminal.bind_console(root, slave)
    size = wanted.get("consoleSize") or {}
    terminal.set_size(master, size.get("width", 0), size.get("height", 0))
    terminal.take_control(slave)
    return master

"""exec: a process of its own in a running container (EXECUTOR.md: no rootfs, hooks or masks)."""

from __future__ import annotations

import os

from runtimeshim import wire
from runtimeshim.linux import cgroups, syscalls
from runtimeshim.oci import (
    filters,
    init,
    listener,
    namespaces,
    process,
    scheduling,
    terminal,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn


def run(
    target: Mapping[str, Any],
    *,
    pidfd: int,
    manager: cgroups.CgroupManager,
    cgroup_path: str,
    seccomp_profile: Mapping[str, Any] | None,
    seccomp_cache: str | None,
    stdio: tuple[int, int, int] | None,
    sync: wire.Socket,
    preserve_fds: int = 0,
    linux: Mapping[str, Any] | None = None,
    state: Mapping[str, Any] | None = None,
    own_cgroup: str = "",
    joined: str = "",
    init_pid: int = 0,
) -> NoReturn:
    """Join the container of `pidfd` and execve; runs in a fork that is in its PID namespace.

    `linux` is that object of the container's spec, `state` what a seccomp listener is told. With
    `own_cgroup`, a name, it and what it starts can be killed together (CgroupManager.join_own);
    `joined` is the path of that cgroup where it is in it already.
    """
    stages = init.Stages()
    init.forbid_imports()
    try:
        syscalls.set_not_dumpable()
        scheduling.set_affinity(target, "initial")
        stages.enter("cgroup-join")
        own = joined
        if own_cgroup and not joined:
            own = manager.join_own(cgroup_path, own_cgroup, init_pid)
        elif not joined:
            manager.join_beside(cgroup_path, init_pid)
        stages.enter("host-side")
        scheduling.set_affinity(target, "final")
        os.setsid()
        process.set_oom_score_adj(target.get("oomScoreAdj"))
        process.set_rlimits(target.get("rlimits") or ())
        label = process.open_exec_label(target)
        stages.enter("seccomp-compile")
        install = _installation(seccomp_profile, seccomp_cache, state)
        stages.enter("namespaces")
        scheduling.apply(target, 0)
        scheduling.apply_own(linux or {})
        namespaces.join_all(pidfd)
        os.chdir("/")
        _take_streams(target, stdio, sync)
        stages.enter("credentials")
        kept = [sync.fileno(), *range(3, 3 + preserve_fds), *install.fds]
        syscalls.close_all_but(kept + ([] if label is None else [label[0]]))
        launch = process.prepare(target, install.run, label)
        stages.enter("exec")
        wire.send(sync, {"cgroup": own, "timings": stages.timings})
        launch.go()
    except BaseException as err:  # noqa: BLE001 - a forked child must not unwind into its parent
        init.report(sync, stages.name, err)
    finally:
        os._exit(init.START_FAILED)


class _Installation:
    """How the filter of the container gets to a process: `run`, with the fds that it needs."""

    __slots__ = ("fds", "run")

    def __init__(self, run: Callable[[], object] | None, fds: list[int]) -> None:
        self.run = run
        self.fds = fds


def _installation(
    profile: Mapping[str, Any] | None, cache: str | None, state: Mapping[str, Any] | None
) -> _Installation:
    install = filters.prepare(profile, cache)
    connection = listener.connect(profile)
    if install is None or profile is None or connection is None:
        return _Installation(install, [])
    given = {"ociVersion": "", **(state or {}), "pid": listener.host_pid()}
    return _Installation(listener.wrap(install, connection, profile, given), [connection])


def _take_streams(
    target: Mapping[str, Any], stdio: tuple[int, int, int] | None, sync: wire.Socket
) -> None:
    if stdio is not None:
        for number, fd in enumerate(stdio):
            os.dup2(fd, number)
        return
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    master, slave = terminal.open_pair(root)
    size = target.get("consoleSize") or {}
    terminal.set_size(master, size.get("width", 0), size.get("height", 0))
    terminal.take_control(slave)
    wire.send(sync, {"terminal": True}, [master])
    os.close(master)
    os.close(root)

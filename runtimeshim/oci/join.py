"""exec: a process of its own in a running container (EXECUTOR.md: no rootfs, hooks or masks)."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any, NoReturn

from runtimeshim import wire
from runtimeshim.linux import cgroups, syscalls
from runtimeshim.oci import filters, init, namespaces, process, terminal


def run(
    target: Mapping[str, Any],
    *,
    pidfd: int,
    manager: cgroups.CgroupManager,
    cgroup_path: str,
    seccomp_profile: Mapping[str, Any] | None,
    seccomp_cache: str | None,
    stdio: tuple[int, int, int] | None,
    sync: socket.socket,
) -> NoReturn:
    """Join the container of `pidfd` and execve; runs in a fork that is in its PID namespace."""
    stage = "exec"
    init.forbid_imports()
    try:
        manager.join(cgroup_path, 0)
        syscalls.set_not_dumpable()
        os.setsid()
        process.set_oom_score_adj(target.get("oomScoreAdj"))
        process.set_rlimits(target.get("rlimits") or ())
        label = process.open_exec_label(target)
        filter_ = filters.prepare(seccomp_profile, seccomp_cache)
        syscalls.setns(pidfd, namespaces.ALL)
        os.chdir("/")
        _take_streams(target, stdio, sync)
        syscalls.close_all_but([sync.fileno()] + ([] if label is None else [label[0]]))
        process.prepare(target, filter_, label).go()
    except BaseException as err:  # noqa: BLE001 - a forked child must not unwind into its parent
        init.report(sync, stage, err)
    finally:
        os._exit(init.START_FAILED)


def _take_streams(
    target: Mapping[str, Any], stdio: tuple[int, int, int] | None, sync: socket.socket
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

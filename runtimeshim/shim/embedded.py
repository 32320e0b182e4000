"""The embedded executor as a runtime handler: runtimeshim.oci, in this process and its forks."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Mapping
from typing import Any, NoReturn

from runtimeshim import wire
from runtimeshim.oci import container as oci
from runtimeshim.oci import init, join, spec
from runtimeshim.oci.errors import StageError
from runtimeshim.oci.namespaces import Namespaces
from runtimeshim.oci.standby import Standby
from runtimeshim.shim.handler import Stdio
from runtimeshim.shim.task import Task, fds_of


class Embedded:
    """See Handler."""

    def create(
        self, request: wire.Message, standby: Standby | None
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """See Handler."""
        bundle, options = request["bundle"], request["options"]
        container = oci.Container(bundle, oci.load(bundle), options["seccomp_cache"])
        container.create(options["rootfs"], stdin=options["stdin"], standby=standby)
        linux = container.spec.get("linux") or {}
        made = {
            "pid": container.pid,
            "cgroup": container.cgroup_path,
            "hooks": bool(container.spec.get("hooks") or linux.get("intelRdt")),
            "forked": container.needs_fork,
            "timings": container.timings,
            "warnings": container.warnings,
        }
        fds = fds_of(container.streams, container.pidfd, None)
        assert container.sync is not None
        return made, {**fds, "sync": container.sync.detach()}

    def abandon(self, request: wire.Message, made: dict[str, Any]) -> None:
        """See Handler."""
        bundle = request["bundle"]
        oci.Container(bundle, oci.load_unchecked(bundle), None).delete_cgroup()

    def start(self, task: Task) -> None:
        """See Handler."""
        assert task.sync is not None
        wire.send(task.sync, {"op": "start"})

    def finish_start(self, task: Task) -> None:
        """See Handler."""
        if task.sync is None:
            return
        try:
            self.start(task)
        except OSError:  # EPIPE: it has executed its program, which closed its end
            task.close_sync()
            return
        task.started()  # a failure ends the init, and its exit code tells

    def started(self, task: Task) -> StageError | None:
        """See Handler."""
        return _load(task).run_poststart() if task.hooks else None

    def fork_exec(
        self, task: Task, target: int, stdio: Stdio, name: str
    ) -> tuple[int, socket.socket, str]:
        """See Handler. Raises OSError: the init has gone."""
        ours, theirs = wire.pair()
        namespaces = Namespaces([])
        try:
            # By the pidfd: the init's number may be another's by now (man 2 setns, Linux 5.8).
            namespaces.pid_fd = os.dup(task.pidfd)
            pid, cgroup = _fork(namespaces, task, name)
            if pid == 0:
                _become(task, target, stdio, theirs, name, cgroup)
        except BaseException:
            ours.close()
            raise
        finally:
            namespaces.close()
            theirs.close()
        return pid, ours, cgroup

    def kill(self, task: Task, number: int) -> socket.socket | None:
        """See Handler. By pidfd: an adopted init is reaped by another, its number given away."""
        signal.pidfd_send_signal(task.pidfd, number)
        return None

    def finish(self, task: Task) -> list[str]:
        """See Handler."""
        return _load(task).run_poststop() if task.hooks else []


def _load(task: Task) -> oci.Container:
    loaded = oci.Container(task.bundle, oci.load_unchecked(task.bundle), task.seccomp_cache)
    loaded.pid = task.pid
    return loaded


def _fork(namespaces: Namespaces, task: Task, name: str) -> tuple[int, str]:
    """Fork into a cgroup of its own, and return its path; "" where the child has to join one."""
    opened = task.manager.open_own(task.cgroup_path, name)
    if opened is None:
        return namespaces.fork(), ""
    path, directory = opened
    try:
        return namespaces.fork(directory), path
    except OSError:  # a kernel before 5.7, a filter of the node's own, or a limit of the cgroup's
        task.manager.remove_empty(path)
        return namespaces.fork(), ""
    finally:
        os.close(directory)


def _become(
    task: Task, target: int, stdio: Stdio, sync: socket.socket, name: str, joined: str
) -> NoReturn:
    try:
        wanted = _read_process(target)
        if not wanted.get("terminal") and stdio is None:
            raise StageError("spec", "an exec without a terminal needs three streams", "spec")
        container = oci.load_unchecked(task.bundle)
        linux: Mapping[str, Any] = container.get("linux") or {}
        state = oci.describe(task.bundle, container, task.pid, "running")
    except BaseException as err:  # noqa: BLE001 - a forked child must not unwind into its parent
        init.report(sync, "spec", err)
        os._exit(init.START_FAILED)
    join.run(
        wanted,
        pidfd=task.pidfd,
        manager=task.manager,
        cgroup_path=task.cgroup_path,
        own_cgroup=name,
        joined=joined,
        init_pid=task.pid,
        seccomp_profile=linux.get("seccomp"),
        seccomp_cache=task.seccomp_cache,
        stdio=stdio,
        sync=sync,
        linux=linux,
        state=state,
    )


def _read_process(file: int) -> Mapping[str, Any]:
    """Read the OCI process object, and see that it can be carried out. Raises SpecError."""
    wanted: Mapping[str, Any] = json.loads(os.pread(file, oci.MAX_SPEC, 0))
    spec.check_process(wanted)
    return wanted

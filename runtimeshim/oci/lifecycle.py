"""start, kill and delete of a container that nobody supervises."""

from __future__ import annotations

import os
import select

from runtimeshim.linux.cgroups import CgroupManager
from runtimeshim.linux.cgroups.files import signal_all
from runtimeshim.linux.signals import signal
from runtimeshim.oci import gate, hooks, state
from runtimeshim.oci.errors import StageError
from runtimeshim.oci.state import ContainerError, Directory, NotFoundError, Record

# A killed process is gone in milliseconds, or hangs in the kernel: as long as runc waits.
KILL_SECONDS = 10.0


def start(directory: Directory, manager: CgroupManager) -> None:
    """Let a created container's program run. Needs the lock.

    Raises ContainerError where it waits for no start, StageError when execve or a hook fails: the
    container is over then.
    """
    record = directory.record()
    now = state.status(directory.path, record, manager)
    if now == state.STOPPED:
        raise ContainerError("cannot start a container that has stopped")
    if now != state.CREATED:
        raise ContainerError("cannot start an already running container")
    failure = gate.release(directory.path)
    if failure is not None:
        raise StageError(failure["stage"], failure["error"], failure["kind"])
    wanted = hooks.of(directory.spec(), "poststart")
    try:
        hooks.run(wanted, state.describe(record, state.RUNNING))
    except StageError:
        manager.kill(record.cgroup_path)
        raise


def kill(record: Record, manager: CgroupManager, number: int, *, everyone: bool = False) -> None:
    """Signal the init, or every process. Raises ContainerError when the container has ended.

    SIGKILL reaches a paused container too, and all of one that shares its PID namespace: there
    the kernel does not end the others with the init.
    """
    if everyone and number == signal.SIGKILL:
        manager.kill(record.cgroup_path)
    elif everyone:
        signal_all(manager.pids(record.cgroup_path), number)
    else:
        state.send_signal(record, number)
        if number == signal.SIGKILL:
            manager.kill(record.cgroup_path)


def delete(directory: Directory, manager: CgroupManager, *, force: bool) -> list[str]:
    """Remove a container that has ended or never started; with `force`, any. Needs the lock.

    Returns warnings of its poststop hooks. Raises ContainerError, also when a killed init does not
    end.
    """
    try:
        record = directory.record()
    except NotFoundError:
        directory.remove()  # its creation was killed before there was anything else
        raise
    now = state.status(directory.path, record, manager)
    if now not in (state.STOPPED, state.CREATED) and not force:
        raise ContainerError(f"cannot delete container {record.id} that is not stopped: {now}")
    if now == state.STOPPED:
        manager.kill(record.cgroup_path)
    else:
        _end(record, manager)
    manager.delete(record.cgroup_path)
    wanted = hooks.of(directory.spec(), "poststop")
    directory.remove()
    return hooks.run_all(wanted, state.describe(record, state.STOPPED))


def _end(record: Record, manager: CgroupManager) -> None:
    """Kill the container and wait for its init's end: not for the parent, who may never reap it."""
    try:
        pidfd = record.open_init()
    except ContainerError:  # it ended just now; others may be left
        manager.kill(record.cgroup_path)
        return
    try:
        manager.kill(record.cgroup_path)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(KILL_SECONDS * 1000):
            raise ContainerError("container init still running")
    finally:
        os.close(pidfd)

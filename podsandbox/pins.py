"""What keeps a sandbox alive without a process of its own: the pins below RUN/sandboxes/ID.

    ns/{net,ipc,uts,pid,user}        bind mounts of nsfs
    shm                              the pod's /dev/shm, a tmpfs
    init.json                        pid and start time of the shared PID namespace's pid 1

A mount namespace that was copied while a pin was there (a service's, a container's with the host's
/) has the pin too. Removing the file or directory it is mounted on takes it from there as well
(d_invalidate in the kernel's fs/dcache.c, since Linux 3.18), so that it cannot keep the namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from api.errors import InternalError
from podsandbox.namespaces_worker import start_time
from runtimeshim.linux import mounts

# A killed pid 1 has gone when all of its namespace has; what waits for a device can take longer.
_KILL_TIMEOUT_SECONDS = 10.0


def release(directory: Path) -> None:
    """Unmount and remove every pin; idempotent. Processes inside keep their namespaces alive."""
    release_but_network(directory)
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory / "ns"):
            _unpin(directory / "ns" / name)
        (directory / "ns").rmdir()


def release_but_network(directory: Path) -> None:
    """Release what detaching the network does not need, as `release` does."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory / "ns"):
            if name != "net":
                _unpin(directory / "ns" / name)
    shm = directory / "shm"
    with contextlib.suppress(FileNotFoundError):
        _unmount(shm)
        shm.rmdir()


def _unpin(path: Path) -> None:
    _unmount(path)
    path.unlink()


def is_pinned(path: Path) -> bool:
    """Tell whether a namespace is bound there: nsfs is another file system than its directory's."""
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except OSError:  # gone
        return False


def _unmount(path: Path) -> None:
    while True:
        try:
            mounts.umount(str(path), mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW)
        except OSError as err:
            if err.errno == errno.EINVAL:  # no mount, or no longer one
                return
            raise


async def kill_init(directory: Path) -> None:
    """Kill the pod's pid 1 and wait for it: the kernel ends its namespace's processes with it.

    Idempotent. A process that has got the same pid since is left alone.
    """
    with contextlib.suppress(FileNotFoundError):
        with _open_init(directory / "init.json") as pidfd:
            if pidfd is not None:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                await _exited(pidfd, directory)
        (directory / "init.json").unlink()


@contextlib.contextmanager
def _open_init(path: Path) -> Iterator[int | None]:
    record = json.loads(path.read_text(encoding="ascii"))
    try:
        pidfd = os.pidfd_open(record["pid"])
    except ProcessLookupError:
        yield None
        return
    try:
        yield pidfd if _is_same(record["pid"], record["start_time"]) else None
    finally:
        os.close(pidfd)


def _is_same(pid: int, expected: int) -> bool:
    """Compare after the pidfd is open, so that a pid reused in between is noticed."""
    try:
        return start_time(pid) == expected
    except (FileNotFoundError, ProcessLookupError):
        return False


async def _exited(pidfd: int, directory: Path) -> None:
    """Wait until the process of `pidfd` has exited: the fd is readable then (man 2 pidfd_open)."""
    loop = asyncio.get_running_loop()
    exited = asyncio.Event()
    loop.add_reader(pidfd, exited.set)
    try:
        await asyncio.wait_for(exited.wait(), _KILL_TIMEOUT_SECONDS)
    except TimeoutError as err:
        raise InternalError(
            f"sandbox {directory.name}: its PID namespace did not end within"
            f" {_KILL_TIMEOUT_SECONDS:g} s of SIGKILL"
        ) from err
    finally:
        loop.remove_reader(pidfd)

"""One daemon per root and per run directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path


class LockedError(Exception):
    """Another daemon works on the directory."""


class Lock:
    """Exclusive locks on directories, held until the process ends or `release`."""

    def __init__(self, directories: Sequence[Path]) -> None:
        """Lock `criserver.lock` in each directory. Raises LockedError, or OSError."""
        self._fds: list[int] = []
        try:
            for directory in directories:
                self._fds.append(_lock(directory / "criserver.lock"))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the locks back."""
        while self._fds:
            os.close(self._fds.pop())


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise LockedError(f"another criserver (pid {owner}) works in {path.parent}") from err
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd

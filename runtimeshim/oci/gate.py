"""How a container is held before execve, when nobody stays behind who could let it go.

`create` ends, and `start` is another process. Two FIFOs in the container's directory connect it to
the init, which has both open since before the fork:

    start                                    init
      │                                        │ read(start.fifo): waits
      ├── one byte ───────────────────────────►│ seccomp, execve
      │◄──────────────── end of file, or error ┘ outcome.fifo

A FIFO, since reading one is the least that a seccomp filter, loaded by then, has to allow. Whether
a container waits is asked of the kernel: start.fifo has a reader exactly as long.
"""

from __future__ import annotations

import errno
import os

from runtimeshim import json_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

START = "start.fifo"
OUTCOME = "outcome.fifo"

_CHUNK = 4096


class Gate:
    """The init's side."""

    __slots__ = ("_outcome", "_start")

    def __init__(self, directory: str) -> None:
        self._outcome = _make(f"{directory}/{OUTCOME}")
        self._start = _make(f"{directory}/{START}")  # last: by it the gate is known to be there

    def fds(self) -> tuple[int, int]:
        """Return what has to stay open until execve."""
        return self._start, self._outcome

    def wait(self) -> None:
        """Wait for `release`."""
        os.read(self._start, 1)

    def report(self, failure: dict[str, Any]) -> None:
        """Tell the process in `release` what failed."""
        os.write(self._outcome, json_text.dumps(failure).encode())

    def close(self) -> None:
        """Let go of both ends: what the creator does once the init has them."""
        for fd in self.fds():
            os.close(fd)


def _make(path: str) -> int:
    """Make a FIFO and open it to read and write: neither end waits for the other to open it."""
    os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def is_held(directory: str) -> bool:
    """Tell whether an init waits behind the gate of this directory."""
    try:
        os.close(_open_start(directory))
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENXIO):
            return False
        raise
    return True


def _open_start(directory: str) -> int:
    """Open to write without waiting: ENXIO when nobody has it open to read (man 7 fifo)."""
    return os.open(f"{directory}/{START}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def release(directory: str) -> dict[str, Any] | None:
    """Let the init execve; returns what failed, or None when the program runs.

    Raises OSError (ENXIO, ENOENT) when no init waits.
    """
    outcome = os.open(f"{directory}/{OUTCOME}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        start = _open_start(directory)
        try:
            os.write(start, b"\0")
        finally:
            os.close(start)
        os.set_blocking(outcome, True)
        content = b"".join(iter(lambda: os.read(outcome, _CHUNK), b""))
    finally:
        os.close(outcome)
    for name in (START, OUTCOME):
        os.unlink(f"{directory}/{name}")
    if not content:
        return None
    failure: dict[str, Any] = json_text.loads(content)
    return failure

"""A container's terminal, passed through to ours for as long as a process of it runs."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_CHUNK = 65536


def begin(process: dict[str, Any]) -> None:
    """Have the terminal of a process to come begin with the size of ours, where we have one."""
    size = _size()
    if size is not None and "consoleSize" not in process:
        height, width = struct.unpack_from("HH", size)
        process["consoleSize"] = {"height": height, "width": width}


def relay(pid: int, master: int) -> None:
    """Copy between our streams and the terminal until `pid` has ended and all is printed."""
    keyboard, screen = 0, 1
    _copy_size(master)
    signal.signal(signal.SIGWINCH, lambda *_: _copy_size(master))
    pidfd = os.pidfd_open(pid)
    poller = select.poll()
    for fd in (keyboard, master, pidfd):
        poller.register(fd, select.POLLIN)
    with _raw(keyboard):
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if keyboard in ready and not _copy(keyboard, master):
                poller.unregister(keyboard)
            if master in ready and not _copy(master, screen):
                poller.unregister(master)
            if pidfd in ready and master not in ready:
                break  # it has ended, and what it printed is out
    os.close(pidfd)


def _copy(source: int, target: int) -> bool:
    """Copy what there is; False at the end: of a terminal without another side, that is EIO."""
    try:
        content = os.read(source, _CHUNK)
        rest = content
        while rest:
            rest = rest[os.write(target, rest) :]
    except OSError:
        return False
    return bool(content)


def _copy_size(master: int) -> None:
    """Give the terminal the size of ours, where we have one."""
    size = _size()
    if size is not None:
        with suppress(OSError):
            fcntl.ioctl(master, termios.TIOCSWINSZ, size)


def _size() -> bytes | None:
    """Return the struct winsize of the terminal that one of our streams is; None without."""
    for fd in (0, 1, 2):
        with suppress(OSError):
            return fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
    return None


@contextmanager
def _raw(keyboard: int) -> Iterator[None]:
    """Leave it to the terminal inside what keys mean, as long as the block lasts."""
    if not os.isatty(keyboard):
        yield
        return
    before = termios.tcgetattr(keyboard)
    tty.setraw(keyboard, termios.TCSANOW)  # what was typed ahead stays
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)

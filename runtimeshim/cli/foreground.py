"""Waiting for a process: signals are passed on to it, and a terminal is passed through."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Not these: what happens to our own children, and what nobody sends on purpose.
_KEPT = frozenset(
    {signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP, signal.SIGURG, signal.SIGPIPE, signal.SIGWINCH}
)

_CHUNK = 65536


def hold_signals() -> None:
    """Keep what arrives from now on for the process that `wait` is going to wait for.

    To be called before it is started: its first output may already be answered by a signal.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _KEPT)


def wait(pid: int, master: int | None = None) -> int:
    """Wait for a child; returns its exit code, 128 + signal for a death by signal.

    With a terminal's `master` our own standard streams are its screen and keyboard meanwhile. As a
    subreaper we reap what else ends.
    """
    for number in signal.valid_signals() - _KEPT:
        # 32 and 33 are libc's own.
        with suppress(OSError, ValueError):
            signal.signal(number, lambda given, _: _pass_on(pid, given))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if master is not None:
        _relay(pid, master)
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _pass_on(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it ended a moment ago; not reaped yet, so it is still it
        os.kill(pid, number)


def _relay(pid: int, master: int) -> None:
    """Copy between our streams and the terminal until `pid` has ended and all is printed."""
    keyboard, screen = 0, 1
    copy_size(master)
    signal.signal(signal.SIGWINCH, lambda *_: copy_size(master))
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


def copy_size(master: int) -> None:
    """Give the terminal the size of ours, where we have one."""
    for fd in (0, 1, 2):
        with suppress(OSError):
            fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
            return


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

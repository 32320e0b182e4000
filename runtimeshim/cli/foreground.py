"""Waiting for a process: signals are passed on to it, and a terminal is passed through."""

from __future__ import annotations

import os

from runtimeshim.linux.signals import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Not these: what happens to our own children, and what nobody sends on purpose.
_KEPT = frozenset(
    {signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP, signal.SIGURG, signal.SIGPIPE, signal.SIGWINCH}
)


def hold_signals() -> None:
    """Keep what arrives from now on for the process that `wait` is going to wait for.

    To be called before it is started: its first output may already be answered by a signal.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _KEPT)


def begin(process: dict[str, Any]) -> None:
    """Prepare to pass a terminal through: before its program looks at it."""
    from runtimeshim.cli import console

    console.begin(process)


def wait(pid: int, master: int | None = None) -> int:
    """Wait for a child; returns its exit code, 128 + signal for a death by signal.

    With a terminal's `master` our own standard streams are its screen and keyboard meanwhile. As a
    subreaper we reap what else ends.
    """
    for number in signal.valid_signals() - _KEPT:
        try:
            signal.signal(number, lambda given, _: _pass_on(pid, given))
        except (OSError, ValueError):  # 32 and 33 are libc's own
            continue
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if master is not None:
        from runtimeshim.cli import console

        console.relay(pid, master)
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _pass_on(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)  # not reaped yet, so it is still it
    except ProcessLookupError:  # it ended a moment ago
        pass

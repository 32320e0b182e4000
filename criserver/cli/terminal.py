"""The user's terminal: raw while a program in a container has it, and always as it was after."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
import tty
from collections.abc import Iterator

from criserver.cli.errors import RUNTIME_FAILURE, CommandError

STDIN = 0


def require_terminal() -> None:
    """Raise CommandError unless stdin is a terminal."""
    if not os.isatty(STDIN):
        raise CommandError(
            "-t with -i needs a terminal, and stdin is none: leave -t out, or run it from one",
            RUNTIME_FAILURE,
        )


def window_size() -> tuple[int, int]:
    """Return width and height in characters; (0, 0) when stdin is no terminal."""
    try:
        answer = fcntl.ioctl(STDIN, termios.TIOCGWINSZ, bytes(8))  # man 2 ioctl_tty
    except OSError:
        return 0, 0
    height, width = struct.unpack("HHHH", answer)[:2]
    return width, height


@contextlib.contextmanager
def raw() -> Iterator[None]:
    """Pass every key on untouched: echo, line editing and ^C are the other side's business."""
    before = termios.tcgetattr(STDIN)
    tty.setraw(STDIN, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)

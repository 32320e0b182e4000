"""Pseudo-terminals out of the container's own devpts, and their controlling side."""

from __future__ import annotations

import fcntl
import os
import stat
import struct

from runtimeshim.linux import mounts as m
from runtimeshim.oci import resolve

# man 2 ioctl_tty; the first two are in the termios module, which is one more to import
TIOCSCTTY = 0x540E
TIOCSWINSZ = 0x5414
TIOCGPTPEER = 0x5441
TIOCSPTLCK = 0x40045431
PTMX_DEVICE = os.makedev(5, 2)


def open_pair(root: int) -> tuple[int, int]:
    """Open a new terminal below `root`; returns (master, slave).

    The slave comes from the master, never by a path that the image could redirect
    (CVE-2025-52565).
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    master = resolve.open_without_symlinks(root, "dev/pts/ptmx", flags)
    found = os.fstat(master)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != PTMX_DEVICE:
        os.close(master)
        raise OSError(19, "/dev/pts/ptmx is not the terminal multiplexer: is devpts mounted there?")
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    return master, fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def bind_console(root: int, slave: int) -> None:
    """Show the terminal as /dev/console too (runtime-spec, process.terminal)."""
    copy = m.open_tree(slave, "")
    try:
        # A link would have the terminal shown over any other file, one of /proc for instance.
        target = resolve.make_file_without_symlinks(root, "dev/console")
        try:
            m.move_mount(copy, target)
        finally:
            os.close(target)
    finally:
        os.close(copy)


def take_control(slave: int) -> None:
    """Make the terminal ours: controlling terminal of a new session, and 0, 1, 2."""
    fcntl.ioctl(slave, TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        os.dup2(slave, fd)
    os.close(slave)


def set_size(master: int, width: int, height: int) -> None:
    """Set the window size in characters; zero means unknown and changes nothing."""
    if width > 0 and height > 0:
        fcntl.ioctl(master, TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

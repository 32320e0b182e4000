"""fds that go to the caller over a socket: a terminal's master, a pidfd; and the pid file."""

from __future__ import annotations

import _socket
import os
import struct

from runtimeshim.wire import Socket


def connect(path: str) -> Socket:
    """Connect to a caller's socket; through its directory's fd, as a path has 107 bytes at most."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        finally:
            os.close(directory)
    except OSError as err:
        sock.close()
        raise OSError(
            err.errno, f"the socket cannot be connected to: {err.strerror}", path
        ) from err
    return sock


def send(sock: Socket, name: str, fd: int) -> None:
    """Send an fd with its name as the data (runc, docs/terminals.md), and hang up."""
    try:
        rights = struct.pack("i", fd)
        sock.sendmsg([name.encode()], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    finally:
        sock.close()


def write_pid(path: str, pid: int) -> None:
    """Write a pid file, without a newline; whole or not at all, as others wait for it to appear."""
    new = f"{os.path.dirname(path) or '.'}/.{os.path.basename(path)}"
    with open(new, "w", encoding="ascii") as out:
        out.write(str(pid))
    os.rename(new, path)

"""The CRI log: `RFC3339Nano stdout|stderr P|F text`, as the kubelet reads it.

Formatting is pure; only LogFile touches the disk.
"""

from __future__ import annotations

import os
import time

from runtimeshim.linux import syscalls

# A longer line is split, all but its last part tagged P: what kubelet and the peers use.
MAX_LINE = 16 * 1024

LOG_MODE = 0o640

# A line of the log has the time, the stream and the tag beside its text: 45 bytes.
MAX_LOG_LINE = MAX_LINE + 64

_BELOW = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS


def timestamp(ns: int) -> bytes:
    """Return nanoseconds since the epoch as RFC 3339 in UTC, with nine digits."""
    seconds, rest = divmod(ns, 1_000_000_000)
    t = time.gmtime(seconds)
    return b"%04d-%02d-%02dT%02d:%02d:%02d.%09dZ" % (*t[:6], rest)


class LineFormatter:
    """Cuts one stream into log lines. It keeps nothing: what is not a whole line stays with the
    caller, so that nothing is lost with this process.
    """

    def __init__(self, stream: bytes) -> None:
        self._full = b" %s F " % stream
        self._partial = b" %s P " % stream

    def cut(self, data: bytes, now: bytes) -> tuple[bytes, int]:
        """Return the log lines at the beginning of `data`, and how many bytes of it they hold.

        A line of more than MAX_LINE bytes is split, whether its end is there or not.
        """
        lines = data.split(b"\n")
        rest = lines.pop()
        out: list[bytes] = []
        for line in lines:
            if len(line) > MAX_LINE:
                line = self._split(line, now, out)
            out += (now, self._full, line, b"\n")
        if len(rest) > MAX_LINE:
            rest = self._split(rest, now, out)
        return b"".join(out), len(data) - len(rest)

    def last(self, rest: bytes, now: bytes) -> bytes:
        """Return the last line of a stream that ended without a newline: tagged P."""
        return b"".join((now, self._partial, rest, b"\n")) if rest else b""

    def _split(self, line: bytes, now: bytes, out: list[bytes]) -> bytes:
        """Put the parts of a long line out as P; returns what is left."""
        while len(line) > MAX_LINE:
            out += (now, self._partial, line[:MAX_LINE], b"\n")
            line = line[MAX_LINE:]
        return line


class LogFile:
    """The file; a write that fails drops the data, since a full disk must not block a container.

    Below `directory` no symbolic link is followed: who has mounted it could lead us anywhere.
    """

    def __init__(self, path: str | None, directory: str | None = None) -> None:
        self._path = path
        self._directory = directory
        self._fd: int | None = None if path is None else _open(path, directory)
        self.lost_bytes = 0

    def write(self, data: bytes) -> None:
        """Append; never raises."""
        if self._fd is None:
            return
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:  # ENOSPC and its like: counted, told by state, and tried anew next time
            self.lost_bytes += len(view)
            self.mend()

    def mend(self) -> None:
        """Cut off a last line that is not whole: its write failed, or its writer was killed in it.

        Never raises. A pipe is something else than a file, and has nothing to be cut off.
        """
        if self._fd is None:
            return
        try:
            size = os.fstat(self._fd).st_size
            start = max(0, size - MAX_LOG_LINE)
            end = start + os.pread(self._fd, size - start, start).rfind(b"\n") + 1
            if start < end < size or start == 0 < size != end:
                os.ftruncate(self._fd, end)
        except OSError:  # what cannot be read back stays as it is
            return

    def reopen(self) -> None:
        """Open the path anew; on an error the old file stays in use. Raises OSError."""
        if self._path is None:
            return
        new = _open(self._path, self._directory)
        if self._fd is not None:
            os.close(self._fd)
        self._fd = new


def _open(path: str, directory: str | None) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    if directory is None:
        return os.open(path, flags, LOG_MODE)
    base = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        below = os.path.relpath(path, directory)
        return syscalls.openat2(base, below, flags, _BELOW, LOG_MODE)
    finally:
        os.close(base)

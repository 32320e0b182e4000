"""Reading a container's log in the CRI's format: `RFC3339Nano stdout|stderr P|F text`.

A text without a newline at its end, or longer than the writer's buffer, is split: all parts but the
last are P. The kubelet rotates a log by renaming it and having a new one opened at its path.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

CHUNK_SIZE = 256 * 1024


class LogFormatError(ValueError):
    """A line is not in the CRI's format."""


@dataclass(frozen=True)
class LogLine:
    """One line of a log file; text has its newline unless more of the same line follows."""

    timestamp: bytes
    stream: bytes
    partial: bool
    text: bytes


def parse_line(line: bytes) -> LogLine:
    """Parse one line with its newline. Raises LogFormatError."""
    fields = line.split(b" ", 3)
    if len(fields) != 4 or fields[1] not in (b"stdout", b"stderr"):
        raise LogFormatError(f"not a line of a CRI log: {line[:80]!r}")
    timestamp, stream, tags, text = fields
    partial = tags.split(b":")[0] == b"P"
    return LogLine(timestamp, stream, partial, text.removesuffix(b"\n") if partial else text)


class LogFile:
    """Whole lines of a log, wherever rotation has put the file meanwhile."""

    def __init__(self, path: Path) -> None:
        """Open the log. Raises OSError."""
        self._path = path
        self._file: BufferedReader = path.open("rb")
        self._rest = b""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read_lines(self) -> Iterator[bytes]:
        """Yield the lines that are there now, through all rotations since the last call."""
        while True:
            # Asked first: once the path names another file, ours grows no more.
            rotated = self._is_rotated()
            yield from self._read_to_end()
            if not rotated or not self._open_next():
                return

    def _read_to_end(self) -> Iterator[bytes]:
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)  # truncated in place
        while chunk := self._file.read(CHUNK_SIZE):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                yield line + b"\n"

    def _is_rotated(self) -> bool:
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False  # renamed; the writer goes on in it until it reopens the path
        return not os.path.samestat(named, os.fstat(self._file.fileno()))

    def _open_next(self) -> bool:
        try:
            successor = self._path.open("rb")
        except FileNotFoundError:
            return False
        self._file.close()
        self._file, self._rest = successor, b""
        return True


def follow(log: LogFile, is_over: Callable[[], bool], pause: Callable[[], None]) -> Iterator[bytes]:
    """Yield lines as they come, until the container has exited and its last line is read."""
    while True:
        # Asked before reading: all that an exited container wrote is in the file by then.
        over = is_over()
        yield from log.read_lines()
        if over:
            return
        pause()


def tail(lines: Iterable[bytes], count: int) -> list[bytes]:
    """Return the last `count` lines as the container wrote them, with all their parts."""
    groups: deque[list[bytes]] = deque(maxlen=count)
    parts: list[bytes] = []
    for line in lines:
        parts.append(line)
        if not _is_partial(line):
            groups.append(parts)
            parts = []
    if parts and count:
        groups.append(parts)
    return [line for group in groups for line in group]


def _is_partial(line: bytes) -> bool:
    try:
        return parse_line(line).partial
    except LogFormatError:
        return False


class LogPrinter:
    """Writes log lines to where the container wrote them: stdout or stderr."""

    def __init__(self, stdout: BinaryIO, stderr: BinaryIO, *, timestamps: bool) -> None:
        self._outputs = {b"stdout": stdout, b"stderr": stderr}
        self._timestamps = timestamps
        self._within_line: set[bytes] = set()

    def write(self, line: bytes) -> None:
        """Write one line of the file. Raises LogFormatError."""
        parsed = parse_line(line)
        output = self._outputs[parsed.stream]
        if self._timestamps and parsed.stream not in self._within_line:
            output.write(parsed.timestamp + b" ")
        output.write(parsed.text)
        if parsed.partial:
            self._within_line.add(parsed.stream)
        else:
            self._within_line.discard(parsed.stream)

    def flush(self) -> None:
        """Let the user see what is written so far."""
        for output in self._outputs.values():
            output.flush()

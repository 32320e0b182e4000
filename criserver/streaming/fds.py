"""Pipes and pseudo-terminals on the event loop, without threads.

A reader reads when it is asked to, and a writer returns when everything is written: whoever is slow
makes the other side wait, and at most one chunk is ever held in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import termios

from criserver.streaming.buffer import Buffer

# Bounds the memory of one stream. It is also a pipe's default capacity (man 7 pipe), so that a
# full pipe is emptied by one read.
CHUNK_SIZE = 64 * 1024

# The largest that any user may ask for (pipe-max-size). Only streams that fill a pipe get it, since
# all pipes of a user are counted together, and that of the containers' root is ours.
PIPE_SIZE = 1024 * 1024


def open_pipe() -> tuple[int, int]:
    """Return the read and the write end of a new pipe, both close-on-exec and blocking."""
    return os.pipe2(os.O_CLOEXEC)


class FdReader:
    """Reads a pipe's or a terminal's end; owns the fd and makes it non-blocking."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._large = False
        self._patience: float | None = None
        self._waiter: asyncio.Future[bool] | None = None

    async def read(self) -> bytes:
        """Return what is there, at most CHUNK_SIZE bytes, waiting for the first; b"" at the end.

        A pty master answers EIO once every slave is closed (man 4 pts); that is its end.
        One reader at a time.
        """
        while self._fd >= 0:
            try:
                data = os.read(self._fd, CHUNK_SIZE)
                if len(data) == CHUNK_SIZE and not self._large:
                    self._large = True
                    _enlarge(self._fd)
                return data
            except BlockingIOError:
                if not await self._readable():
                    return b""
            except OSError as err:
                if err.errno != errno.EIO:
                    raise
                return b""
        return b""

    def end_after_silence(self, seconds: float) -> None:
        """From now on take silence of this length for the end.

        For the time after the writer that counts is gone: what it wrote is in the pipe and is still
        read, but whatever it left behind may hold the other end open for ever.
        """
        self._patience = seconds
        if self._waiter is not None:
            self._expire_later(self._waiter, seconds)

    async def _readable(self) -> bool:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiter = waiter
        timer = None
        if self._patience is not None:
            timer = self._expire_later(waiter, self._patience)
        loop.add_reader(self._fd, _resolve, waiter, True)
        try:
            return await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
            if self._fd >= 0:
                loop.remove_reader(self._fd)

    @staticmethod
    def _expire_later(waiter: asyncio.Future[bool], seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, _resolve, waiter, False)

    def close(self) -> None:
        """Close the fd; a read that waits returns the end. Idempotent."""
        if self._fd < 0:
            return
        if self._waiter is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            _resolve(self._waiter, False)
        os.close(self._fd)
        self._fd = -1


class FdWriter:
    """Writes a pipe's or a terminal's end; owns the fd and makes it non-blocking."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._large = False
        self._waiter: asyncio.Future[bool] | None = None

    @property
    def closed(self) -> bool:
        """Whether close was called."""
        return self._fd < 0

    async def write(self, data: Buffer) -> None:
        """Return when all of data is written.

        Raises BrokenPipeError when nobody can read it any more, which is also said of a terminal
        whose last slave is closed and of a writer that was closed.
        """
        rest = memoryview(data)
        while rest:
            if self._fd < 0:
                raise BrokenPipeError(errno.EPIPE, "the stream is closed")
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                if not self._large:
                    self._large = True
                    _enlarge(self._fd)
                    continue
                await self._writable()
            except OSError as err:
                if err.errno != errno.EIO:
                    raise
                raise BrokenPipeError(errno.EPIPE, "the terminal is closed") from err

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiter = waiter
        loop.add_writer(self._fd, _resolve, waiter, True)
        try:
            await waiter
        finally:
            self._waiter = None
            if self._fd >= 0:
                loop.remove_writer(self._fd)

    def shutdown(self) -> None:
        """End what the other side of a socket reads; it may still send."""
        with contextlib.suppress(OSError), socket.socket(fileno=duplicate(self._fd)) as sock:
            sock.shutdown(socket.SHUT_WR)  # fails when the other side has gone: then it knows

    def end_of_file_key(self) -> bytes:
        """Return the character that is end-of-file to the reader of a terminal (man 3 termios)."""
        control_characters: list[bytes] = termios.tcgetattr(self._fd)[6]
        return control_characters[termios.VEOF]

    def close(self) -> None:
        """Close the fd, which is the end of the reader's input. Idempotent."""
        if self._fd < 0:
            return
        if self._waiter is not None:
            asyncio.get_running_loop().remove_writer(self._fd)
            _resolve(self._waiter, True)
        os.close(self._fd)
        self._fd = -1


def duplicate(fd: int) -> int:
    """Return a close-on-exec duplicate, so that a reader and a writer each own one."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _enlarge(fd: int) -> None:
    """Give a pipe that has been full more room, so that its two sides have to meet less often."""
    with contextlib.suppress(OSError):  # no pipe, or no more memory for pipes: it goes on as it is
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)


def _resolve(waiter: asyncio.Future[bool], value: bool) -> None:
    if not waiter.done():
        waiter.set_result(value)

"""Pipes and files for helper programs, read on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os

# A pipe's capacity, and so the memory that one reading costs.
READ_SIZE = 64 * 1024


def file_of(content: bytes, stack: contextlib.ExitStack) -> int:
    """Return an fd at the beginning of `content`: never blocks, whatever its size."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def open_pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """Return a pipe whose read end is closed with `stack`; the caller closes the write end."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read, False)
    stack.callback(os.close, read)
    return read, write


async def read_to_end(fd: int, into: bytearray, limit: int) -> None:
    """Read a non-blocking fd to its end; what is over `limit` bytes is read and dropped."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def readable() -> None:
        try:
            chunk = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last writer of a pty has gone
            chunk = b""
        into.extend(chunk[: max(0, limit - len(into))])
        if not chunk and not done.done():
            done.set_result(None)

    loop.add_reader(fd, readable)
    try:
        await done
    finally:
        loop.remove_reader(fd)

"""Pipes and terminals on the event loop: the ends, backpressure, and silence after an exit."""

from __future__ import annotations

import asyncio
import os

import pytest

from criserver.streaming.fds import CHUNK_SIZE, PIPE_SIZE, FdReader, FdWriter, duplicate, open_pipe

MUCH = os.urandom(2 * PIPE_SIZE + 1)


async def read_all(reader: FdReader) -> bytes:
    chunks = []
    while chunk := await reader.read():
        assert len(chunk) <= CHUNK_SIZE
        chunks.append(chunk)
    return b"".join(chunks)


async def test_what_is_written_is_read_and_closing_is_the_end() -> None:
    read, write = open_pipe()
    reader, writer = FdReader(read), FdWriter(write)
    reading = asyncio.create_task(read_all(reader))
    await writer.write(MUCH)
    writer.close()
    assert await reading == MUCH
    reader.close()


async def test_a_writer_waits_for_its_reader() -> None:
    read, write = open_pipe()
    reader, writer = FdReader(read), FdWriter(write)
    writing = asyncio.create_task(writer.write(MUCH))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not writing.done()
    received = b""
    while len(received) < len(MUCH):
        received += await reader.read()
    await writing
    assert received == MUCH
    reader.close()
    writer.close()


async def test_a_writer_without_reader_is_told() -> None:
    read, write = open_pipe()
    writer = FdWriter(write)
    os.close(read)
    with pytest.raises(BrokenPipeError):
        await writer.write(b"x")
    writer.close()


async def test_closing_ends_whoever_waits() -> None:
    read, write = open_pipe()
    reader, writer = FdReader(read), FdWriter(write)
    reading = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    reader.close()
    assert await reading == b""
    writer.close()
    with pytest.raises(BrokenPipeError):
        await writer.write(b"x")
    reader.close()
    writer.close()


async def test_closing_a_writer_ends_its_waiting_write() -> None:
    read, write = open_pipe()
    writer = FdWriter(write)
    writing = asyncio.create_task(writer.write(MUCH))
    await asyncio.sleep(0)
    writer.close()
    with pytest.raises(BrokenPipeError):
        await writing
    os.close(read)


async def test_a_terminal_ends_with_its_last_slave() -> None:
    master, slave = os.openpty()
    reader, writer = FdReader(master), FdWriter(duplicate(master))
    os.write(slave, b"hello")
    assert await reader.read() == b"hello"
    os.close(slave)
    assert await reader.read() == b""
    reader.close()
    writer.close()


async def test_the_end_of_file_key_ends_a_terminals_input() -> None:
    master, slave = os.openpty()
    writer = FdWriter(master)
    await writer.write(b"line\n" + writer.end_of_file_key())
    assert [os.read(slave, 100), os.read(slave, 100)] == [b"line\n", b""]
    os.close(slave)
    writer.close()


async def test_silence_ends_a_pipe_that_somebody_holds_open_but_not_what_is_in_it() -> None:
    read, write = open_pipe()
    reader = FdReader(read)
    reading = asyncio.create_task(read_all(reader))
    await asyncio.sleep(0)
    os.write(write, b"last words")
    reader.end_after_silence(0.01)
    assert await reading == b"last words"
    os.close(write)
    reader.close()


async def test_a_cancelled_reader_can_be_asked_again() -> None:
    read, write = open_pipe()
    reader = FdReader(read)
    reading = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    os.write(write, b"x")
    assert await reader.read() == b"x"
    os.close(write)
    reader.close()

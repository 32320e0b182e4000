"""Exec and attach sessions: all output and the exit code, whatever the process and client do."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from api.errors import InvalidArgumentError
from criserver.streaming.session import AttachSession, ExecSession, Session, Stream, Wanted
from runtimeshim.client import ExitRecord
from tests.fakes.shim import FakeShim

ALL = Wanted(stdin=True)
OUTPUT = Wanted(stdin=False)


@pytest.fixture
async def shim() -> Iterator[FakeShim]:
    fake = FakeShim()
    yield fake
    fake.close()


async def exec_session(
    shim: FakeShim, script: str, wanted: Wanted = OUTPUT, *, terminal: bool = False
) -> ExecSession:
    process = {"args": ["/bin/sh", "-c", script], "terminal": terminal}
    return await ExecSession.open(shim, process, wanted)


async def collect(session: Session) -> dict[Stream, bytes]:
    output = {Stream.STDOUT: b"", Stream.STDERR: b""}
    async for stream, data in session.output():
        output[stream] += data
    return output


async def test_both_streams_and_the_exit_code(shim: FakeShim) -> None:
    session = await exec_session(shim, "echo out; echo err >&2; exit 7")
    assert await collect(session) == {Stream.STDOUT: b"out\n", Stream.STDERR: b"err\n"}
    assert await session.wait() == 7
    session.close()


async def test_unwanted_streams_are_the_null_device(shim: FakeShim) -> None:
    session = await exec_session(shim, "cat; echo x >&2; echo out", Wanted(False, True, False))
    assert await collect(session) == {Stream.STDOUT: b"out\n", Stream.STDERR: b""}
    session.close()


async def test_stdin_is_passed_on_until_it_is_closed(shim: FakeShim) -> None:
    data = os.urandom(1 << 20)
    session = await exec_session(shim, "cat", ALL)
    reading = asyncio.create_task(collect(session))
    assert await session.write_stdin(data)
    await session.close_stdin()
    assert (await reading)[Stream.STDOUT] == data
    assert await session.wait() == 0
    session.close()


async def test_input_that_nobody_reads_is_discarded(shim: FakeShim) -> None:
    session = await exec_session(shim, "exec <&-; echo closed; cat /dev/null", ALL)
    await collect(session)
    assert await session.write_stdin(b"x" * 100) is False
    session.close()


async def test_a_background_child_does_not_keep_the_session_open(shim: FakeShim) -> None:
    session = await exec_session(shim, "echo done; sleep 1000 & exit 3")
    assert (await collect(session))[Stream.STDOUT] == b"done\n"
    assert await session.wait() == 3
    session.close()
    os.killpg(shim.execs[0].pid, signal.SIGKILL)


async def test_a_terminal_has_one_stream_a_size_and_an_end_of_file(shim: FakeShim) -> None:
    session = await exec_session(shim, "stty -echo; stty size; cat", ALL, terminal=True)
    await session.resize(0, 9)  # ignored
    output = session.output()
    first = await anext(output)
    assert first == (Stream.STDOUT, b"0 0\r\n")
    await session.resize(120, 40)
    await session.write_stdin(b"typed\n")
    await session.close_stdin()
    assert b"".join([data async for _, data in output]) == b"typed\r\n"
    assert await session.wait() == 0
    session.close()


async def test_a_session_that_is_closed_kills_its_process(shim: FakeShim) -> None:
    session = await exec_session(shim, "sleep 1000 & wait", ALL)
    session.close()
    assert await session.wait() == 128 + signal.SIGKILL


async def test_a_signal_reaches_the_process_and_a_late_one_is_no_error(shim: FakeShim) -> None:
    session = await exec_session(
        shim, "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done"
    )
    output = session.output()
    assert await anext(output) == (Stream.STDOUT, b"ready\n")
    await session.kill(signal.SIGTERM)
    assert await session.wait() == 5
    await session.kill(signal.SIGTERM)
    await output.aclose()
    session.close()


async def test_a_caller_that_goes_while_the_process_starts_leaves_none(shim: FakeShim) -> None:
    shim.hold.clear()
    opening = asyncio.create_task(exec_session(shim, "sleep 1000"))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    shim.hold.set()
    await shim.started.wait()
    assert await shim.execs[0].wait() == 128 + signal.SIGKILL


async def test_a_command_that_is_not_there_is_the_clients_error_and_leaks_nothing(
    shim: FakeShim,
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InvalidArgumentError, match="No such file"):
        await ExecSession.open(shim, {"args": ["/nonexistent"], "terminal": False}, ALL)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_attach_relays_and_ends_with_the_containers_exit_code(shim: FakeShim) -> None:
    session = await AttachSession.open(shim, ALL, terminal=False)
    assert set(shim.attached) == {"stdin", "stdout", "stderr"}
    await session.write_stdin(b"in")
    await session.close_stdin()
    assert os.read(shim.attached["stdin"], 10) + os.read(shim.attached["stdin"], 10) == b"in"
    os.write(shim.attached["stdout"], b"out")
    os.write(shim.attached["stderr"], b"err")
    shim.detach()
    shim.exit.set_result(ExitRecord(9, 0, False))
    assert await collect(session) == {Stream.STDOUT: b"out", Stream.STDERR: b"err"}
    assert await session.wait() == 9
    session.close()


async def test_detaching_leaves_the_container_alone(shim: FakeShim) -> None:
    session = await AttachSession.open(shim, ALL, terminal=True)
    assert set(shim.attached) == {"stdin", "stdout"}
    await session.resize(80, 25)
    session.close()
    assert (shim.size, shim.signals) == ((80, 25), [])
    with pytest.raises(BrokenPipeError):
        os.write(shim.attached["stdout"], b"x")


async def test_nothing_of_a_session_stays_open(shim: FakeShim) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for terminal in (False, True):
        session = await exec_session(shim, "exit 0", ALL, terminal=terminal)
        await collect(session)
        await session.wait()
        session.close()
    attached = await AttachSession.open(shim, ALL, terminal=False)
    attached.close()
    shim.detach()
    assert len(os.listdir("/proc/self/fd")) == before

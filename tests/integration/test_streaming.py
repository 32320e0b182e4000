"""Exec and attach sessions on real shims and containers."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
import pytest_asyncio

from api.errors import FailedPreconditionError, InvalidArgumentError
from criserver.exec_process import exec_process
from criserver.streaming.session import AttachSession, ExecSession, Session, Stream, Wanted
from runtimeshim.client import Shim
from tests.integration import harness

ALL = Wanted(stdin=True)
OUTPUT = Wanted(stdin=False)
MUCH = os.urandom(8 << 20)


@pytest_asyncio.fixture
async def shim(rt: harness.Runtime) -> Shim:
    """A container that sleeps."""
    return await rt.start(rt.spec(["sleep", "1000"]))


async def collect(session: Session) -> dict[Stream, bytes]:
    output = {Stream.STDOUT: b"", Stream.STDERR: b""}
    async for stream, data in session.output():
        output[stream] += data
    return output


async def run(
    shim: Shim, rt: harness.Runtime, script: str, wanted: Wanted = OUTPUT, *, terminal: bool = False
) -> ExecSession:
    container: dict[str, Any] = rt.spec([])["process"]
    process = exec_process(container, ["sh", "-c", script], terminal=terminal)
    return await ExecSession.open(shim, process, wanted)


async def test_exec_has_both_streams_and_an_exit_code(shim: Shim, rt: harness.Runtime) -> None:
    session = await run(shim, rt, "echo out; echo err >&2; exit 7")
    assert await collect(session) == {Stream.STDOUT: b"out\n", Stream.STDERR: b"err\n"}
    assert await session.wait() == 7
    session.close()


async def test_much_goes_in_and_out_of_an_exec(shim: Shim, rt: harness.Runtime) -> None:
    session = await run(shim, rt, "cat", ALL)
    reading = asyncio.create_task(collect(session))
    assert await session.write_stdin(MUCH)
    await session.close_stdin()
    assert (await reading)[Stream.STDOUT] == MUCH
    assert await session.wait() == 0
    session.close()


async def test_an_exec_has_a_terminal(shim: Shim, rt: harness.Runtime) -> None:
    script = "stty -echo; echo ready; read _; stty size; cat; exit 4"
    session = await run(shim, rt, script, ALL, terminal=True)
    output = session.output()
    assert await anext(output) == (Stream.STDOUT, b"ready\r\n")
    await session.resize(99, 33)
    await session.write_stdin(b"\ntyped\n")
    await session.close_stdin()
    assert b"".join([data async for _, data in output]) == b"33 99\r\ntyped\r\n"
    assert await session.wait() == 4
    session.close()


async def test_what_an_exec_leaves_behind_does_not_keep_it(shim: Shim, rt: harness.Runtime) -> None:
    session = await run(shim, rt, "echo done; sleep 1001 & exit 3")
    assert (await collect(session))[Stream.STDOUT] == b"done\n"
    assert await session.wait() == 3
    session.close()


@pytest.mark.parametrize("terminal", [False, True])
async def test_closing_ends_the_command_and_what_it_started(
    shim: Shim, rt: harness.Runtime, terminal: bool
) -> None:
    session = await run(shim, rt, "sleep 1002 & echo up; wait", terminal=terminal)
    assert (await anext(session.output()))[1].startswith(b"up")
    session.close()
    assert await session.wait() in (128 + signal.SIGKILL, 128 + signal.SIGHUP)
    left = await run(shim, rt, "ps | grep '[s]leep 1002'; echo end")
    assert (await collect(left))[Stream.STDOUT] == b"end\n"
    left.close()


async def test_a_command_that_is_not_there_and_a_container_that_is_gone(
    shim: Shim, rt: harness.Runtime
) -> None:
    process = exec_process(rt.spec([])["process"], ["/nonexistent"], terminal=False)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InvalidArgumentError, match="nonexistent"):
        await ExecSession.open(shim, process, ALL)
    await shim.kill(signal.SIGKILL)
    await shim.wait()
    with pytest.raises(FailedPreconditionError):
        await ExecSession.open(shim, process, ALL)
    assert len(os.listdir("/proc/self/fd")) <= before  # the shim's own may be gone


@pytest.mark.parametrize("terminal", [False, True])
async def test_an_attach_before_the_start_misses_nothing(
    rt: harness.Runtime, terminal: bool
) -> None:
    script = "seq 1 20000; exit 6"
    created = await rt.create(rt.spec(["sh", "-c", script], terminal=terminal))
    session = await AttachSession.open(created, OUTPUT, terminal=terminal)
    reading = asyncio.create_task(collect(session))
    await created.start()
    assert (await reading)[Stream.STDOUT].split() == [b"%d" % n for n in range(1, 20001)]
    assert await session.wait() == 6
    session.close()


async def test_much_goes_in_and_out_of_an_attach_until_its_end(rt: harness.Runtime) -> None:
    created = await rt.create(rt.spec(["cat"]), stdin=True, stdin_once=True)
    session = await AttachSession.open(created, ALL, terminal=False)
    reading = asyncio.create_task(collect(session))
    await created.start()
    assert await session.write_stdin(MUCH)
    await session.close_stdin()
    assert (await reading)[Stream.STDOUT] == MUCH
    assert await session.wait() == 0
    session.close()


async def test_detaching_leaves_the_container_as_it_is(rt: harness.Runtime) -> None:
    script = "while read line; do echo got $line; done"
    started = await rt.start(rt.spec(["sh", "-c", script]), stdin=True)
    for word in (b"one", b"two"):
        session = await AttachSession.open(started, ALL, terminal=False)
        await session.write_stdin(word + b"\n")
        assert await anext(session.output()) == (Stream.STDOUT, b"got " + word + b"\n")
        session.close()

"""Exec and attach: a session's streams and a client's, joined.

client ── stdin ───▶ session.write_stdin        one task each, as long as there is something
client ◀── stdout ── session.read               to move; none is made for a piece of data
client ◀── stderr ── session.read
client ── resize ──▶ session.resize
client ◀── error ─── how it ended, after everything else
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from api.errors import CRIError
from criserver.streaming import remote_status
from criserver.streaming.client_stream import ClientStream, StreamResetError
from criserver.streaming.connection import GONE, Connection
from criserver.streaming.remote_status import RemoteStatus
from criserver.streaming.resize import ResizeDecoder
from criserver.streaming.session import Session, Stream

log = logging.getLogger(__name__)


@dataclass
class CommandStreams:
    """The client's streams; those that it did not ask for are None."""

    error: ClientStream
    stdin: ClientStream | None = None
    stdout: ClientStream | None = None
    stderr: ClientStream | None = None
    resize: ClientStream | None = None
    json_status: bool = True


@dataclass(frozen=True)
class Command:
    """An exec or an attach that a client has asked for with its token."""

    what: str  # for messages: "exec in container ID"
    open: Callable[[], Awaitable[Session]]  # raises CRIError
    # Whether the end is the command's, with its exit code; an attach always ends well.
    has_exit_code: bool
    # Whether the end of the input ends it: an attach to a stdin that stays open is a detach.
    ends_with_stdin: bool = False


async def serve_command(connection: Connection, streams: CommandStreams, command: Command) -> None:
    """Run a command to its end, or until the connection is to end; tells the client which."""
    work = asyncio.create_task(_run(streams, command))
    try:
        if await connection.wait(work):
            status = work.result()
        else:
            reason = connection.ended.result()
            log.info("%s: ended: %s", command.what, reason)
            status = remote_status.ended(f"{command.what}: {reason}")
    finally:
        work.cancel()
        await asyncio.wait({work})
    if connection.ended.done() and connection.ended.result() == GONE:
        return
    tell(streams, status)


def tell(streams: CommandStreams, status: RemoteStatus) -> None:
    """End every stream; the error stream last, with the status."""
    for stream in (streams.stdout, streams.stderr, streams.stdin, streams.resize):
        if stream is not None:
            stream.discard()
            stream.end()
    data = status.to_json() if streams.json_status else status.to_text()
    if data:
        streams.error.write_now(data)
    streams.error.discard()
    streams.error.end()


async def _run(streams: CommandStreams, command: Command) -> RemoteStatus:
    try:
        session = await command.open()
    except CRIError as err:
        return remote_status.failed(f"{command.what}: {err}")
    log.debug("%s: open", command.what)
    try:
        return await _relay(session, streams, command)
    except CRIError as err:
        return remote_status.failed(f"{command.what}: {err}")
    except ConnectionResetError:
        return remote_status.ended(GONE)
    finally:
        session.close()


async def _relay(session: Session, streams: CommandStreams, command: Command) -> RemoteStatus:
    """Move everything until the output ends; returns how the command did."""
    outputs = asyncio.create_task(_outputs(session, streams))
    feeding = asyncio.create_task(_feed(session, streams.stdin)) if streams.stdin else None
    resizing = asyncio.create_task(_resize(session, streams.resize)) if streams.resize else None
    tasks = {task for task in (outputs, feeding, resizing) if task is not None}
    pending: set[asyncio.Task[None]] = tasks
    try:
        while not outputs.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises what went wrong with it
            if command.ends_with_stdin and feeding in done:
                return remote_status.SUCCESS
        code = await session.wait()
        return remote_status.exited(code) if command.has_exit_code else remote_status.SUCCESS
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _outputs(session: Session, streams: CommandStreams) -> None:
    await asyncio.gather(
        _pump(session, Stream.STDOUT, streams.stdout),
        _pump(session, Stream.STDERR, streams.stderr),
    )


async def _pump(session: Session, source: Stream, target: ClientStream | None) -> None:
    """Move one output stream to its end."""
    while data := await session.read(source):
        if target is not None:
            await target.write(data)
    if target is not None:
        target.end()


async def _feed(session: Session, source: ClientStream) -> None:
    """Move the input to its end; what nobody reads any more is dropped."""
    try:
        while data := await source.read():
            if not await session.write_stdin(data):
                source.discard()
    except StreamResetError:
        pass  # an end like any other: there is nothing that could still be said
    await session.close_stdin()


async def _resize(session: Session, source: ClientStream) -> None:
    """Pass on the terminal's sizes until one is not to be understood."""
    decoder = ResizeDecoder()
    try:
        while data := await source.read():
            for width, height in decoder.receive(data):
                await session.resize(width, height)
    except StreamResetError:
        pass
    except ValueError as err:
        log.warning("a client's resize stream is ignored from here on: %s", err)
        source.discard()

"""The streams of an exec and of an attach, opened, joined and closed the same way.

A transport (gRPC here, SPDY and WebSocket beside it) opens a session, passes on what `output`
yields, feeds `write_stdin`, and takes the exit code from `wait`. Whatever ends the transport, it
calls `close`, which is synchronous so that it can stand in any callback.

    transport ── write_stdin ──> FdWriter ──pipe or pty──> process
    transport <── output ─────── FdReader <──pipe or pty── process
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from api.errors import (
    CRIError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from criserver.streaming.buffer import Buffer
from criserver.streaming.fds import FdReader, FdWriter, duplicate, open_pipe
from runtimeshim.client import Exec, Shim, ShimError, StartError

# What the process itself wrote is in the pipe when it exits. This long a silence after its exit
# means that only processes which it left behind hold the other end open.
DRAIN_SECONDS = 1.0

# What the shim's refusals mean to a client, by their kind; all others are faults. One that is gone
# was killed, and another takes its place in a moment.
SHIM_ERRORS: dict[str, type[CRIError]] = {
    "gone": UnavailableError,
    "finished": FailedPreconditionError,
    "state": FailedPreconditionError,
    "spec": InvalidArgumentError,
    "version": FailedPreconditionError,
}


class Stream(enum.Enum):
    """The output streams of a process; a terminal has stdout alone."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True)
class Wanted:
    """Which streams the client wants; the process gets /dev/null for the others."""

    stdin: bool
    stdout: bool = True
    stderr: bool = True


class Session(Protocol):
    """What a transport needs of an exec or an attach."""

    async def read(self, stream: Stream) -> bytes:
        """Return what the process has written, waiting for it; b"" at the end or without it.

        For a transport with a task for each stream; others take `output`.
        """

    def output(self) -> AsyncIterator[tuple[Stream, bytes]]:
        """Yield what the process writes, until all streams end; unread output makes it wait."""

    async def write_stdin(self, data: Buffer) -> bool:
        """Return when data is written; False when nobody reads it (any more)."""

    async def close_stdin(self) -> None:
        """End the input. Idempotent."""

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters; nothing happens without one, or with a zero."""

    async def kill(self, signal_: int) -> None:
        """Send a Linux signal; a process that has exited is no error."""

    async def wait(self) -> int:
        """Return the exit code, 128 + signal for a death by signal. Raises CRIError."""

    def close(self) -> None:
        """Give the streams up. Idempotent."""


class _Streams:
    """The daemon's ends of a process's stdin, stdout and stderr, and the exit that ends them."""

    def __init__(self, stdin: FdWriter | None, readers: Mapping[Stream, FdReader]) -> None:
        self._stdin = stdin
        self._readers = dict(readers)
        self._exit: asyncio.Task[int] | None = None

    def _watch(self, exit_code: Coroutine[Any, Any, int]) -> None:
        """Take the exit code as soon as there is one, and stop reading after what was written."""
        self._exit = asyncio.create_task(exit_code)
        self._exit.add_done_callback(self._exited)

    def _exited(self, exit_task: asyncio.Task[int]) -> None:
        for reader in self._readers.values():
            reader.end_after_silence(DRAIN_SECONDS)
        if not exit_task.cancelled():
            exit_task.exception()  # wait() raises it, if anybody asks

    async def read(self, stream: Stream) -> bytes:
        """Return what the process has written, waiting for it; b"" at the end or without it."""
        reader = self._readers.get(stream)
        return await reader.read() if reader is not None else b""

    async def output(self) -> AsyncIterator[tuple[Stream, bytes]]:
        """Yield what the process writes, until all streams end; unread output makes it wait."""
        pending = {asyncio.create_task(r.read()): stream for stream, r in self._readers.items()}
        try:
            while pending:
                done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    stream = pending.pop(task)
                    if data := task.result():
                        pending[asyncio.create_task(self._readers[stream].read())] = stream
                        yield stream, data
        finally:
            for task in pending:
                task.cancel()

    async def write_stdin(self, data: Buffer) -> bool:
        """Return when data is written; False when nobody reads it (any more)."""
        if self._stdin is None:
            return False
        try:
            await self._stdin.write(data)
        except BrokenPipeError:  # the process has closed its stdin, as any reader of a pipe may
            return False
        return True

    async def close_stdin(self) -> None:
        """End the input. Idempotent."""
        if self._stdin is not None:
            self._stdin.close()

    async def wait(self) -> int:
        """Return the exit code, 128 + signal for a death by signal. Raises CRIError."""
        assert self._exit is not None, "a session is watched from its start"
        return await asyncio.shield(self._exit)

    def _close_streams(self) -> None:
        if self._stdin is not None:
            self._stdin.close()
        for reader in self._readers.values():
            reader.close()


class ExecSession(_Streams):
    """A process that runs beside a container's own, for as long as somebody talks to it."""

    def __init__(
        self, process: Exec, stdin: FdWriter | None, readers: Mapping[Stream, FdReader]
    ) -> None:
        super().__init__(stdin, readers)
        self._process = process
        self._killing: asyncio.Task[None] | None = None
        self._watch(self._exit_code())

    @classmethod
    async def open(cls, shim: Shim, process: Mapping[str, Any], wanted: Wanted) -> ExecSession:
        """Start an OCI process (see criserver.exec_process) with the streams that are wanted.

        A caller that is cancelled meanwhile leaves no process behind. Raises InvalidArgumentError
        when the program cannot be executed, FailedPreconditionError when the container has ended.
        """
        opening = cls._on_terminal if process["terminal"] else cls._on_pipes
        return await _keep_or_close(opening(shim, process, wanted))

    @classmethod
    async def _on_pipes(cls, shim: Shim, process: Mapping[str, Any], wanted: Wanted) -> ExecSession:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            with _open_pipes(wanted) as pipes, _client_errors(f"exec in {shim.container_id}"):
                theirs = pipes.theirs
                stdio = (theirs.get("stdin", null), theirs.get("stdout", null))
                started = await shim.exec(process, (*stdio, theirs.get("stderr", null)))
        finally:
            os.close(null)
        return cls(started, pipes.stdin, pipes.readers)

    @classmethod
    async def _on_terminal(
        cls, shim: Shim, process: Mapping[str, Any], wanted: Wanted
    ) -> ExecSession:
        with _client_errors(f"exec in {shim.container_id}"):
            started = await shim.exec(process, None)
        if started.terminal is None:
            raise InternalError(f"exec in {shim.container_id}: the shim sent no terminal")
        writer = FdWriter(duplicate(started.terminal)) if wanted.stdin else None
        return cls(started, writer, {Stream.STDOUT: FdReader(started.terminal)})

    async def close_stdin(self) -> None:
        """End the input: a pipe is closed, a terminal's reader gets its end-of-file key."""
        if self._process.terminal is None or self._stdin is None:
            await super().close_stdin()
        elif not self._stdin.closed:
            await self.write_stdin(self._stdin.end_of_file_key())
            self._stdin.close()

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters; nothing happens without one, or with a zero."""
        if self._process.terminal is not None and width and height:
            with contextlib.suppress(ShimError):  # it has exited: there is nothing to resize
                await self._process.resize(width, height)

    async def kill(self, signal_: int) -> None:
        """Send a Linux signal; a process that has exited is no error."""
        with contextlib.suppress(ShimError):
            await self._process.kill(signal_)

    async def _exit_code(self) -> int:
        with _client_errors("exec"):
            return await self._process.wait()

    def close(self) -> None:
        """Close the streams, and kill the process with what it started if it still runs."""
        self._close_streams()
        if self._exit is not None and not self._exit.done() and self._killing is None:
            self._killing = asyncio.create_task(self.kill(signal.SIGKILL))


class AttachSession(_Streams):
    """A client at the streams of a container's own process."""

    def __init__(
        self, shim: Shim, terminal: bool, stdin: FdWriter | None, readers: dict[Stream, FdReader]
    ) -> None:
        super().__init__(stdin, readers)
        self._shim = shim
        self.terminal = terminal
        self._watch(self._exit_code())

    @classmethod
    async def open(cls, shim: Shim, wanted: Wanted, *, terminal: bool) -> AttachSession:
        """Join the streams of a created or running container; terminal is the container's.

        Raises FailedPreconditionError when there is nothing to attach to.
        """
        return await _keep_or_close(cls._open(shim, wanted, terminal))

    @classmethod
    async def _open(cls, shim: Shim, wanted: Wanted, terminal: bool) -> AttachSession:
        wanted = Wanted(wanted.stdin, wanted.stdout, wanted.stderr and not terminal)
        with _open_pipes(wanted) as pipes, _client_errors(f"attach to {shim.container_id}"):
            theirs = pipes.theirs
            await shim.attach(
                stdin=theirs.get("stdin"), stdout=theirs.get("stdout"), stderr=theirs.get("stderr")
            )
        return cls(shim, terminal, pipes.stdin, pipes.readers)

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters; nothing happens without one, or with a zero."""
        if self.terminal and width and height:
            with contextlib.suppress(ShimError):  # it has exited: there is nothing to resize
                await self._shim.resize(width, height)

    async def kill(self, signal_: int) -> None:
        """Send a Linux signal to the container's process; one that has exited is no error."""
        with contextlib.suppress(ShimError):
            await self._shim.kill(signal_)

    async def _exit_code(self) -> int:
        with _client_errors(f"container {self._shim.container_id}"):
            return (await self._shim.wait()).exit_code

    def close(self) -> None:
        """Detach; the container runs on."""
        self._close_streams()
        if self._exit is not None:
            self._exit.cancel()


@dataclass
class _Pipes:
    """Pipes between daemon and process: ours wrapped, theirs as plain fds by stream name."""

    stdin: FdWriter | None = None
    readers: dict[Stream, FdReader] = field(default_factory=dict)
    theirs: dict[str, int] = field(default_factory=dict)

    def open(self, wanted: Wanted) -> None:
        """Make the pipes that are wanted."""
        if wanted.stdin:
            self.theirs["stdin"], ours = open_pipe()
            self.stdin = FdWriter(ours)
        for stream in Stream:
            if wanted.stdout if stream is Stream.STDOUT else wanted.stderr:
                ours, self.theirs[stream.value] = open_pipe()
                self.readers[stream] = FdReader(ours)

    def close_ours(self) -> None:
        """Close the daemon's ends, when there will be no session to own them."""
        if self.stdin is not None:
            self.stdin.close()
        for reader in self.readers.values():
            reader.close()


@contextlib.contextmanager
def _open_pipes(wanted: Wanted) -> Iterator[_Pipes]:
    """Open pipes; the process has duplicates of its ends when the block ends, or never will."""
    pipes = _Pipes()
    try:
        pipes.open(wanted)
        yield pipes
    except BaseException:
        pipes.close_ours()
        raise
    finally:
        for fd in pipes.theirs.values():
            os.close(fd)


@contextlib.contextmanager
def _client_errors(what: str) -> Iterator[None]:
    """Turn the shim's refusals into errors that a client may see."""
    try:
        yield
    except StartError as err:
        raise InvalidArgumentError(f"{what}: {err}") from err
    except ShimError as err:
        raise SHIM_ERRORS.get(err.kind, InternalError)(f"{what}: {err}") from err


_S = TypeVar("_S", ExecSession, AttachSession)


async def _keep_or_close(opening: Coroutine[Any, Any, _S]) -> _S:
    """Await a session; if the caller is cancelled meanwhile, close what still gets opened."""
    task = asyncio.create_task(opening)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_close_unwanted)
        raise


def _close_unwanted(opened: asyncio.Task[_S]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()

"""The server side of criserver.extension.v1: exec, attach and port-forward for our own client.

The streams themselves are criserver.streaming's; here they become gRPC messages and back. What is
raised are api.errors, which the server's interceptors turn into status codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import grpc.aio

from api.errors import InvalidArgumentError, NotFoundError
from api.extension import extension_pb2 as pb
from criserver.bundle import read_spec
from criserver.exec_process import exec_process
from criserver.extension_diagnosis import Diagnoses, DiagnosisServicer
from criserver.extension_images import Images
from criserver.streaming.fds import FdReader, FdWriter, duplicate
from criserver.streaming.session import AttachSession, ExecSession, Session, Stream, Wanted
from runtimeshim.client import Shim

MAX_SIGNAL = 64  # man 7 signal: SIGRTMAX

# Returns the shim and the bundle of a created or running container by its id or a unique prefix.
# Raises NotFoundError, or FailedPreconditionError when it has ended.
Lookup = Callable[[str], tuple[Shim, Path]]

# Returns a connection to a TCP port of a pod's localhost; raises CRIError.
Connect = Callable[[str, int], Awaitable[socket.socket]]

Input: TypeAlias = pb.ExecInput | pb.AttachInput  # they differ in `start` alone


def extension_servicer(
    lookup: Lookup, images: Images, connect: Connect, diagnoses: Diagnoses
) -> ExtensionServicer:
    """Return the servicer to register on the CRI's socket, behind the same interceptors."""
    return ExtensionServicer(lookup, images, connect, diagnoses)


class ExtensionServicer(DiagnosisServicer):
    """Exec, Attach, PortForward and what is inherited; extension.proto says what they promise."""

    def __init__(
        self, lookup: Lookup, images: Images, connect: Connect, diagnoses: Diagnoses
    ) -> None:
        super().__init__(images, diagnoses)
        self._lookup = lookup
        self._connect = connect

    async def Exec(  # noqa: N802 - the name is the RPC's
        self,
        request_iterator: AsyncIterator[pb.ExecInput],
        context: grpc.aio.ServicerContext[pb.ExecInput, pb.ExecOutput],
    ) -> AsyncIterator[pb.ExecOutput]:
        """Run a process in a container and relay its streams."""
        start = (await _first(request_iterator)).start
        shim, bundle = self._lookup(start.container_id)
        process = exec_process(_process(bundle), start.command, terminal=start.terminal)
        with _until_rpc_ends(context) as resources:
            session = await ExecSession.open(shim, process, Wanted(stdin=start.stdin))
            resources.callback(session.close)
            await session.resize(start.size.width, start.size.height)
            yield pb.ExecOutput(started=pb.ExecStarted())
            async for stream, data in _relay(session, request_iterator, resources):
                yield pb.ExecOutput(**_chunk(stream, data))
            yield pb.ExecOutput(exit_code=await session.wait())

    async def Attach(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.AttachInput],
        context: grpc.aio.ServicerContext[pb.AttachInput, pb.AttachOutput],
    ) -> AsyncIterator[pb.AttachOutput]:
        """Join the streams of a container's own process."""
        start = (await _first(request_iterator)).start
        shim, bundle = self._lookup(start.container_id)
        terminal = bool(_process(bundle).get("terminal"))
        with _until_rpc_ends(context) as resources:
            session = await AttachSession.open(shim, Wanted(stdin=start.stdin), terminal=terminal)
            resources.callback(session.close)
            await session.resize(start.size.width, start.size.height)
            yield pb.AttachOutput(started=pb.AttachStarted(terminal=terminal))
            async for stream, data in _relay(session, request_iterator, resources):
                yield pb.AttachOutput(**_chunk(stream, data))
            yield pb.AttachOutput(exit_code=await session.wait())

    async def PortForward(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.PortForwardInput],
        context: grpc.aio.ServicerContext[pb.PortForwardInput, pb.PortForwardOutput],
    ) -> AsyncIterator[pb.PortForwardOutput]:
        """Connect to a TCP port of a pod, and relay what goes over it."""
        start = (await _first(request_iterator)).start
        sock = await self._connect(start.pod_sandbox_id, start.port)
        with _until_rpc_ends(context) as resources:
            writer = FdWriter(duplicate(sock.fileno()))
            resources.callback(writer.close)
            reader = FdReader(sock.detach())
            resources.callback(reader.close)
            yield pb.PortForwardOutput(started=pb.PortForwardStarted())
            feeder = asyncio.create_task(_feed_port(writer, request_iterator))
            resources.callback(feeder.cancel)
            feeder.add_done_callback(lambda task: _close_if_failed(task, reader))
            with contextlib.suppress(ConnectionError):  # a reset is the end of what the pod sends
                while data := await reader.read():
                    yield pb.PortForwardOutput(data=data)
            if feeder.done() and not feeder.cancelled():
                feeder.result()


async def _feed_port(writer: FdWriter, requests: AsyncIterator[pb.PortForwardInput]) -> None:
    """Send what the client sends; a pod that no longer reads ends that direction alone."""
    with contextlib.suppress(ConnectionError):
        async for message in requests:
            kind = message.WhichOneof("input")
            if kind != "data":
                raise InvalidArgumentError(f"unexpected input {kind!r} in the stream")
            await writer.write(message.data)
        writer.shutdown()


def _process(bundle: Path) -> dict[str, Any]:
    """Return the OCI process object of the container's own process."""
    spec = read_spec(bundle)
    if spec is None:
        raise NotFoundError("bundle of container", bundle.name)
    process: dict[str, Any] = spec["process"]
    return process


async def _first(requests: AsyncIterator[Any]) -> Any:
    async for message in requests:
        if message.WhichOneof("input") == "start":
            return message
        break
    raise InvalidArgumentError("the first message of the stream must be `start`")


@contextlib.contextmanager
def _until_rpc_ends(
    context: grpc.aio.ServicerContext[Any, Any],
) -> Iterator[contextlib.ExitStack]:
    """Give an ExitStack that is closed when the RPC ends, however it ends.

    A client that vanishes while gRPC writes leaves our generator suspended at its yield, for the
    garbage collector to close one day: the RPC's own callback is the one thing that always comes.
    """
    with contextlib.ExitStack() as resources:
        # gRPC calls it with the context; its types ask for a class that does not exist.
        context.add_done_callback(lambda _: resources.close())  # type: ignore[arg-type]
        yield resources


async def _relay(
    session: Session, requests: AsyncIterator[Any], resources: contextlib.ExitStack
) -> AsyncIterator[tuple[Stream, bytes]]:
    """Yield the session's output while its input is fed; raises what is wrong with the input."""
    feeder = asyncio.create_task(_feed(session, requests))
    resources.callback(feeder.cancel)
    feeder.add_done_callback(lambda task: _close_if_failed(task, session))
    async for chunk in session.output():
        yield chunk
    if feeder.done() and not feeder.cancelled():
        feeder.result()


def _close_if_failed(feeder: asyncio.Task[None], output: Session | FdReader) -> None:
    if not feeder.cancelled() and feeder.exception() is not None:
        output.close()


async def _feed(session: Session, requests: AsyncIterator[Input]) -> None:
    async for message in requests:
        match message.WhichOneof("input"):
            case "stdin":
                await session.write_stdin(message.stdin)
            case "stdin_close":
                await session.close_stdin()
            case "resize":
                await session.resize(message.resize.width, message.resize.height)
            case "signal":
                await session.kill(_checked_signal(message.signal))
            case other:
                raise InvalidArgumentError(f"unexpected input {other!r} in the stream")
    await session.close_stdin()


def _checked_signal(number: int) -> int:
    if not 1 <= number <= MAX_SIGNAL:
        raise InvalidArgumentError(f"{number} is not a Linux signal (1 to {MAX_SIGNAL})")
    return number


def _chunk(stream: Stream, data: bytes) -> dict[str, Any]:
    return {stream.value: data}

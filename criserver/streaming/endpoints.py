"""How each thing that a client may ask for is served over each transport that it may choose.

An endpoint is made from the HTTP request, attached to the connection, and then served to its end:

    endpoint_for(request, wanted) ─▶ 101 ─▶ attach(connection) ─▶ serve()
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Protocol, TypeAlias
from urllib.parse import parse_qs

from api.errors import InvalidArgumentError
from criserver.streaming import channels, port_forward, remote_status
from criserver.streaming.channels import ChannelProtocol
from criserver.streaming.client_stream import ClientStream
from criserver.streaming.connection import GONE, Connection
from criserver.streaming.links import ChannelLink, SpdyLink, TunnelLink
from criserver.streaming.port_forward import Forward, StreamPairs
from criserver.streaming.remote_command import Command, CommandStreams, serve_command, tell
from criserver.streaming.upgrade import HTTPError, Request, Transport, choose

STREAM_CREATION_SECONDS = 30.0  # what a client gets to open its SPDY streams, as with the peers


@dataclass(frozen=True)
class CommandRequest:
    """An exec or an attach, and the streams that the CRI's request names."""

    command: Command
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


StreamingRequest: TypeAlias = CommandRequest | Forward


@dataclass(frozen=True)
class SpdyVersion:
    """One version of remotecommand over SPDY."""

    resizes: bool
    json_status: bool


SPDY_COMMAND: Mapping[str, SpdyVersion] = {
    "v4.channel.k8s.io": SpdyVersion(resizes=True, json_status=True),
    "v3.channel.k8s.io": SpdyVersion(resizes=True, json_status=False),
    "v2.channel.k8s.io": SpdyVersion(resizes=False, json_status=False),
    "channel.k8s.io": SpdyVersion(resizes=False, json_status=False),
}
WEBSOCKET_FORWARD = (port_forward.TUNNEL_PROTOCOL, *channels.PORT_FORWARD)

# remotecommand's channels over WebSocket.
STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)


class Endpoint(Protocol):
    """One request over one transport."""

    protocol: str  # the subprotocol for the answer

    def attach(self, connection: Connection) -> None:
        """Take what the connection receives from now on."""

    async def serve(self) -> None:
        """Serve to the end and say so. Raises ConnectionResetError when the client has gone."""


def endpoint_for(request: Request, wanted: StreamingRequest) -> Endpoint:
    """Return what serves a request. Raises HTTPError."""
    spdy = request.transport is Transport.SPDY
    if isinstance(wanted, CommandRequest):
        if spdy:
            return SpdyCommand(wanted, choose(request, SPDY_COMMAND))
        return ChannelCommand(wanted, channels.REMOTE_COMMAND[_chosen_command(request)])
    protocol = choose(request, (port_forward.SPDY_PROTOCOL,) if spdy else WEBSOCKET_FORWARD)
    if protocol in channels.PORT_FORWARD:
        ports = wanted.ports or _query_ports(request)
        return ChannelForward(replace(wanted, ports=ports), channels.PORT_FORWARD[protocol])
    return SpdyForward(wanted, protocol)


def _chosen_command(request: Request) -> str:
    return choose(request, channels.REMOTE_COMMAND)


def _query_ports(request: Request) -> tuple[int, ...]:
    words = [word for value in parse_qs(request.query).get("port", []) for word in value.split(",")]
    try:
        ports = tuple(port_forward.parse_port(word) for word in words)
    except InvalidArgumentError as err:
        raise HTTPError(HTTPStatus.BAD_REQUEST, str(err)) from err
    if not ports:
        raise HTTPError(
            HTTPStatus.BAD_REQUEST,
            "port-forward over WebSocket channels needs ports: in the CRI's request, or as ?port=N",
        )
    return ports


class SpdyCommand:
    """Exec or attach over SPDY: it begins when the client has opened all its streams."""

    def __init__(self, wanted: CommandRequest, protocol: str) -> None:
        self.protocol = protocol
        self._wanted = wanted
        self._version = SPDY_COMMAND[protocol]
        given = {"stdin": wanted.stdin, "stdout": wanted.stdout, "stderr": wanted.stderr}
        given |= {"error": True, "resize": wanted.tty and self._version.resizes}
        self._expected = {name for name, expected in given.items() if expected}
        self._streams: dict[str, ClientStream] = {}

    def attach(self, connection: Connection) -> None:
        """Take what the connection receives from now on."""
        self._connection = connection
        self._complete = asyncio.get_running_loop().create_future()
        self._link = SpdyLink(connection, connection.write, self._opened)
        connection.receive = self._link.receive

    def _opened(self, stream: ClientStream) -> None:
        kind = stream.headers.get("streamtype", "")
        if kind not in ("error", "stdin", "stdout", "stderr", "resize") or kind in self._streams:
            stream.reset()
            return
        self._streams[kind] = stream
        if kind not in self._expected:
            stream.discard()
        if self._expected <= self._streams.keys() and not self._complete.done():
            self._complete.set_result(None)

    async def serve(self) -> None:
        """Serve to the end and say so."""
        if await self._connection.wait(self._complete, STREAM_CREATION_SECONDS):
            await serve_command(self._connection, self._command_streams(), self._wanted.command)
        elif "error" in self._streams and not self._connection.ended.done():
            missing = ", ".join(sorted(self._expected - self._streams.keys()))
            status = remote_status.failed(
                f"{self._wanted.command.what}: the client did not open the streams {missing} "
                f"within {STREAM_CREATION_SECONDS:.0f} s"
            )
            tell(self._command_streams(), status)
        self._link.close()
        await self._connection.finish()

    def _command_streams(self) -> CommandStreams:
        streams = {name: self._streams[name] for name in self._expected & self._streams.keys()}
        return CommandStreams(**streams, json_status=self._version.json_status)


class ChannelCommand:
    """Exec or attach over WebSocket: the channels are there from the beginning."""

    def __init__(self, wanted: CommandRequest, protocol: ChannelProtocol) -> None:
        self.protocol = protocol.name
        self._wanted = wanted
        self._version = protocol

    def attach(self, connection: Connection) -> None:
        """Take what the connection receives from now on."""
        self._connection = connection
        readable = [STDIN, RESIZE] if self._wanted.stdin else [RESIZE]
        self._link = ChannelLink(connection, self._version, readable)
        connection.receive = self._link.receive

    async def serve(self) -> None:
        """Serve to the end and say so."""
        stream, wanted = self._link.stream, self._wanted
        streams = CommandStreams(
            error=stream(ERROR),
            stdin=stream(STDIN) if wanted.stdin else None,
            stdout=stream(STDOUT) if wanted.stdout else None,
            stderr=stream(STDERR) if wanted.stderr else None,
            resize=stream(RESIZE),
            json_status=self._version.json_status,
        )
        # An empty message says that the connection is there.
        await (streams.stdout or streams.stderr or streams.error).write(b"")
        await serve_command(self._connection, streams, wanted.command)
        await _end(self._link, self._connection)


class SpdyForward:
    """Port-forward over SPDY, which may be in a WebSocket."""

    def __init__(self, wanted: Forward, protocol: str) -> None:
        self.protocol = protocol
        self._pairs = StreamPairs(wanted, STREAM_CREATION_SECONDS)

    def attach(self, connection: Connection) -> None:
        """Take what the connection receives from now on."""
        self._connection = connection
        if self.protocol == port_forward.TUNNEL_PROTOCOL:
            self._link: SpdyLink = TunnelLink(connection, self._pairs.opened)
        else:
            self._link = SpdyLink(connection, connection.write, self._pairs.opened)
        connection.receive = self._link.receive

    async def serve(self) -> None:
        """Serve until the client goes, or the connection is to end."""
        try:
            await asyncio.shield(self._connection.ended)
        finally:
            await self._pairs.close()
        await _end(self._link, self._connection)


class ChannelForward:
    """Port-forward over WebSocket: one connection for each port."""

    def __init__(self, wanted: Forward, protocol: ChannelProtocol) -> None:
        self.protocol = protocol.name
        self._wanted = wanted
        self._version = protocol

    def attach(self, connection: Connection) -> None:
        """Take what the connection receives from now on."""
        self._connection = connection
        readable = range(0, 2 * len(self._wanted.ports), 2)
        self._link = ChannelLink(connection, self._version, readable)
        connection.receive = self._link.receive

    async def serve(self) -> None:
        """Serve until every port is done, the client goes, or the connection is to end."""
        stream = self._link.stream
        pairs = [(stream(2 * n), stream(2 * n + 1)) for n in range(len(self._wanted.ports))]
        work = asyncio.create_task(port_forward.forward_channels(self._wanted, pairs))
        try:
            if await self._connection.wait(work):
                work.result()
        finally:
            work.cancel()
            await asyncio.wait({work})
        await _end(self._link, self._connection)


async def _end(link: SpdyLink | ChannelLink, connection: Connection) -> None:
    """Say that it is over, and why if the client did not expect it; then close."""
    reason = connection.ended.result() if connection.ended.done() else ""
    link.close("" if reason == GONE else reason)
    await connection.finish()

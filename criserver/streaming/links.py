"""Streams over SPDY, over WebSocket's channels, and over SPDY inside of WebSocket.

Connection ── receive ──▶ link ──▶ protocol core ──▶ events ──▶ ClientStream.feed
Connection ◀── write ──── link ◀── protocol core ◀── ClientStream.write
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from criserver.streaming import channels, spdy, websocket
from criserver.streaming.buffer import Buffer
from criserver.streaming.channels import ChannelClosed, ChannelData, ChannelProtocol
from criserver.streaming.client_stream import ClientStream
from criserver.streaming.connection import GONE, Connection
from criserver.streaming.websocket import CloseCode, CloseReceived, WebSocketConnection

log = logging.getLogger(__name__)

# Called with a stream that the client has opened; answers with accept() or reset().
StreamOpened = Callable[[ClientStream], None]


class SpdyLink:
    """The streams of a SPDY connection, which the client opens."""

    def __init__(
        self, connection: Connection, write: Callable[[bytes], None], opened: StreamOpened
    ) -> None:
        self.connection = connection
        self._write = write
        self._opened = opened
        self._core = spdy.SpdyConnection()
        self._streams: dict[int, ClientStream] = {}
        connection.probe = self._probe

    def receive(self, data: bytes) -> None:
        """Take what the client has sent."""
        try:
            for event in self._core.receive_data(data):
                self._take(event)
        except spdy.RemoteProtocolError as err:
            log.warning("a streaming client breaks SPDY: %s", err)
            self.connection.end(f"the client breaks SPDY: {err}")
        self._flush()

    def _take(self, event: spdy.Event) -> None:
        match event:
            case spdy.DataReceived(stream_id, data):
                if stream_id in self._streams:  # not one that was refused with this very batch
                    self._streams[stream_id].feed(data)
            case spdy.StreamOpened(stream_id, headers):
                self._open(stream_id, headers)
            case spdy.StreamEnded(stream_id) if stream_id in self._streams:
                self._streams[stream_id].feed_end()
                self._forget_closed(stream_id)
            case spdy.StreamReset(stream_id) if stream_id in self._streams:
                self._streams.pop(stream_id).feed_reset()
            case spdy.ConnectionEnded():
                self.connection.end(GONE)
            case _:
                pass

    def _open(self, stream_id: int, headers: dict[str, str]) -> None:
        if not self._core.is_known(stream_id):
            return  # opened and reset with the same packet
        stream = ClientStream(self, stream_id, headers)
        self._streams[stream_id] = stream
        self._core.accept(stream_id)
        self._opened(stream)

    def _forget_closed(self, stream_id: int) -> None:
        if not self._core.is_known(stream_id):
            self._streams.pop(stream_id, None)

    def _probe(self) -> None:
        self._core.probe()
        self._flush()

    def _flush(self) -> None:
        if data := self._core.data_to_send():
            self._write(data)

    def send(self, stream_id: int, data: Buffer) -> None:
        """Send data on a stream that is open."""
        if self._core.is_open(stream_id) and data:
            self._core.send_data(stream_id, data)
            self._flush()

    def send_end(self, stream_id: int) -> None:
        """End a stream."""
        if self._core.is_open(stream_id):
            self._core.end(stream_id)
            self._forget_closed(stream_id)
            self._flush()

    def send_reset(self, stream_id: int) -> None:
        """Close a stream both ways."""
        self._core.reset(stream_id)
        self._streams.pop(stream_id, None)
        self._flush()

    def close(self, reason: str = "") -> None:
        """Send GOAWAY, which has no room for a reason."""
        self._core.close()
        self._flush()


class ChannelLink:
    """The streams of a WebSocket connection, which are there from its beginning."""

    def __init__(
        self, connection: Connection, protocol: ChannelProtocol, readable: Collection[int]
    ) -> None:
        self.connection = connection
        self._protocol = protocol
        self._core = WebSocketConnection()
        self._decoder = channels.ChannelDecoder(protocol)
        self._streams = {channel: ClientStream(self, channel, {}) for channel in readable}
        self._over: set[int] = set()  # what we have ended
        connection.probe = self._pong

    def stream(self, channel: int) -> ClientStream:
        """Return the stream of a channel; one that is not readable is for writing only."""
        return self._streams.get(channel) or ClientStream(self, channel, {})

    def receive(self, data: bytes) -> None:
        """Take what the client has sent."""
        try:
            for event in self._core.receive_data(data):
                if isinstance(event, CloseReceived):
                    self.connection.end(GONE)
                elif taken := self._decoder.receive(event):
                    self._take(taken)
        except channels.ChannelError as err:
            self._broken(self._core.fail(str(err), CloseCode.INVALID_DATA))
        except websocket.RemoteProtocolError as err:
            self._broken(err)
        self._flush()

    def _broken(self, err: websocket.RemoteProtocolError) -> None:
        log.warning("a streaming client breaks the WebSocket protocol: %s", err)
        self.connection.end(f"the client breaks the WebSocket protocol: {err}")

    def _take(self, taken: ChannelData | ChannelClosed) -> None:
        stream = self._streams.get(taken.channel)
        if stream is None:
            return  # a channel that was not asked for; the peers ignore it too
        if isinstance(taken, ChannelClosed):
            stream.feed_end()
        else:
            stream.feed(taken.data)

    def _pong(self) -> None:
        """Keep a client content whose pings we do not read, because its container does not read."""
        self._core.pong()
        self._flush()

    def _flush(self) -> None:
        if data := self._core.data_to_send():
            self.connection.write(data)

    def send(self, stream_id: int, data: Buffer) -> None:
        """Send data on a channel, an empty message too."""
        if stream_id not in self._over:
            message = channels.encode(self._protocol, stream_id, data)
            self._core.send_message(message, text=self._protocol.is_base64)
            self._flush()

    def send_end(self, stream_id: int) -> None:
        """End a channel: no version has a sign for that, the connection's end is all."""
        self._over.add(stream_id)

    def send_reset(self, stream_id: int) -> None:
        """Give a channel up."""
        self._over.add(stream_id)

    def close(self, reason: str = "") -> None:
        """Send a close frame, 1000 for an end that was to be expected."""
        self._core.close(CloseCode.GOING_AWAY if reason else CloseCode.NORMAL, reason)
        self._flush()


class TunnelLink(SpdyLink):
    """SPDY whose bytes are the binary messages of a WebSocket, without regard to their borders."""

    def __init__(self, connection: Connection, opened: StreamOpened) -> None:
        super().__init__(connection, self._wrap, opened)
        self._websocket = WebSocketConnection()
        connection.probe = self._pong

    def receive(self, data: bytes) -> None:
        """Take what the client has sent."""
        try:
            for event in self._websocket.receive_data(data):
                if isinstance(event, CloseReceived):
                    self.connection.end(GONE)
                else:
                    super().receive(bytes(event.data))
        except websocket.RemoteProtocolError as err:
            log.warning("a streaming client breaks the WebSocket protocol: %s", err)
            self.connection.end(f"the client breaks the WebSocket protocol: {err}")
        self._flush_websocket()

    def _wrap(self, data: bytes) -> None:
        self._websocket.send_message(data)
        self._flush_websocket()

    def _pong(self) -> None:
        self._websocket.pong()
        self._flush_websocket()

    def _flush_websocket(self) -> None:
        if data := self._websocket.data_to_send():
            self.connection.write(data)

    def close(self, reason: str = "") -> None:
        """Send GOAWAY and a close frame."""
        super().close(reason)
        self._websocket.close(CloseCode.GOING_AWAY if reason else CloseCode.NORMAL, reason)
        self._flush_websocket()

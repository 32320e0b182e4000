"""The Kubernetes subprotocols of WebSocket: several streams in the messages of one connection.

A message's first byte names its channel; the rest is data. In the base64 variants the byte is a
digit and the data is base64, so that all messages are text. In v5 the message 255 N ends what the
client sends on channel N: no version before it has a half-close.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from criserver.streaming.buffer import Buffer
from criserver.streaming.websocket import MessageReceived

CLOSE_CHANNEL = 255

# Bounds a message of the base64 variants, which are decoded whole. Others are passed on in pieces.
MAX_BASE64 = 1024 * 1024


@dataclass(frozen=True)
class ChannelProtocol:
    """One subprotocol."""

    name: str
    is_base64: bool = False
    json_status: bool = False  # the error channel of remotecommand carries a metav1.Status
    half_close: bool = False


# Without a name it is as the oldest one, binary.
REMOTE_COMMAND = {
    protocol.name: protocol
    for protocol in (
        ChannelProtocol(""),
        ChannelProtocol("channel.k8s.io"),
        ChannelProtocol("base64.channel.k8s.io", is_base64=True),
        ChannelProtocol("v2.channel.k8s.io"),
        ChannelProtocol("v3.channel.k8s.io"),
        ChannelProtocol("v4.channel.k8s.io", json_status=True),
        ChannelProtocol("v4.base64.channel.k8s.io", is_base64=True, json_status=True),
        ChannelProtocol("v5.channel.k8s.io", json_status=True, half_close=True),
    )
}
PORT_FORWARD = {
    name: REMOTE_COMMAND[name] for name in ("", "v4.channel.k8s.io", "v4.base64.channel.k8s.io")
}


@dataclass(frozen=True, slots=True)
class ChannelData:
    """Data on a channel."""

    channel: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The client sends nothing more on a channel."""

    channel: int


class ChannelError(Exception):
    """A message that the subprotocol does not allow; the connection cannot go on."""


class ChannelDecoder:
    """Reads the messages of one connection, in the pieces that they come in."""

    def __init__(self, protocol: ChannelProtocol) -> None:
        self._protocol = protocol
        self._channel: int | None = None  # of the message that is being read
        self._held = bytearray()  # of a message that counts only when it is whole

    def receive(self, piece: MessageReceived) -> ChannelData | ChannelClosed | None:
        """Return what a piece of a message means, None for nothing yet. Raises ChannelError."""
        data: bytes | memoryview = memoryview(piece.data)
        if self._channel is None and data:
            self._channel, data = data[0], data[1:]
        channel = self._channel
        if piece.last:
            self._channel = None
        if channel is None:
            return None  # an empty message
        if self._protocol.is_base64:
            return self._base64(channel, data, piece.last)
        if self._protocol.half_close and channel == CLOSE_CHANNEL:
            return self._close(data, piece.last)
        return ChannelData(channel, data) if data else None

    def _close(self, data: bytes | memoryview, last: bool) -> ChannelClosed | None:
        self._hold(data, 1)
        if not last:
            return None
        held, self._held = self._held, bytearray()
        if len(held) != 1:
            raise ChannelError("a close signal does not name one channel")
        return ChannelClosed(held[0])

    def _base64(self, channel: int, data: bytes | memoryview, last: bool) -> ChannelData | None:
        self._hold(data, MAX_BASE64)
        if not last:
            return None
        held, self._held = self._held, bytearray()
        try:
            return ChannelData(channel - ord("0"), base64.b64decode(held, validate=True))
        except binascii.Error as err:
            raise ChannelError(f"a message is not base64: {err}") from err

    def _hold(self, data: bytes | memoryview, limit: int) -> None:
        if len(self._held) + len(data) > limit:
            raise ChannelError(f"a message has more than {limit} bytes of data")
        self._held += data


def encode(protocol: ChannelProtocol, channel: int, data: Buffer) -> bytes:
    """Return the message of some data on a channel."""
    if protocol.is_base64:
        return b"%d" % channel + base64.b64encode(data)
    return b"".join((bytes((channel,)), data))

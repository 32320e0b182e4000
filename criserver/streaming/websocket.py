"""The server's side of WebSocket (RFC 6455), without I/O: wsproto, as the channels need it.

No extension is negotiated: compression would cost more than it saves on one machine. Text and
binary messages are one and the same here, since clients of the base64 subprotocols send either.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

import wsproto.events
from wsproto.connection import Connection, ConnectionState, ConnectionType

from criserver.streaming.buffer import Buffer


class CloseCode(enum.IntEnum):
    """Why a connection ends (RFC 6455, section 7.4.1); of these only what we send."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    INVALID_DATA = 1007


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A piece of a message; `last` is set on the last one, which may be empty."""

    data: Buffer
    last: bool


@dataclass(frozen=True, slots=True)
class CloseReceived:
    """The client ends the connection; the answer is in data_to_send."""

    code: int


# wsproto tells of malformed frames as if the client had closed; its state says that it has not.
_NOT_CLOSED_BY_CLIENT = (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING)

Event: TypeAlias = MessageReceived | CloseReceived


class RemoteProtocolError(Exception):
    """The client breaks the protocol; a close frame is in data_to_send, nothing more is read."""


class WebSocketConnection:
    """One connection from its first frame on."""

    def __init__(self) -> None:
        self._wsproto = Connection(ConnectionType.SERVER)
        self._output: list[bytes] = []
        self._deaf = False  # nothing more is read

    def receive_data(self, data: bytes) -> list[Event]:
        """Take what the client has sent; returns what it means. Raises RemoteProtocolError."""
        if self._deaf:
            return []
        taken: list[Event] = []
        self._wsproto.receive_data(data)
        for event in self._wsproto.events():
            self._take(event, taken)
        return taken

    def _take(self, event: wsproto.events.Event, taken: list[Event]) -> None:
        match event:
            case wsproto.events.BytesMessage():
                taken.append(MessageReceived(event.data, event.message_finished))
            case wsproto.events.TextMessage():
                taken.append(MessageReceived(event.data.encode(), event.message_finished))
            case wsproto.events.Ping():
                self._send(event.response())
            case wsproto.events.CloseConnection() if self._wsproto.state in _NOT_CLOSED_BY_CLIENT:
                raise self.fail(event.reason or "malformed frame", event.code)
            case wsproto.events.CloseConnection():
                self._deaf = True
                self._send(event.response())
                taken.append(CloseReceived(event.code))
            case _:  # a pong to nothing is allowed (section 5.5.3)
                pass

    def fail(self, message: str, code: int = CloseCode.PROTOCOL_ERROR) -> RemoteProtocolError:
        """Close for a breach of the protocol, here or above; returns what is to be raised."""
        self._deaf = True
        self.close(code, message)
        return RemoteProtocolError(message)

    def data_to_send(self) -> bytes:
        """Return what is to be sent since the last call."""
        data = b"".join(self._output)
        self._output.clear()
        return data

    def send_message(self, data: Buffer, *, text: bool = False) -> None:
        """Send one message; after a close nothing happens. Text is ASCII."""
        if text:
            self._send(wsproto.events.TextMessage(data=bytes(data).decode("ascii")))
        else:
            self._send(wsproto.events.BytesMessage(data=bytes(data)))

    def pong(self) -> None:
        """Say that we are there, unasked (section 5.5.3)."""
        self._send(wsproto.events.Pong())

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame. Idempotent."""
        self._send(wsproto.events.CloseConnection(code=code, reason=reason))

    def _send(self, event: wsproto.events.Event) -> None:
        state = self._wsproto.state
        closing = isinstance(event, wsproto.events.CloseConnection)
        if state is ConnectionState.OPEN or (closing and state is ConnectionState.REMOTE_CLOSING):
            self._output.append(self._wsproto.send(event))

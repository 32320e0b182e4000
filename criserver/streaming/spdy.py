"""The server's side of SPDY/3.1, without I/O: bytes in, events out; calls in, bytes out.

    SYN_STREAM ──▶ OPENED ──accept──▶ OPEN ──end──▶ LOCAL_ENDED ──FIN──▶ closed
                     │ FIN             │ FIN
                     ▼                 ▼
               OPENED_ENDED ──▶ REMOTE_ENDED ──end──▶ closed          RST_STREAM closes any

Source: SPDY protocol draft 3.1. Spoken here as by the one client that exists, the spdystream
library below client-go: it neither counts windows nor sends WINDOW_UPDATE, so flow control is
TCP's, and WINDOW_UPDATE and SETTINGS are read and not acted upon. Payloads of DATA frames are
handed on as they come, so that a frame of 16 MiB needs no memory.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TypeAlias

from criserver.streaming.buffer import Buffer
from criserver.streaming.spdy_headers import (
    BrokenBlockError,
    HeaderDecoder,
    HeaderEncoder,
    MalformedHeadersError,
)

VERSION = 3
MAX_CONTROL = 16 * 1024  # bytes of a control frame; what clients send has less than 200
MAX_DATA = (1 << 24) - 1  # the length has 24 bits
MAX_STREAMS = 2048  # bounds the memory of a connection; a forwarded connection needs two

_HEAD = struct.Struct(">II")
_WORD = struct.Struct(">I")
_CONTROL = 0x80000000
_ID = 0x7FFFFFFF
_FIN = 0x01


class Frame(enum.IntEnum):
    """The types of control frames (section 2.6)."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Reset(enum.IntEnum):
    """Why a stream is reset (section 2.6.3); of these only what we send."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    CANCEL = 5
    STREAM_ALREADY_CLOSED = 9


class GoAway(enum.IntEnum):
    """Why a connection ends (section 2.6.6)."""

    OK = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class State(enum.Enum):
    """The states of a stream that is not closed."""

    OPENED = enum.auto()  # the client may send, we have not replied
    OPENED_ENDED = enum.auto()
    OPEN = enum.auto()
    LOCAL_ENDED = enum.auto()
    REMOTE_ENDED = enum.auto()


class Step(enum.Enum):
    """What happens to a stream, by us or by the client."""

    ACCEPT = enum.auto()
    SEND = enum.auto()
    SEND_END = enum.auto()
    RECEIVE = enum.auto()
    RECEIVE_END = enum.auto()


# The whole table: what is not in it is an error of whoever did it. None is closed.
NEXT: dict[tuple[State, Step], State | None] = {
    (State.OPENED, Step.ACCEPT): State.OPEN,
    (State.OPENED, Step.RECEIVE): State.OPENED,
    (State.OPENED, Step.RECEIVE_END): State.OPENED_ENDED,
    (State.OPENED_ENDED, Step.ACCEPT): State.REMOTE_ENDED,
    (State.OPEN, Step.SEND): State.OPEN,
    (State.OPEN, Step.SEND_END): State.LOCAL_ENDED,
    (State.OPEN, Step.RECEIVE): State.OPEN,
    (State.OPEN, Step.RECEIVE_END): State.REMOTE_ENDED,
    (State.LOCAL_ENDED, Step.RECEIVE): State.LOCAL_ENDED,
    (State.LOCAL_ENDED, Step.RECEIVE_END): None,
    (State.REMOTE_ENDED, Step.SEND): State.REMOTE_ENDED,
    (State.REMOTE_ENDED, Step.SEND_END): None,
}


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The client opens a stream: answer with `accept` or `reset`. Header names are lower-case."""

    stream_id: int
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class DataReceived:
    """A piece of a stream; the memory is that of the bytes that were received."""

    stream_id: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The client sends nothing more on a stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """A stream is closed both ways."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class ConnectionEnded:
    """The client has said GOAWAY: it opens no more streams and will disconnect."""


Event: TypeAlias = StreamOpened | DataReceived | StreamEnded | StreamReset | ConnectionEnded


class RemoteProtocolError(Exception):
    """The client breaks the protocol; GOAWAY is in data_to_send, and nothing more is read."""


class LocalProtocolError(Exception):
    """We tried what the stream's state does not allow."""


def _stream_id(payload: bytes) -> int:
    return int.from_bytes(payload[:4], "big") & _ID


class SpdyConnection:
    """One connection from its first frame on."""

    def __init__(self) -> None:
        self._decoder = HeaderDecoder()
        self._encoder = HeaderEncoder()
        self._streams: dict[int, State] = {}
        self._last_id = 0  # the highest that the client has used
        self._partial = b""  # the beginning of a frame
        self._data_id = 0  # the stream of the DATA frame that is being read
        self._data_left = 0
        self._data_fin = False
        self._events: list[Event] = []
        self._output: list[Buffer] = []
        self._failed = False
        self._gone = False

    # --- from the client ---

    def receive_data(self, data: bytes) -> list[Event]:
        """Take what the client has sent; returns what it means.

        Raises RemoteProtocolError; the events before it are lost with the connection.
        """
        if self._failed:
            return []
        view = memoryview(self._partial + data if self._partial else data)
        position = 0
        while (length := self._take(view[position:])) > 0:
            position += length
        self._partial = bytes(view[position:])
        events, self._events = self._events, []
        return events

    def _take(self, view: memoryview) -> int:
        """Take a frame, or a piece of a DATA frame; returns its length, 0 for want of more."""
        if self._data_left:
            return self._take_data(view)
        if len(view) < _HEAD.size:
            return 0
        word: int
        tail: int
        word, tail = _HEAD.unpack_from(view)
        flags, length = tail >> 24, tail & MAX_DATA
        if not word & _CONTROL:
            self._begin_data(word, flags, length)
            return _HEAD.size
        if length > MAX_CONTROL:
            raise self._fail(f"a control frame of {length} bytes; at most {MAX_CONTROL} are taken")
        if len(view) < _HEAD.size + length:
            return 0
        if (version := word >> 16 & 0x7FFF) != VERSION:
            raise self._fail(f"a frame of SPDY version {version}, not {VERSION}")
        payload = bytes(view[_HEAD.size : _HEAD.size + length])
        self._take_control(word & 0xFFFF, flags, payload)
        return _HEAD.size + length

    def _begin_data(self, stream_id: int, flags: int, length: int) -> None:
        state = self._streams.get(stream_id)
        if stream_id == 0 or stream_id > self._last_id:
            raise self._fail(f"data for stream {stream_id}, which was never opened")
        if state is not None and (state, Step.RECEIVE) not in NEXT:
            self._drop(stream_id, Reset.STREAM_ALREADY_CLOSED)
        self._data_id, self._data_left = stream_id, length
        self._data_fin = bool(flags & _FIN)
        if not length:
            self._end_data()

    def _take_data(self, view: memoryview) -> int:
        piece = view[: self._data_left]
        if self._data_id in self._streams and piece:  # of one that is closed, it is dropped
            self._events.append(DataReceived(self._data_id, piece))
        self._data_left -= len(piece)
        if not self._data_left:
            self._end_data()
        return len(piece)

    def _end_data(self) -> None:
        if self._data_fin and self._data_id in self._streams:
            self._receive_end(self._data_id)

    def _receive_end(self, stream_id: int) -> None:
        if (self._streams[stream_id], Step.RECEIVE_END) not in NEXT:
            self._drop(stream_id, Reset.STREAM_ALREADY_CLOSED)
            return
        self._step(stream_id, Step.RECEIVE_END)
        self._events.append(StreamEnded(stream_id))

    def _take_control(self, kind: int, flags: int, payload: bytes) -> None:
        match kind:
            case Frame.SYN_STREAM:
                self._syn_stream(flags, payload)
            case Frame.SYN_REPLY | Frame.HEADERS:
                self._more_headers(flags, payload)
            case Frame.RST_STREAM:
                self._rst_stream(payload)
            case Frame.PING:
                self._ping(payload)
            case Frame.GOAWAY:
                self._gone = True
                self._events.append(ConnectionEnded())
            case _:  # SETTINGS and WINDOW_UPDATE; unknown frames MUST be ignored (section 2.2.1)
                pass

    def _syn_stream(self, flags: int, payload: bytes) -> None:
        if len(payload) < 10:
            raise self._fail("a SYN_STREAM frame is too short")
        stream_id = _stream_id(payload)
        headers = self._headers(payload[10:])
        if stream_id % 2 == 0 or stream_id <= self._last_id:
            raise self._fail(f"stream {stream_id} is opened after {self._last_id}")
        self._last_id = stream_id
        if headers is None:
            self._send_reset(stream_id, Reset.PROTOCOL_ERROR)
        elif self._gone or len(self._streams) >= MAX_STREAMS:
            self._send_reset(stream_id, Reset.REFUSED_STREAM)
        else:
            self._streams[stream_id] = State.OPENED
            self._events.append(StreamOpened(stream_id, headers))
            if flags & _FIN:
                self._receive_end(stream_id)

    def _more_headers(self, flags: int, payload: bytes) -> None:
        """Read headers that nobody wants: the compressed stream goes through them."""
        if len(payload) < 4:
            raise self._fail("a SYN_REPLY or HEADERS frame is too short")
        stream_id = _stream_id(payload)
        malformed = self._headers(payload[4:]) is None
        if stream_id not in self._streams:
            return
        if malformed:
            self._drop(stream_id, Reset.PROTOCOL_ERROR)
        elif flags & _FIN:
            self._receive_end(stream_id)

    def _headers(self, block: bytes) -> dict[str, str] | None:
        try:
            return self._decoder.decode(block)
        except BrokenBlockError as err:
            raise self._fail(str(err)) from err
        except MalformedHeadersError:
            return None

    def _rst_stream(self, payload: bytes) -> None:
        if len(payload) != 8:
            raise self._fail("a RST_STREAM frame has a wrong length")
        stream_id = _stream_id(payload)
        if self._streams.pop(stream_id, None) is not None:
            self._events.append(StreamReset(stream_id))

    def _ping(self, payload: bytes) -> None:
        if len(payload) != 4:
            raise self._fail("a PING frame has a wrong length")
        if payload[3] % 2:  # the client's own; an even one would answer ours
            self._send_control(Frame.PING, payload)

    def _drop(self, stream_id: int, why: Reset) -> None:
        del self._streams[stream_id]
        self._send_reset(stream_id, why)
        self._events.append(StreamReset(stream_id))

    def _fail(self, message: str) -> RemoteProtocolError:
        self._failed = True
        self.close(GoAway.PROTOCOL_ERROR)
        return RemoteProtocolError(message)

    # --- to the client ---

    def data_to_send(self) -> bytes:
        """Return what is to be sent since the last call."""
        data = b"".join(self._output)
        self._output.clear()
        return data

    def is_known(self, stream_id: int) -> bool:
        """Tell whether a stream is not closed both ways yet."""
        return stream_id in self._streams

    def is_open(self, stream_id: int) -> bool:
        """Tell whether anything can still be sent on a stream that was accepted."""
        state = self._streams.get(stream_id)
        return (state, Step.SEND) in NEXT

    def accept(self, stream_id: int) -> None:
        """Reply to a stream that was opened. Raises LocalProtocolError, as all of these."""
        self._step(stream_id, Step.ACCEPT)
        self._send_control(Frame.SYN_REPLY, _WORD.pack(stream_id) + self._encoder.encode({}))

    def send_data(self, stream_id: int, data: Buffer) -> None:
        """Send at most MAX_DATA bytes on a stream."""
        if len(data) > MAX_DATA:
            raise LocalProtocolError(f"{len(data)} bytes do not fit in a frame")
        self._step(stream_id, Step.SEND)
        self._output += [_HEAD.pack(stream_id, len(data)), data]

    def end(self, stream_id: int) -> None:
        """Send nothing more on a stream."""
        self._step(stream_id, Step.SEND_END)
        self._output.append(_HEAD.pack(stream_id, _FIN << 24))

    def reset(self, stream_id: int, why: Reset = Reset.CANCEL) -> None:
        """Close a stream both ways; one that is closed already stays so."""
        if self._streams.pop(stream_id, None) is not None:
            self._send_reset(stream_id, why)

    def probe(self) -> None:
        """Send what needs no answer: empty SETTINGS. A client's host that has no client resets."""
        self._send_control(Frame.SETTINGS, bytes(4))

    def close(self, why: GoAway = GoAway.OK) -> None:
        """Take no more streams. Those that are open stay so."""
        self._gone = True
        self._send_control(Frame.GOAWAY, _HEAD.pack(self._last_id, why))

    def _step(self, stream_id: int, step: Step) -> None:
        state = self._streams.get(stream_id)
        if state is None or (state, step) not in NEXT:
            raise LocalProtocolError(f"{step.name} on stream {stream_id}, which is {state}")
        following = NEXT[state, step]
        if following is None:
            del self._streams[stream_id]
        else:
            self._streams[stream_id] = following

    def _send_reset(self, stream_id: int, why: Reset) -> None:
        self._send_control(Frame.RST_STREAM, _HEAD.pack(stream_id, why))

    def _send_control(self, kind: Frame, payload: bytes) -> None:
        self._output.append(_HEAD.pack(_CONTROL | VERSION << 16 | kind, len(payload)) + payload)

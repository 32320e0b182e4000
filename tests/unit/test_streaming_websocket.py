"""WebSocket and its Kubernetes subprotocols: pieces, half-close, base64, breaches."""

from __future__ import annotations

import base64
import os
import struct

import pytest

from criserver.streaming import channels
from criserver.streaming.channels import (
    REMOTE_COMMAND,
    ChannelClosed,
    ChannelData,
    ChannelDecoder,
    ChannelError,
)
from criserver.streaming.websocket import (
    CloseReceived,
    MessageReceived,
    RemoteProtocolError,
    WebSocketConnection,
)

V4, V5 = REMOTE_COMMAND["v4.channel.k8s.io"], REMOTE_COMMAND["v5.channel.k8s.io"]
BASE64 = REMOTE_COMMAND["v4.base64.channel.k8s.io"]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes | None = None) -> bytes:
    """A client's frame, written by hand."""
    key = os.urandom(4) if mask is None else mask
    length = len(payload)
    size = length if length < 126 else 126 if length < 1 << 16 else 127
    extended = {126: struct.pack(">H", length & 0xFFFF), 127: struct.pack(">Q", length)}
    masked = bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))
    head = bytes((fin << 7 | opcode, 0x80 | size)) + extended.get(size, b"")
    return head + key + masked


@pytest.fixture
def server() -> WebSocketConnection:
    return WebSocketConnection()


def messages(events: list[object]) -> list[bytes]:
    whole, parts = [], b""
    for event in events:
        assert isinstance(event, MessageReceived)
        parts += bytes(event.data)
        if event.last:
            whole.append(parts)
            parts = b""
    return whole


@pytest.mark.parametrize("length", [0, 1, 3, 125, 126, 65535, 65536, 300_000])
@pytest.mark.parametrize("size", [1000, 65536, 1 << 20])
def test_messages_of_every_length_in_pieces(
    server: WebSocketConnection, length: int, size: int
) -> None:
    payload = os.urandom(length)
    stream = frame(BINARY, payload) + frame(TEXT, b"next")
    events: list[object] = []
    for position in range(0, len(stream), size):
        events += server.receive_data(stream[position : position + size])
    assert messages(events) == [payload, b"next"]


def test_a_message_in_fragments_with_a_ping_between(server: WebSocketConnection) -> None:
    stream = (
        frame(BINARY, b"one ", fin=False)
        + frame(PING, b"are you there")
        + frame(CONTINUATION, b"message")
        + frame(PONG, b"unasked")
    )
    assert messages(list(server.receive_data(stream))) == [b"one message"]
    assert server.data_to_send() == b"\x8a\x0dare you there"


def test_what_is_sent(server: WebSocketConnection) -> None:
    server.send_message(b"\x01out")
    server.send_message(memoryview(b"1b3V0"), text=True)
    server.pong()
    server.close(1001, "criserver is stopping")
    server.send_message(b"late")
    server.pong()
    assert server.data_to_send() == (
        b"\x82\x04\x01out\x81\x051b3V0\x8a\x00\x88\x17\x03\xe9criserver is stopping"
    )


def test_the_clients_close_is_answered_and_the_last_word(server: WebSocketConnection) -> None:
    stream = frame(CLOSE, struct.pack(">H", 1000) + b"bye") + frame(BINARY, b"late")
    assert server.receive_data(stream) == [CloseReceived(1000)]
    assert server.data_to_send()[:4] == b"\x88\x05\x03\xe8"
    assert server.receive_data(frame(BINARY, b"later")) == []
    server.send_message(b"too late")
    assert server.data_to_send() == b""


def test_a_close_while_we_close(server: WebSocketConnection) -> None:
    server.close(1000)
    assert server.receive_data(frame(BINARY, b"meanwhile") + frame(CLOSE, b""))[-1] == (
        CloseReceived(1005)
    )
    assert server.data_to_send() == b"\x88\x02\x03\xe8"


BROKEN = {
    "not masked": b"\x82\x01x",
    "reserved bits": b"\xf2" + frame(BINARY, b"x")[1:],
    "unknown opcode": frame(3, b"x"),
    "long ping": frame(PING, bytes(126)),
    "fragmented ping": frame(PING, b"", fin=False),
    "goes on without a beginning": frame(CONTINUATION, b"x"),
    "begins within another": frame(BINARY, b"x", fin=False) + frame(BINARY, b"y"),
    "long form of a short length": b"\x82\xfe\x00\x01" + bytes(5),
    "a length beyond 63 bits": b"\x82\xff\xff" + bytes(11),
    "half a close code": frame(CLOSE, b"\x03"),
    "a close code that is none": frame(CLOSE, struct.pack(">H", 999)),
    "a close reason that is no text": frame(CLOSE, b"\x03\xe8\xff"),
    "text that is no text": frame(TEXT, b"\xff"),
}


@pytest.mark.parametrize("stream", BROKEN.values(), ids=BROKEN.keys())
def test_a_breach_closes_the_connection(server: WebSocketConnection, stream: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        server.receive_data(stream)
    assert server.data_to_send()[0] == 0x88
    assert server.receive_data(frame(BINARY, b"x")) == []


def decode(protocol: channels.ChannelProtocol, *pieces: tuple[bytes, bool]) -> list[object]:
    decoder = ChannelDecoder(protocol)
    taken = [decoder.receive(MessageReceived(data, last)) for data, last in pieces]
    return [
        ChannelData(event.channel, bytes(event.data)) if isinstance(event, ChannelData) else event
        for event in taken
        if event is not None
    ]


def test_a_channel_is_the_first_byte_of_a_message_however_it_comes() -> None:
    pieces = ((b"", False), (b"\x00", False), (b"one ", False), (b"two", True), (b"\x04{}", True))
    assert decode(V4, *pieces) == [
        ChannelData(0, b"one "),
        ChannelData(0, b"two"),
        ChannelData(4, b"{}"),
    ]
    assert decode(V4, (b"", True), (b"\x00x", True)) == [ChannelData(0, b"x")]


def test_v5_ends_a_channel_and_v4_does_not() -> None:
    assert decode(V5, (b"\xff\x00", True)) == [ChannelClosed(0)]
    assert decode(V5, (b"\xff", False), (b"\x00", True)) == [ChannelClosed(0)]
    assert decode(V4, (b"\xff\x00", True)) == [ChannelData(255, b"\x00")]


@pytest.mark.parametrize("pieces", [[(b"\xff", True)], [(b"\xff\x00\x00", True)]])
def test_a_close_signal_names_one_channel(pieces: list[tuple[bytes, bool]]) -> None:
    with pytest.raises(ChannelError):
        decode(V5, *pieces)


def test_base64_is_decoded_whole() -> None:
    text = b"0" + base64.b64encode(b"some bytes\xff")
    assert decode(BASE64, (text[:4], False), (text[4:], True)) == [
        ChannelData(0, b"some bytes\xff")
    ]


@pytest.mark.parametrize("data", [b"0!!!!", b"0abc", b"0" + bytes(channels.MAX_BASE64 + 1)])
def test_what_is_not_base64_or_too_much(data: bytes) -> None:
    with pytest.raises(ChannelError):
        decode(BASE64, (data, True))


def test_messages_are_encoded() -> None:
    assert channels.encode(V5, 3, b"{}") == b"\x03{}"
    assert channels.encode(BASE64, 1, b"out") == b"1b3V0"

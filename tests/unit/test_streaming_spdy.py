"""SPDY's server side: every state and step, every frame, limits, and what breaks the protocol."""

from __future__ import annotations

import itertools
import struct
import zlib

import pytest

from criserver.streaming import spdy
from criserver.streaming.spdy import (
    NEXT,
    ConnectionEnded,
    DataReceived,
    LocalProtocolError,
    RemoteProtocolError,
    SpdyConnection,
    State,
    Step,
    StreamEnded,
    StreamOpened,
    StreamReset,
)
from criserver.streaming.spdy_headers import DICTIONARY, MAX_BLOCK


class Client:
    """Writes frames by hand; its compressor is shared by all its blocks, as the protocol has it."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(zdict=DICTIONARY)

    def block(self, plain: bytes) -> bytes:
        return self._zlib.compress(plain) + self._zlib.flush(zlib.Z_SYNC_FLUSH)

    def headers(self, **headers: str) -> bytes:
        plain = struct.pack(">I", len(headers))
        for text in itertools.chain(*headers.items()):
            plain += struct.pack(">I", len(text)) + text.encode()
        return self.block(plain)

    def open(self, stream_id: int, flags: int = 0, **headers: str) -> bytes:
        return self.open_block(stream_id, self.headers(**headers), flags)

    @staticmethod
    def open_block(stream_id: int, block: bytes, flags: int = 0) -> bytes:
        return control(1, struct.pack(">IIH", stream_id, 0, 0) + block, flags)


def control(kind: int, payload: bytes, flags: int = 0, version: int = 3) -> bytes:
    return struct.pack(">HHI", 0x8000 | version, kind, flags << 24 | len(payload)) + payload


def data(stream_id: int, payload: bytes, *, fin: bool = False) -> bytes:
    return struct.pack(">II", stream_id, fin << 24 | len(payload)) + payload


def reset(stream_id: int, why: int = 5) -> bytes:
    return control(3, struct.pack(">II", stream_id, why))


GOAWAY_OK = control(7, struct.pack(">II", 1, 0))


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def server() -> SpdyConnection:
    return SpdyConnection()


@pytest.fixture
def opened(client: Client, server: SpdyConnection) -> SpdyConnection:
    """Stream 1 is open both ways, and nothing waits to be sent."""
    server.receive_data(client.open(1, streamtype="data"))
    server.accept(1)
    server.data_to_send()
    return server


def plain(events: list[spdy.Event]) -> list[spdy.Event]:
    """The events with data as bytes, neighbouring pieces joined."""
    joined: list[spdy.Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if not isinstance(event, DataReceived):
            joined.append(event)
        elif isinstance(last, DataReceived) and last.stream_id == event.stream_id:
            whole = bytes(last.data) + bytes(event.data)
            joined[-1] = DataReceived(event.stream_id, memoryview(whole))
        else:
            joined.append(DataReceived(event.stream_id, memoryview(bytes(event.data))))
    return joined


CONVERSATION = (
    StreamOpened(1, {"streamtype": "error"}),
    StreamOpened(3, {"streamtype": "stdin", "x": "y"}),
    DataReceived(3, memoryview(b"hello")),
    StreamEnded(3),
    StreamReset(1),
    ConnectionEnded(),
)


def conversation(client: Client) -> bytes:
    return b"".join([
        client.open(1, streamtype="error"),
        control(4, struct.pack(">I", 0)),  # SETTINGS
        client.open(3, streamtype="stdin", x="y"),
        control(9, struct.pack(">II", 3, 65536)),  # WINDOW_UPDATE
        data(3, b"hel"),
        data(3, b"lo", fin=True),
        control(0x55, b"a frame of a kind that nobody knows"),
        reset(1),
        GOAWAY_OK,
    ])  # fmt: skip


def test_a_conversation(client: Client, server: SpdyConnection) -> None:
    assert plain(server.receive_data(conversation(client))) == list(CONVERSATION)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 13])
def test_frames_may_come_in_any_pieces(client: Client, server: SpdyConnection, size: int) -> None:
    stream = conversation(client)
    events = []
    for position in range(0, len(stream), size):
        events += server.receive_data(stream[position : position + size])
    assert plain(events) == list(CONVERSATION)


def test_the_payload_of_a_large_frame_is_not_kept(opened: SpdyConnection) -> None:
    opened.receive_data(data(1, bytes(spdy.MAX_DATA))[:20])
    (event,) = opened.receive_data(piece := bytes(1000))
    assert isinstance(event, DataReceived)
    assert event.data.obj is piece


def test_the_dictionary_is_the_protocols(client: Client) -> None:
    # A zlib stream names its dictionary by the checksum; this one is spdystream's too.
    assert client.headers()[2:6].hex() == "e3c6a7c2"


def test_what_is_sent(opened: SpdyConnection, client: Client) -> None:
    opened.receive_data(client.open(3))
    opened.accept(3)
    reply = opened.data_to_send()
    assert reply[:12] == bytes.fromhex("80030002") + struct.pack(">II", len(reply) - 8, 3)
    opened.send_data(1, b"out")
    opened.end(1)
    opened.reset(3)
    opened.reset(3)
    opened.close()
    goaway = control(7, struct.pack(">II", 3, 0))
    assert opened.data_to_send() == data(1, b"out") + data(1, b"", fin=True) + reset(3) + goaway
    assert opened.data_to_send() == b""


def test_a_ping_is_answered_and_an_answer_is_not(server: SpdyConnection) -> None:
    ping = control(6, struct.pack(">I", 7))
    server.receive_data(ping + control(6, struct.pack(">I", 2)))
    assert server.data_to_send() == ping


def reach(state: State) -> SpdyConnection:
    server, client = SpdyConnection(), Client()
    ended = state in (State.OPENED_ENDED, State.REMOTE_ENDED)
    server.receive_data(client.open(1, flags=int(ended)))
    if state not in (State.OPENED, State.OPENED_ENDED):
        server.accept(1)
    if state is State.LOCAL_ENDED:
        server.end(1)
    server.data_to_send()
    return server


def do(server: SpdyConnection, step: Step) -> list[spdy.Event]:
    match step:
        case Step.ACCEPT:
            server.accept(1)
        case Step.SEND:
            server.send_data(1, b"x")
        case Step.SEND_END:
            server.end(1)
        case Step.RECEIVE:
            return server.receive_data(data(1, b"x"))
        case Step.RECEIVE_END:
            return server.receive_data(data(1, b"", fin=True))
    return []


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", Step)
def test_every_step_in_every_state(state: State, step: Step) -> None:
    server = reach(state)
    if (state, step) in NEXT:
        do(server, step)
        assert server.is_known(1) == (NEXT[state, step] is not None)
    elif step in (Step.RECEIVE, Step.RECEIVE_END):
        assert do(server, step) == [StreamReset(1)]
        assert server.data_to_send() == reset(1, spdy.Reset.STREAM_ALREADY_CLOSED)
        assert not server.is_known(1)
    else:
        with pytest.raises(LocalProtocolError):
            do(server, step)


def test_data_for_a_stream_that_is_over_is_dropped(opened: SpdyConnection) -> None:
    opened.reset(1)
    assert opened.receive_data(data(1, b"late", fin=True)) == []


BROKEN = {
    "data for a stream that was never opened": data(7, b"x"),
    "data for stream 0": data(0, b"x"),
    "another version": control(6, bytes(4), version=2),
    "a control frame that is too long": control(9, bytes(spdy.MAX_CONTROL + 1)),
    "a short SYN_STREAM": control(1, bytes(9)),
    "a short SYN_REPLY": control(2, bytes(3)),
    "a short HEADERS": control(8, b""),
    "a long RST_STREAM": control(3, bytes(9)),
    "a short PING": control(6, bytes(3)),
    "headers that are not compressed": Client.open_block(3, b"\0\0\0\0"),
    "an even stream": Client().open(2),
    "stream 0": Client().open(0),
}


@pytest.mark.parametrize("frame", BROKEN.values(), ids=BROKEN.keys())
def test_a_breach_ends_the_connection(frame: bytes, server: SpdyConnection) -> None:
    with pytest.raises(RemoteProtocolError):
        server.receive_data(frame)
    assert server.data_to_send() == control(7, struct.pack(">II", 0, 1))
    assert server.receive_data(frame) == []


def test_a_stream_is_opened_once(client: Client, opened: SpdyConnection) -> None:
    with pytest.raises(RemoteProtocolError, match="opened after 1"):
        opened.receive_data(client.open(1))


def test_headers_that_explode_end_the_connection(client: Client, server: SpdyConnection) -> None:
    bomb = client.block(bytes(MAX_BLOCK + 1))
    assert len(bomb) < 200
    with pytest.raises(RemoteProtocolError, match="16384 bytes"):
        server.receive_data(client.open_block(1, bomb))


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"\0\0\0\1",
        b"\0\0\0\1\0\0\0\1a",
        b"\0\0\0\0more",
        b"\0\0\0\1\0\0\0\1A\0\0\0\1b",
        b"\0\0\0\1\0\0\0\0\0\0\0\1b",
        b"\0\0\0\2" + 2 * b"\0\0\0\1a\0\0\0\1b",
        b"\0\0\0\1\0\0\0\1\xff\0\0\0\1b",
        b"\xff\xff\xff\xff\0\0\0\1a\0\0\0\1b",
        b"\0\0\0\1\xff\xff\xff\xffa\0\0\0\1b",
    ],
)
def test_malformed_headers_cost_their_stream_alone(
    client: Client, server: SpdyConnection, plain: bytes
) -> None:
    assert server.receive_data(client.open_block(1, client.block(plain))) == []
    assert server.data_to_send() == reset(1, spdy.Reset.PROTOCOL_ERROR)
    assert server.receive_data(client.open(3, a="b")) == [StreamOpened(3, {"a": "b"})]


def test_headers_in_the_middle_keep_the_compression_in_step(
    client: Client, opened: SpdyConnection
) -> None:
    more = control(8, struct.pack(">I", 1) + client.headers(more="headers"), flags=1)
    assert opened.receive_data(more) == [StreamEnded(1)]
    assert opened.receive_data(client.open(3, a="b")) == [StreamOpened(3, {"a": "b"})]


def test_streams_are_limited(client: Client, server: SpdyConnection) -> None:
    for number in range(spdy.MAX_STREAMS):
        assert server.receive_data(client.open(2 * number + 1))
    one_more = 2 * spdy.MAX_STREAMS + 1
    assert server.receive_data(client.open(one_more)) == []
    assert server.data_to_send() == reset(one_more, spdy.Reset.REFUSED_STREAM)
    server.receive_data(reset(1))
    assert server.receive_data(client.open(one_more + 2)) == [StreamOpened(one_more + 2, {})]


def test_no_stream_is_opened_after_goaway(client: Client, server: SpdyConnection) -> None:
    assert server.receive_data(GOAWAY_OK + client.open(1)) == [ConnectionEnded()]
    assert server.data_to_send() == reset(1, spdy.Reset.REFUSED_STREAM)


def test_a_frame_holds_16_mib(opened: SpdyConnection) -> None:
    with pytest.raises(LocalProtocolError):
        opened.send_data(1, bytes(spdy.MAX_DATA + 1))

"""What crictl 1.36 (client-go) has really sent, byte for byte; and short runs of the fuzzers.

data/crictl holds recordings of crictl against this server: C and S lines are the client's and the
server's bytes in hexadecimal, each side's until the other speaks.
"""

from __future__ import annotations

from typing import Any

import pytest

from criserver.streaming import channels, spdy, websocket
from criserver.streaming.resize import ResizeDecoder
from criserver.streaming.upgrade import RequestReader, Transport
from tests.fuzz.streaming_cores import DATA, client_bytes, run

RECORDINGS = sorted(DATA.glob("*.txt"))


def spdy_events(frames: bytes) -> list[Any]:
    """The events up to the client's GOAWAY, accepted and ended as the server does."""
    core, events = spdy.SpdyConnection(), []
    for event in core.receive_data(frames):
        if isinstance(event, spdy.DataReceived):
            events.append((event.stream_id, bytes(event.data)))
        elif isinstance(event, spdy.StreamOpened):
            events.append((event.stream_id, event.headers))
        else:
            events.append(event)
    return events


def channel_events(name: str, frames: bytes) -> list[Any]:
    core = websocket.WebSocketConnection()
    decoder = channels.ChannelDecoder(channels.REMOTE_COMMAND[name])
    events: list[Any] = []
    for event in core.receive_data(frames):
        if isinstance(event, websocket.CloseReceived):
            events.append(event)
        elif taken := decoder.receive(event):
            is_data = isinstance(taken, channels.ChannelData)
            events.append((taken.channel, bytes(taken.data)) if is_data else taken)
    return events


def test_spdy_exec() -> None:
    events = spdy_events(client_bytes(DATA / "spdy-exec.txt"))
    assert events[:6] == [
        (1, {"streamtype": "error"}),
        (3, {"streamtype": "stdin"}),
        (5, {"streamtype": "stdout"}),
        (7, {"streamtype": "stderr"}),
        (3, b"hello\n"),
        spdy.StreamEnded(3),
    ]
    assert events[-1] == spdy.ConnectionEnded()


def test_spdy_terminal() -> None:
    events = spdy_events(client_bytes(DATA / "spdy-terminal.txt"))
    assert [headers["streamtype"] for _, headers in events[:4]] == [
        "error", "stdin", "stdout", "resize",
    ]  # fmt: skip
    assert ResizeDecoder().receive(events[4][1]) == [(99, 33)]
    assert events[5] == (3, b"stty size\n")


def test_spdy_port_forward() -> None:
    events = spdy_events(client_bytes(DATA / "spdy-portforward.txt"))
    assert events[:3] == [
        (1, {"streamtype": "error", "port": "8080", "requestid": "0"}),
        spdy.StreamEnded(1),
        (3, {"streamtype": "data", "port": "8080", "requestid": "0"}),
    ]
    assert events[3][1].startswith(b"GET /nope HTTP/1.1\r\n")
    assert events[4:] == [spdy.StreamReset(3), spdy.ConnectionEnded()]


def test_spdy_in_a_websocket() -> None:
    core = websocket.WebSocketConnection()
    frames = client_bytes(DATA / "tunnel-portforward.txt")
    messages = core.receive_data(frames)
    inner = b"".join(bytes(m.data) for m in messages if isinstance(m, websocket.MessageReceived))
    events = spdy_events(inner)
    assert events[0] == (1, {"streamtype": "error", "port": "8080", "requestid": "0"})
    assert events[-1] == spdy.ConnectionEnded()
    assert messages[-1] == websocket.CloseReceived(1000)


def test_websocket_exec() -> None:
    events = channel_events("v5.channel.k8s.io", client_bytes(DATA / "websocket-exec.txt"))
    assert events == [(0, b"hello\n"), channels.ChannelClosed(0), websocket.CloseReceived(1000)]


def test_websocket_terminal() -> None:
    events = channel_events("v5.channel.k8s.io", client_bytes(DATA / "websocket-terminal.txt"))
    assert ResizeDecoder().receive(events[0][1]) == [(99, 33)]
    assert events[1] == (0, b"stty size\n")


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_the_requests(recording: Any) -> None:
    reader = RequestReader()
    request = reader.receive_data(bytes.fromhex(recording.read_text().split()[1]))
    assert request is not None
    is_spdy = recording.stem.startswith("spdy")
    assert request.transport is (Transport.SPDY if is_spdy else Transport.WEBSOCKET)
    offered = {
        "spdy-exec": ("v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"),
        "spdy-portforward": ("portforward.k8s.io",),
        "tunnel-portforward": ("SPDY/3.1+portforward.k8s.io",),
        "websocket-exec": ("v5.channel.k8s.io",),
    }
    expected = offered.get(recording.stem.replace("terminal", "exec"))
    assert expected is not None
    assert request.protocols[: len(expected)] == expected


@pytest.mark.parametrize("target", ["spdy", "channels"])
def test_the_fuzzers_find_nothing(target: str) -> None:
    run(target, seed=1, count=1500)

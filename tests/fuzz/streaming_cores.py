"""Fuzz targets for the streaming protocols' cores.

    python -m tests.fuzz.streaming_cores spdy|channels [--seconds N] [--seed N]

Inputs are the files of corpus/TARGET and mutations of them. One that reaches a line which none has
reached before joins the corpus. A finding is written to finding-TARGET and ends the run with 1.
`run` is what the unit tests call, for a while that is the same every time.

A target raises AssertionError when a promise is broken: errors are the protocol's own, events make
sense for their stream, nothing depends on how the input is cut, and little is kept of it.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from criserver.streaming import channels, spdy, spdy_headers, websocket
from tests.fuzz.coverage import Lines

HERE = Path(__file__).parent
DATA = HERE.parent / "unit/data/crictl"
MAX_INPUT = 4096

Outcome = tuple[list[Any], bytes, str]


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The input whole, in halves, and byte by byte."""
    yield [data]
    yield [data[: len(data) // 2], data[len(data) // 2 :]]
    yield [data[n : n + 1] for n in range(len(data))]


def fuzz_spdy(data: bytes) -> None:
    """Feed a client's side of SPDY to the server's core."""
    outcomes = [_spdy_outcome(pieces) for pieces in cuts(data)]
    # What comes before a breach in the same piece is dropped with the connection.
    if not outcomes[0][2]:
        assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len({error for *_, error in outcomes}) == 1


def _spdy_outcome(pieces: list[bytes]) -> Outcome:
    core = spdy.SpdyConnection()
    seen: list[Any] = []
    streams: dict[int, str] = {}
    for piece in pieces:
        try:
            events = core.receive_data(piece)
        except spdy.RemoteProtocolError as err:
            assert core.receive_data(piece) == []
            return seen, core.data_to_send(), str(err)
        for event in events:
            _check_spdy(event, streams)
            if isinstance(event, spdy.DataReceived):
                seen += [(event.stream_id, byte) for byte in event.data]
            else:
                seen.append(event)
        assert len(core._partial) <= spdy.MAX_CONTROL + 8
    for stream_id in list(streams):
        core.reset(stream_id)
        core.reset(stream_id)
    return seen, core.data_to_send(), ""


def _check_spdy(event: spdy.Event, streams: dict[int, str]) -> None:
    match event:
        case spdy.StreamOpened(stream_id):
            assert stream_id % 2 == 1
            assert stream_id > max(streams, default=0)
            streams[stream_id] = "open"
        case spdy.DataReceived(stream_id, data):
            assert streams[stream_id] == "open"
            assert data
        case spdy.StreamEnded(stream_id):
            assert streams[stream_id] == "open"
            streams[stream_id] = "ended"
        case spdy.StreamReset(stream_id):
            assert streams[stream_id] != "reset"
            streams[stream_id] = "reset"


def fuzz_channels(data: bytes) -> None:
    """Feed a client's side of WebSocket to the core and the channels above it, by each codec."""
    for name in ("v4.channel.k8s.io", "v5.channel.k8s.io", "v4.base64.channel.k8s.io"):
        protocol = channels.REMOTE_COMMAND[name]
        outcomes = [_channels_outcome(protocol, pieces) for pieces in cuts(data)]
        if not outcomes[0][2]:
            assert outcomes[0] == outcomes[1] == outcomes[2]
        assert len({bool(error) for *_, error in outcomes}) == 1


def _channels_outcome(protocol: channels.ChannelProtocol, pieces: list[bytes]) -> Outcome:
    core, decoder = websocket.WebSocketConnection(), channels.ChannelDecoder(protocol)
    seen: list[Any] = []
    for piece in pieces:
        try:
            for event in core.receive_data(piece):
                seen += _channel_events(decoder, event)
        except (websocket.RemoteProtocolError, channels.ChannelError) as err:
            core.fail(str(err))
            assert core.receive_data(piece) == []
            return seen, core.data_to_send(), str(err)
        assert len(decoder._held) <= channels.MAX_BASE64
    core.close(1000)
    core.send_message(b"late")
    return seen, core.data_to_send(), ""


def _channel_events(decoder: channels.ChannelDecoder, event: websocket.Event) -> list[Any]:
    if isinstance(event, websocket.CloseReceived):
        return [event]
    taken = decoder.receive(event)
    if isinstance(taken, channels.ChannelData):
        return [(taken.channel, byte) for byte in taken.data]
    return [taken] if taken is not None else []


TARGETS: dict[str, Callable[[bytes], None]] = {"spdy": fuzz_spdy, "channels": fuzz_channels}
MODULES = {str(module.__file__) for module in (spdy, spdy_headers, websocket, channels)}


def seeds(target: str) -> list[bytes]:
    """The corpus, and what crictl has sent."""
    names = {"spdy": "spdy-*.txt", "channels": "websocket-*.txt"}
    found = [client_bytes(path) for path in sorted(DATA.glob(names[target]))]
    found += [path.read_bytes() for path in sorted((HERE / "corpus" / target).glob("*"))]
    return found


def client_bytes(recording: Path) -> bytes:
    """What the client of a recording has sent after its HTTP request."""
    lines = [line.split() for line in recording.read_text().splitlines()]
    sent = b"".join(bytes.fromhex(data) for who, data in lines if who == "C")
    return sent.partition(b"\r\n\r\n")[2]


def mutated(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """One input made of another by a few changes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        position = rng.randint(0, len(changed))
        match rng.randint(0, 6):
            case 0 if changed:
                changed[position % len(changed)] ^= 1 << rng.randint(0, 7)
            case 1 if changed:
                changed[position % len(changed)] = rng.choice((0, 1, 3, 5, 0x7F, 0x80, 0xFE, 0xFF))
            case 2:
                del changed[position : position + rng.randint(1, 16)]
            case 3:
                changed[position:position] = rng.randbytes(rng.randint(1, 16))
            case 4:
                changed[position:position] = changed[: rng.randint(1, 64)]
            case 5:
                other = rng.choice(others)
                start = rng.randint(0, len(other))
                changed[position:] = other[start:]
            case _:
                changed[position:position] = _spdy_frame(rng)
    return bytes(changed[:MAX_INPUT])


def _spdy_frame(rng: random.Random) -> bytes:
    """A frame whose head is right, with contents that mostly are not."""
    stream = rng.choice((0, 1, 2, 3, 5, 7, 9, 0x7FFFFFFF)).to_bytes(4, "big")
    if rng.random() < 0.4:
        payload = rng.randbytes(rng.randint(0, 8))
        return stream + bytes((rng.randint(0, 1), 0, 0, len(payload))) + payload
    kind = rng.randint(0, 10)
    payload = stream + rng.randbytes(rng.choice((0, 4, 6)))
    if kind in (1, 2, 8) and rng.random() < 0.5:
        compressor = zlib.compressobj(zdict=spdy_headers.DICTIONARY)
        plain = rng.choice((bytes(4), b"\0\0\0\1\0\0\0\1a\0\0\0\1b", rng.randbytes(9)))
        payload += compressor.compress(plain) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return bytes((0x80, 3, 0, kind, rng.randint(0, 1), 0, 0, len(payload))) + payload


def run(target: str, seed: int, count: int) -> None:
    """Try the seeds and `count` mutations. Raises AssertionError with the input."""
    rng = random.Random(seed)
    known = seeds(target)
    inputs = [*known, *(mutated(rng.choice(known), known, rng) for _ in range(count))]
    for data in inputs:
        attempt(target, data)


def attempt(target: str, data: bytes) -> None:
    """Run one input. Raises AssertionError with it, whatever goes wrong."""
    try:
        TARGETS[target](data)
    except Exception as err:
        raise AssertionError(f"{target}: {type(err).__name__}: {err}: {data.hex()}") from err


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    options = parser.parse_args()
    target = functools.partial(attempt, options.target)
    rng, lines = random.Random(options.seed), Lines(MODULES)
    corpus = HERE / "corpus" / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    known = seeds(options.target)
    waiting, tried, end = list(known), 0, time.monotonic() + options.seconds
    while waiting or time.monotonic() < end:
        data = waiting.pop() if waiting else mutated(rng.choice(known), known, rng)
        try:
            new = lines.adds(target, data)
        except AssertionError as err:
            (HERE / f"finding-{options.target}").write_bytes(data)
            sys.stderr.write(f"{err}\n")
            return 1
        tried += 1
        if new and data not in known:
            known.append(data)
            (corpus / f"{zlib.crc32(data):08x}").write_bytes(data)
    print(f"{options.target}: {tried} inputs, {len(lines.reached)} lines, seed {options.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

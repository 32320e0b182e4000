"""How a pull is shown: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import fcntl
import io
import os
import struct
import termios
from collections.abc import Iterator
from typing import TextIO

import pytest

from api.extension import extension_pb2 as pb
from criserver.cli.pull_progress import LINE_SECONDS, Bars, Lines, display_for

WAITING, FETCHING, UNPACKING, DONE, EXISTS = (
    pb.PULL_LAYER_WAITING,
    pb.PULL_LAYER_FETCHING,
    pb.PULL_LAYER_UNPACKING,
    pb.PULL_LAYER_DONE,
    pb.PULL_LAYER_EXISTS,
)


def layer(number: int, state: int, fetched: int = 0, size: int = 2_000_000) -> pb.PullLayer:
    return pb.PullLayer(
        digest=f"sha256:{number:02d}aaaaaaaaaaaaaaaa", size=size, fetched=fetched, state=state
    )


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_tells_of_each_change_once() -> None:
    out = io.StringIO()
    lines = Lines(out, Clock())
    lines.update([layer(1, EXISTS), layer(2, WAITING)])
    lines.update([layer(1, EXISTS), layer(2, FETCHING, 500_000)])
    lines.update([layer(1, EXISTS), layer(2, FETCHING, 600_000)])
    lines.update([layer(1, EXISTS), layer(2, UNPACKING, 2_000_000)])
    lines.end(succeeded=True)
    assert out.getvalue().splitlines() == [
        "01aaaaaaaaaaa: exists 2MB",
        "02aaaaaaaaaaa: fetching 500kB of 2MB",
        "02aaaaaaaaaaa: unpacking 2MB",
        "02aaaaaaaaaaa: done 2MB",
    ]


def test_a_long_transfer_is_told_of_now_and_then() -> None:
    out, clock = io.StringIO(), Clock()
    lines = Lines(out, clock)
    for step in range(5):
        clock.now = step * LINE_SECONDS / 2
        lines.update([layer(1, FETCHING, step * 100_000)])
    assert [line.split()[2] for line in out.getvalue().splitlines()] == ["0B", "200kB", "400kB"]


def test_a_pull_that_fails_does_not_end_as_if_it_had_not() -> None:
    out = io.StringIO()
    lines = Lines(out)
    lines.update([layer(1, FETCHING, 1000)])
    lines.end(succeeded=False)
    assert "done" not in out.getvalue()


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    """The reading end of a terminal of 60 columns and 6 rows, and a stream that writes to it."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 6, 60, 0, 0))
    with os.fdopen(slave, "w") as stream:
        yield master, stream
    os.close(master)


def drawn(master: int) -> str:
    return os.read(master, 65536).decode().replace("\r\n", "\n")


def test_bars_are_drawn_over_those_before(
    terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    master, stream = terminal
    bars = display_for(stream)
    bars.update([layer(1, EXISTS, 2_000_000), layer(2, FETCHING, 1_000_000)])
    first = drawn(master)
    assert first.startswith("\r\x1b[J01aaaaaaaaaaa [==============================] exists 2MB")
    assert "\n02aaaaaaaaaaa [===============>              ] fetching " in first
    assert first.endswith("\n1 of 2 layers, 3MB of 4MB\n")
    bars.end(succeeded=True)
    last = drawn(master)
    assert last.startswith("\x1b[3A\r\x1b[J")
    assert last.endswith("\n2 of 2 layers, 4MB of 4MB\n")


def test_bars_fit_the_terminal(terminal: tuple[int, TextIO]) -> None:
    master, stream = terminal
    bars = Bars(stream)
    states = [DONE] * 10 + [WAITING] * 10 + [FETCHING] * 3
    bars.update([layer(number, state) for number, state in enumerate(states)])
    lines = drawn(master).removeprefix("\r\x1b[J").splitlines()
    assert [line[:2] for line in lines[:-1]] == ["10", "20", "21", "22"]
    assert lines[-1].startswith("10 of 23 layers")
    assert max(map(len, lines)) < 60


def test_a_terminal_without_cursor_or_a_file_gets_lines(
    terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(display_for(terminal[1]), Lines)
    assert isinstance(display_for(io.StringIO()), Lines)


def test_an_empty_layer_is_no_division_by_zero(terminal: tuple[int, TextIO]) -> None:
    bars = Bars(terminal[1])
    bars.update([layer(1, FETCHING, size=0)])
    bars.end(succeeded=False)

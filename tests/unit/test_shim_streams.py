"""A container's output streams, turn by turn: what the end of one does to the loop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtimeshim.shim import streams
from runtimeshim.shim.log import LogFile
from runtimeshim.shim.poller import Poller


@pytest.fixture
def poller() -> Iterator[Poller]:
    made = Poller()
    yield made
    made.close()


def pipe(
    tmp_path: Path, poller: Poller, rest: tuple[int, int] | None = None
) -> tuple[streams.Pipe, int]:
    """Return a container's stdout, and the end that the container writes to."""
    reading, writing = os.pipe()
    log = LogFile(str(tmp_path / "log"))
    return streams.Pipe(reading, b"stdout", log, poller, rest), writing


def killed_with(pieces: list[bytes]) -> tuple[int, int]:
    """Return what a shim leaves that was killed when it had moved this, and logged none of it."""
    rest = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    for piece in pieces:
        source_r, source_w = os.pipe()
        os.write(source_w, piece)
        assert os.splice(source_r, rest[1], len(piece)) == len(piece)
        os.close(source_r)
        os.close(source_w)
    return rest


def logged(tmp_path: Path) -> list[tuple[str, str]]:
    """The tags and the texts of the log's lines, all of which are in its form."""
    lines = [line.split(" ", 3) for line in (tmp_path / "log").read_text().splitlines()]
    assert all(len(line) == 4 and line[1] == "stdout" for line in lines), lines
    return [(line[2], line[3]) for line in lines]


def terminal(tmp_path: Path, poller: Poller) -> tuple[streams.Terminal, int]:
    """Return a container's terminal, and the end that the container writes to."""
    controlling, writing = os.openpty()
    log = LogFile(str(tmp_path / "log"))
    return streams.Terminal(controlling, b"stdout", log, poller), writing


@pytest.mark.parametrize("kind", [pipe, terminal])
@pytest.mark.parametrize("reads", [1, 2, 3])
def test_the_last_read_of_a_turn_may_be_the_end(
    kind: type, reads: int, tmp_path: Path, poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "READS_PER_TURN", reads)
    output, writing = kind(tmp_path, poller)
    os.write(writing, b"text\n")
    os.close(writing)
    for _ in range(3):
        poller.turn(0)
    assert not output.open
    assert b"F text" in (tmp_path / "log").read_bytes()


def test_a_client_may_read_what_held_the_stream_back_after_its_end(
    tmp_path: Path, poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_BACKLOG", 1)
    output, writing = pipe(tmp_path, poller)
    client_r, client_w = os.pipe()
    output.attach(client_w)
    written = b"x" * 4095 + b"\n"
    for _ in range(20):  # a pipe takes 16 of them
        os.write(writing, written)
        poller.turn(0)
    assert output.clients.full
    os.close(writing)
    output.drain(0)
    output.close()
    read = b""
    while data := os.read(client_r, 65536):
        read += data
        poller.turn(0)
    assert len(read) % 4096 == 0 and len(read) >= 17 * 4096
    assert not output.clients
    os.close(client_r)


def test_whole_lines_that_a_killed_shim_has_left_are_logged_at_once(
    tmp_path: Path, poller: Poller
) -> None:
    output, writing = pipe(tmp_path, poller, killed_with([b"one\ntwo\nthr"]))
    assert logged(tmp_path) == [("F", "one"), ("F", "two")]
    os.write(writing, b"ee\n")
    os.close(writing)
    for _ in range(3):
        poller.turn(0)
    assert logged(tmp_path)[2:] == [("F", "three")]
    assert not output.open


def test_lines_that_fill_what_a_killed_shim_has_left_are_not_taken_for_one(
    tmp_path: Path, poller: Poller
) -> None:
    """A pipe holds 16 pieces: there is no room to move more until these are logged."""
    output, writing = pipe(tmp_path, poller, killed_with([b"line %d\n" % n for n in range(16)]))
    os.write(writing, b"line 16\n")
    os.close(writing)
    for _ in range(3):
        poller.turn(0)
    assert logged(tmp_path) == [("F", f"line {n}") for n in range(17)]
    assert not output.open

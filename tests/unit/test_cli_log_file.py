"""Reading CRI logs: partial lines, rotation, following, the tail."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest

from criserver.cli.log_file import (
    LogFile,
    LogFormatError,
    LogLine,
    LogPrinter,
    follow,
    parse_line,
    tail,
)

TIME = b"2026-01-02T03:04:05.678901234Z"


def line(text: str, tag: str = "F", stream: str = "stdout") -> bytes:
    return TIME + f" {stream} {tag} {text}\n".encode()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (line("a b  c"), LogLine(TIME, b"stdout", False, b"a b  c\n")),
        (line("", stream="stderr"), LogLine(TIME, b"stderr", False, b"\n")),
        (line("part", "P"), LogLine(TIME, b"stdout", True, b"part")),
        (line("part", "P:x"), LogLine(TIME, b"stdout", True, b"part")),
    ],
)
def test_a_line(raw: bytes, expected: LogLine) -> None:
    assert parse_line(raw) == expected


@pytest.mark.parametrize("raw", [b"\n", b"hello\n", b"a stdin F x\n", b"a stdout\n"])
def test_what_is_no_cri_log_is_refused(raw: bytes) -> None:
    with pytest.raises(LogFormatError):
        parse_line(raw)


def printed(lines: list[bytes], *, timestamps: bool = False) -> tuple[bytes, bytes]:
    stdout, stderr = io.BytesIO(), io.BytesIO()
    printer = LogPrinter(stdout, stderr, timestamps=timestamps)
    for one in lines:
        printer.write(one)
    printer.flush()
    return stdout.getvalue(), stderr.getvalue()


def test_parts_are_joined_and_streams_kept_apart() -> None:
    lines = [line("a", "P"), line("x", stream="stderr"), line("b", "P"), line("c")]
    assert printed(lines) == (b"abc\n", b"x\n")


def test_timestamps_begin_whole_lines_only() -> None:
    lines = [line("a", "P"), line("x", stream="stderr"), line("b"), line("c")]
    expected = TIME + b" ab\n" + TIME + b" c\n", TIME + b" x\n"
    assert printed(lines, timestamps=True) == expected


def test_the_tail_counts_lines_as_the_container_wrote_them() -> None:
    lines = [line("1"), line("2a", "P"), line("2b"), line("3"), line("4", "P")]
    assert tail(lines, 2) == lines[3:]
    assert tail(lines, 3) == lines[1:]
    assert tail(lines, 99) == lines
    assert tail(lines, 0) == []


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_only_whole_lines_are_given_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(line("a") + line("b")[:10])
    log = LogFile(path)
    assert list(log.read_lines()) == [line("a")]
    append(path, line("b")[10:])
    assert list(log.read_lines()) == [line("b")]
    log.close()


def test_rotation_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(line("1"))
    log = LogFile(path)
    assert list(log.read_lines()) == [line("1")]
    path.rename(tmp_path / "log.1")
    append(tmp_path / "log.1", line("2"))
    assert list(log.read_lines()) == [line("2")]
    append(tmp_path / "log.1", line("3"))
    path.write_bytes(line("4"))
    assert list(log.read_lines()) == [line("3"), line("4")]
    log.close()


def test_a_log_that_is_truncated_in_place_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(line("1") + line("2"))
    log = LogFile(path)
    list(log.read_lines())
    path.write_bytes(line("3"))
    assert list(log.read_lines()) == [line("3")]
    log.close()


def test_following_ends_after_the_last_line_of_an_exited_container(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(line("0"))
    log, count = LogFile(path), itertools.count(1)

    def is_over() -> bool:
        number = next(count)
        append(path, line(str(number)))
        return number == 3

    pauses: list[None] = []
    lines = list(follow(log, is_over, lambda: pauses.append(None)))
    assert lines == [line(str(number)) for number in range(4)]
    assert len(pauses) == 2
    log.close()

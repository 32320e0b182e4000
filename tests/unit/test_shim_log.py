"""The CRI log format, as the kubelet parses it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimeshim.shim.log import MAX_LINE, LineFormatter, LogFile, timestamp

NOW = b"T"


class Stream:
    """A formatter with what it leaves to its caller: the unfinished line."""

    def __init__(self, name: bytes) -> None:
        self.lines = LineFormatter(name)
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        held = self.rest + data
        log, length = self.lines.cut(held, NOW)
        self.rest = held[length:]
        return log

    def finish(self) -> bytes:
        return self.lines.last(self.rest, NOW)


def parse(log: bytes) -> list[tuple[bytes, bytes]]:
    """Return (tag, text) of each line."""
    lines = log.split(b"\n")
    assert lines.pop() == b""
    return [(line.split(b" ", 3)[2], line.split(b" ", 3)[3]) for line in lines]


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"", b""),
        (b"whole\n", b"whole\n"),
        (b"whole\ntorn", b"whole\n"),
        (b"torn", b""),
        (b"x" * 30_000 + b"\ntorn", b"x" * 30_000 + b"\n"),
        (b"whole\n" + b"x" * 30_000, b"whole\n" + b"x" * 30_000),  # no line of ours
    ],
)
def test_a_torn_last_line_is_cut_off(tmp_path, content, kept):
    path = tmp_path / "log"
    path.write_bytes(content)
    LogFile(str(path)).mend()
    assert path.read_bytes() == kept


def test_a_timestamp_is_rfc3339_with_nine_digits() -> None:
    assert timestamp(1_600_000_000_000_000_042) == b"2020-09-13T12:26:40.000000042Z"


def test_a_line_is_full_and_names_its_stream() -> None:
    assert Stream(b"stderr").feed(b"hello\n") == b"T stderr F hello\n"


def test_an_unfinished_line_waits_for_its_rest() -> None:
    lines = Stream(b"stdout")
    assert lines.feed(b"hel") == b""
    assert parse(lines.feed(b"lo\nx")) == [(b"F", b"hello")]


def test_an_unterminated_tail_is_partial() -> None:
    lines = Stream(b"stdout")
    lines.feed(b"tail")
    assert parse(lines.finish()) == [(b"P", b"tail")]
    assert Stream(b"stdout").finish() == b""


@pytest.mark.parametrize(
    ("length", "tags"),
    [
        (MAX_LINE, [b"F"]),
        (MAX_LINE + 1, [b"P", b"F"]),
        (2 * MAX_LINE, [b"P", b"F"]),
        (2 * MAX_LINE + 1, [b"P", b"P", b"F"]),
    ],
)
def test_a_long_line_is_split(length: int, tags: list[bytes]) -> None:
    parts = parse(Stream(b"stdout").feed(b"x" * length + b"\n"))
    assert [tag for tag, _ in parts] == tags
    assert sum(len(text) for _, text in parts) == length


@given(st.lists(st.binary(max_size=3 * MAX_LINE // 2), max_size=6))
def test_no_byte_is_lost_or_added_however_the_stream_is_cut(chunks: list[bytes]) -> None:
    lines = Stream(b"stdout")
    log = b"".join(lines.feed(chunk) for chunk in chunks) + lines.finish()
    text = b"".join(text + (b"\n" if tag == b"F" else b"") for tag, text in parse(log))
    assert text == b"".join(chunks)
    assert all(len(part) <= MAX_LINE for _, part in parse(log))


def test_reopen_follows_a_rotation(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "0.log"))
    log.write(b"one\n")
    (tmp_path / "0.log").rename(tmp_path / "0.log.1")
    log.write(b"two\n")
    log.reopen()
    log.write(b"three\n")
    assert (tmp_path / "0.log.1").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "0.log").read_bytes() == b"three\n"


def test_a_failed_reopen_keeps_the_old_file(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    log = LogFile(str(directory / "0.log"))
    directory.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        log.reopen()
    log.write(b"still\n")
    assert (tmp_path / "moved/0.log").read_bytes() == b"still\n"


def test_a_symbolic_link_is_no_log(tmp_path: Path) -> None:
    target = tmp_path / "victim"
    target.write_text("")
    (tmp_path / "0.log").symlink_to(target)
    with pytest.raises(OSError, match=re.escape("Too many levels")):
        LogFile(str(tmp_path / "0.log"))


def test_a_full_disk_loses_bytes_and_says_how_many() -> None:
    log = LogFile("/dev/full")
    log.write(b"12345")
    assert log.lost_bytes == 5

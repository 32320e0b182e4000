"""Copies of directory trees: what is kept, and that no name leads out."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runtimeshim.linux import tree_copy

MIB = 1 << 20
OLD = 1_000_000_000

Copy = Callable[[], Path]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    made.mkdir()
    return made


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Copy:
    """A function that copies `source`, and returns the copy."""

    def copy() -> Path:
        target = tmp_path / "target"
        target.mkdir(mode=0o700)
        fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (source, target)]
        try:
            tree_copy.copy(*fds)
        finally:
            for fd in fds:
                os.close(fd)
        return target

    return copy


def test_content_modes_times_and_xattrs(source: Path, copied: Copy) -> None:
    (source / "a").mkdir(mode=0o751)
    (source / "a/file").write_bytes(b"content" * 1000)
    (source / "a/file").chmod(0o4711)
    (source / "a/link").symlink_to("../../outside")
    os.mkfifo(source / "a/pipe", 0o640)
    os.setxattr(source / "a/file", "user.name", b"value")
    for path in (source / "a/file", source / "a/link", source / "a", source):
        os.utime(path, (OLD, OLD), follow_symlinks=False)
    made = copied()
    assert (made / "a/file").read_bytes() == b"content" * 1000
    assert stat.S_IMODE((made / "a/file").stat().st_mode) == 0o4711
    assert stat.S_IMODE((made / "a").stat().st_mode) == 0o751
    assert os.getxattr(made / "a/file", "user.name") == b"value"
    assert os.readlink(made / "a/link") == "../../outside"
    assert stat.S_ISFIFO((made / "a/pipe").stat().st_mode)
    for path in (made / "a/file", made / "a/link", made / "a", made):
        assert path.lstat().st_mtime == OLD, path


@pytest.mark.parametrize(
    ("name", "code", "kept"),
    [
        ("user.note", errno.EOPNOTSUPP, True),  # a tmpfs before Linux 6.6
        ("user.note", errno.ENOSPC, False),
        ("security.note", errno.EOPNOTSUPP, False),
    ],
)
def test_a_file_system_that_has_no_user_xattrs(
    source: Path, copied: Copy, monkeypatch: pytest.MonkeyPatch, name: str, code: int, kept: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    (source / "file").write_bytes(b"content")
    os.utime(source / "file", (OLD, OLD))
    monkeypatch.setattr(
        os, "listxattr", lambda fd: [name] if stat.S_ISREG(os.fstat(fd).st_mode) else []
    )
    monkeypatch.setattr(os, "getxattr", lambda *_: b"value")
    monkeypatch.setattr(os, "setxattr", refuse)
    if not kept:
        with pytest.raises(OSError, match=os.strerror(code)):
            copied()
        return
    made = copied() / "file"
    assert made.read_bytes() == b"content"
    assert made.stat().st_mtime == OLD


def test_hard_links_stay_links(source: Path, copied: Copy) -> None:
    (source / "b").mkdir()
    (source / "a").write_text("once")
    os.link(source / "a", source / "b/a")
    made = copied()
    assert (made / "a").samefile(made / "b/a")
    assert not (made / "a").samefile(source / "a")


@pytest.mark.parametrize(("start", "size"), [(0, 64 * MIB), (MIB, 64 * MIB), (63 * MIB, 64 * MIB)])
def test_holes_stay_holes(source: Path, copied: Copy, start: int, size: int) -> None:
    with (source / "sparse").open("wb") as file:
        file.seek(start)
        file.write(b"x" * 5000)
        file.truncate(size)
    (source / "hole").touch()
    os.truncate(source / "hole", size)
    made = copied()
    found = (made / "sparse").stat()
    assert found.st_size == size
    assert found.st_blocks * 512 < MIB
    assert (made / "sparse").read_bytes() == (source / "sparse").read_bytes()
    assert (made / "hole").stat().st_size == size
    assert (made / "hole").stat().st_blocks == 0


def test_depth_costs_neither_stack_nor_descriptors(source: Path, copied: Copy) -> None:
    path = source
    for _ in range(1500):
        path = path / "d"
        path.mkdir()
    (path / "end").write_text("here")
    made = copied()
    assert (made / path.relative_to(source) / "end").read_text() == "here"
    # Python's own removal of a tree, with which pytest clears its old directories, is recursive.
    subprocess.run(["rm", "-r", source / "d", made / "d"], check=True, timeout=60)


def test_sockets_are_left_out(source: Path, copied: Copy) -> None:
    os.mknod(source / "socket", stat.S_IFSOCK | 0o600)
    (source / "file").touch()
    assert os.listdir(copied()) == ["file"]


def test_a_copy_into_what_is_not_empty_fails(source: Path, copied: Copy, tmp_path: Path) -> None:
    (source / "file").touch()
    copied()
    fds = [os.open(path, os.O_RDONLY) for path in (source, tmp_path / "target")]
    with pytest.raises(FileExistsError):
        tree_copy.copy(*fds)
    for fd in fds:
        os.close(fd)

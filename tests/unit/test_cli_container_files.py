"""Copies in and out of a container's root: what is followed, kept, replaced and refused."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from criserver.cli import container_files as files


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """An fd of a container's root: tmp_path/root, beside what must not be reached."""
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "secret").write_text("host")
    opened = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield opened
    os.close(opened)


def copy(source_root: int, source: str, target_root: int, target: str) -> list[str]:
    """Copy as `cp` does; returns what was left out."""
    left_out: list[str] = []
    found = files.open_inside(source_root, source)
    place = files.target_inside(target_root, target, os.path.basename(source))
    try:
        files.copy(found, place, source, lambda path, what: left_out.append(f"{path}: {what}"))
    finally:
        os.close(found)
        os.close(place.directory)
    return left_out


def test_a_tree_keeps_modes_times_and_links(root: int, tmp_path: Path) -> None:
    tree = tmp_path / "root/tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_bytes(b"x" * 3_000_000)
    (tree / "sub/file").chmod(0o4751)
    os.utime(tree / "sub/file", ns=(5 * 10**9, 7 * 10**9))
    (tree / "link").symlink_to("/etc/shadow")
    (tree / "sub").chmod(0o711)
    os.mkfifo(tree / "fifo")
    out = os.open(tmp_path, os.O_PATH)
    assert copy(root, "/tree", out, "out") == ["/tree/fifo: a FIFO"]
    os.close(out)
    copied = tmp_path / "out"
    status = (copied / "sub/file").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o4751, 7 * 10**9)
    assert (copied / "sub/file").read_bytes() == b"x" * 3_000_000
    assert os.readlink(copied / "link") == "/etc/shadow"
    assert stat.S_IMODE((copied / "sub").stat().st_mode) == 0o711
    assert sorted(os.listdir(copied)) == ["link", "sub"]


@pytest.mark.parametrize("link", ["/../secret", "../../secret", "/etc/../../../secret"])
def test_a_link_out_of_the_root_stays_in_it(root: int, tmp_path: Path, link: str) -> None:
    (tmp_path / "root/etc/link").symlink_to(link)
    out = os.open(tmp_path, os.O_PATH)
    with pytest.raises(FileNotFoundError):
        copy(root, "/etc/link", out, "stolen")
    os.close(out)
    assert not (tmp_path / "stolen").exists()


def test_a_directory_exchanged_for_a_link_is_not_walked_into(root: int, tmp_path: Path) -> None:
    (tmp_path / "in/etc").mkdir(parents=True)
    (tmp_path / "in/etc/secret").write_text("overwritten")
    (tmp_path / "root/in").mkdir()
    (tmp_path / "root/in/etc").symlink_to(tmp_path)
    source = os.open(tmp_path, os.O_PATH)
    with pytest.raises(OSError):
        copy(source, "/in", root, "/")
    os.close(source)
    assert (tmp_path / "secret").read_text() == "host"


def test_a_file_replaces_a_link_of_its_name_and_not_what_it_points_to(
    root: int, tmp_path: Path
) -> None:
    (tmp_path / "root/etc/passwd").symlink_to("shadow")
    (tmp_path / "root/etc/shadow").write_text("kept")
    (tmp_path / "new").write_text("new")
    source = os.open(tmp_path, os.O_PATH)
    copy(source, "/new", root, "/etc/passwd")
    os.close(source)
    assert (tmp_path / "root/etc/shadow").read_text() == "kept"
    assert (tmp_path / "root/etc/passwd").read_text() == "new"
    assert sorted(os.listdir(tmp_path / "root/etc")) == ["passwd", "shadow"]


def test_a_target_that_is_a_directory_takes_it_in(root: int, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    source = os.open(tmp_path, os.O_PATH)
    copy(source, "/new", root, "/etc")
    with pytest.raises(FileNotFoundError):
        copy(source, "/new", root, "/nothing/there")
    with pytest.raises(FileNotFoundError):
        copy(source, "/new", root, "/nothing/")
    os.close(source)
    assert (tmp_path / "root/etc/new").read_text() == "new"


def test_depth_costs_neither_stack_nor_descriptors(root: int, tmp_path: Path) -> None:
    path = tmp_path / "root/deep"
    path.mkdir()
    for _ in range(1500):
        path = path / "d"
        path.mkdir()
    (path / "end").write_text("here")
    out = os.open(tmp_path, os.O_PATH)
    copy(root, "/deep", out, "out")
    os.close(out)
    copied = tmp_path / "out" / path.relative_to(tmp_path / "root/deep")
    assert (copied / "end").read_text() == "here"
    # Python's own removal of a tree, with which pytest clears its old directories, is recursive.
    subprocess.run(["rm", "-r", tmp_path / "root/deep", tmp_path / "out"], check=True, timeout=60)

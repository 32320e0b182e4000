"""Copying between this machine and a running container's files, without a program in there.

The container's root is /proc/PID/root (man 5 proc). Whatever runs in there may exchange any name at
any time, so every path is walked by the kernel with that root as its limit, and below the first
directory no symbolic link is followed (CVE-2018-15664, CVE-2019-14271).
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from criserver.cli.errors import CommandError
from runtimeshim.linux import syscalls

INSIDE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
ONE_STEP = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

# Is told of what is left out: a path, and why.
Report = Callable[[str, str], None]


def open_root(pid: int) -> int:
    """Return an fd of the root directory of a process. Raises CommandError."""
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        own = os.stat("/proc/self/ns/user").st_ino == os.stat(f"/proc/{pid}/ns/user").st_ino
    except OSError as err:
        raise CommandError(f"cannot open the files of process {pid}: {err.strerror}") from err
    if not own:
        os.close(root)
        raise CommandError(
            "the container has a user namespace of its own, whose owners of files this machine"
            " does not know: use `criserver exec -i CONTAINER tar`"
        )
    return root


def open_inside(root: int, path: str) -> int:
    """Return an O_PATH fd of what `path` is below `root`. Raises OSError."""
    return syscalls.openat2(root, path.lstrip("/") or ".", os.O_PATH, INSIDE)


class Target:
    """Where a copy goes: a directory that is there, and a name in it."""

    def __init__(self, directory: int, name: str) -> None:
        self.directory = directory
        self.name = name


def target_inside(root: int, path: str, source_name: str) -> Target:
    """Return where a copy of `source_name` to `path` goes: into it, if it is a directory.

    Raises OSError.
    """
    try:
        found = open_inside(root, path)
    except FileNotFoundError:
        if path.endswith("/"):
            raise
        parent, name = os.path.split(path)
        return Target(syscalls.openat2(root, parent.lstrip("/") or ".", DIRECTORY, INSIDE), name)
    try:
        if stat.S_ISDIR(os.fstat(found).st_mode):
            return Target(os.open(f"/proc/self/fd/{found}", DIRECTORY), source_name)
    finally:
        os.close(found)
    parent, name = os.path.split(path)
    return Target(syscalls.openat2(root, parent.lstrip("/") or ".", DIRECTORY, INSIDE), name)


def copy(source: int, target: Target, path: str, left_out: Report) -> None:
    """Copy a file or a directory with all below it; owners are ours, modes and times are kept.

    A file of the target's name is replaced, a directory is added to. `source` is an O_PATH fd.
    Raises OSError.
    """
    status = os.fstat(source)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        _copy_file(source, target, status)
    elif kind == stat.S_IFLNK:
        _replace(target, lambda name: os.symlink(_link(source), name, dir_fd=target.directory))
    elif kind == stat.S_IFDIR:
        _copy_directory(source, target, status, path, left_out)
    else:
        left_out(path, KINDS[kind])


def _link(source: int) -> str:
    return os.readlink("", dir_fd=source)  # man 2 readlink: an empty path is the fd's own


def _copy_file(source: int, target: Target, status: os.stat_result) -> None:
    with open(f"/proc/self/fd/{source}", "rb") as content:

        def write(name: str) -> None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(name, flags, 0o600, dir_fd=target.directory), "wb") as written:
                shutil.copyfileobj(content, written, 1 << 20)
                os.fchmod(written.fileno(), stat.S_IMODE(status.st_mode))
                written.flush()
                os.utime(written.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))

        _replace(target, write)


def _replace(target: Target, make: Callable[[str], None]) -> None:
    """Make something under a name of its own, and rename it: nobody sees the half of a file."""
    made = f".criserver-cp-{secrets.token_hex(8)}"
    try:
        make(made)
        os.rename(made, target.name, src_dir_fd=target.directory, dst_dir_fd=target.directory)
    except BaseException:
        try:
            os.unlink(made, dir_fd=target.directory)
        except FileNotFoundError:
            pass
        raise


def _copy_directory(
    source: int, target: Target, status: os.stat_result, path: str, left_out: Report
) -> None:
    new = _make_directory(target)
    into = syscalls.openat2(target.directory, target.name, DIRECTORY, ONE_STEP)
    try:
        copy_content(source, into, path, left_out)
        if new:
            _copy_attributes(into, status)
    finally:
        os.close(into)


def _make_directory(target: Target) -> bool:
    """Make a directory that only we can enter yet; False when there is something of its name."""
    try:
        os.mkdir(target.name, 0o700, dir_fd=target.directory)
    except FileExistsError:
        return False
    return True


def _copy_attributes(into: int, status: os.stat_result) -> None:
    os.fchmod(into, stat.S_IMODE(status.st_mode))
    os.utime(into, ns=(status.st_atime_ns, status.st_mtime_ns))


def copy_content(source: int, into: int, path: str, left_out: Report) -> None:
    """Copy all that is in a directory (an O_PATH fd) into another. Raises OSError.

    Every directory is opened by its path from the first, so depth costs no stack and no fds.
    """
    new: dict[str, os.stat_result] = {}
    directories = ["."]  # grows while it is gone through
    for directory in directories:
        listed = syscalls.openat2(source, directory, DIRECTORY, ONE_STEP)
        try:
            place = syscalls.openat2(into, directory, DIRECTORY, ONE_STEP)
            try:
                for name in sorted(os.listdir(listed)):
                    entry = syscalls.openat2(listed, name, os.O_PATH | os.O_NOFOLLOW, ONE_STEP)
                    try:
                        status = os.fstat(entry)
                        below = f"{directory}/{name}"
                        if not stat.S_ISDIR(status.st_mode):
                            copy(entry, Target(place, name), str(Path(path, below)), left_out)
                            continue
                        if _make_directory(Target(place, name)):
                            new[below] = status
                        directories.append(below)
                    finally:
                        os.close(entry)
            finally:
                os.close(place)
        finally:
            os.close(listed)
    for directory, status in reversed(new.items()):  # now that nothing changes their times
        place = syscalls.openat2(into, directory, DIRECTORY, ONE_STEP)
        try:
            _copy_attributes(place, status)
        finally:
            os.close(place)

"""Paths inside a container's root, walked by the kernel under RESOLVE_IN_ROOT.

The image owns every name below the root and may exchange any of them at any time. So a path is
walked once, and from then on only the fd is used (CVE-2021-30465, CVE-2024-45310).
"""

from __future__ import annotations

import os
import stat

from runtimeshim.linux.syscalls import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)

INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
ONE_STEP = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS

# Directories and files that a mount target needs and the image lacks.
NEW_DIRECTORY_MODE = 0o755
NEW_FILE_MODE = 0o644


def open_inside(root: int, path: str, flags: int = os.O_PATH) -> int:
    """Open `path`, absolute or relative, with `root` as its root; returns an fd."""
    return openat2(root, path.lstrip("/") or ".", flags, INSIDE)


def open_without_symlinks(root: int, path: str, flags: int = os.O_PATH) -> int:
    """Open `path` below `root`; a symbolic link anywhere in it is refused (ELOOP)."""
    return openat2(root, path.strip("/") or ".", flags, INSIDE | RESOLVE_NO_SYMLINKS)


def components(path: str) -> list[str]:
    """Split a container path; `..` is taken lexically and never leaves the root."""
    parts = os.path.normpath("/" + path).strip("/").split("/")
    return [part for part in parts if part]


def make_directory(root: int, path: str) -> int:
    """Return an O_PATH fd of the directory `path`, made with its parents where missing."""
    parts = components(path)
    current, missing = _deepest(root, parts)
    for name in missing:
        current = _step(current, name)
    return current


def make_file(root: int, path: str) -> int:
    """Return an O_PATH fd of the file `path`, made empty with its parents where missing."""
    try:
        return open_inside(root, path)
    except FileNotFoundError:
        pass
    parts = components(path)
    parent = make_directory(root, "/".join(parts[:-1]))
    try:
        return _make_file_in(parent, parts[-1])
    finally:
        os.close(parent)


def make_file_without_symlinks(root: int, path: str) -> int:
    """Do as make_file, and refuse a symbolic link anywhere in the path (ELOOP)."""
    directory, name = os.path.split(path)
    parent = open_without_symlinks(root, directory, os.O_PATH | os.O_DIRECTORY)
    try:
        try:
            return openat2(parent, name, os.O_PATH, ONE_STEP)
        except FileNotFoundError:
            return _make_file_in(parent, name)
    finally:
        os.close(parent)


def _make_file_in(parent: int, name: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(name, flags, NEW_FILE_MODE, dir_fd=parent))
    return openat2(parent, name, os.O_PATH, ONE_STEP)


def _deepest(root: int, parts: list[str]) -> tuple[int, list[str]]:
    """Open the longest existing prefix of `parts`; returns its fd and what is missing."""
    for length in range(len(parts), -1, -1):
        try:
            fd = open_inside(root, "/".join(parts[:length]), os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        return fd, parts[length:]
    raise FileNotFoundError(2, "the root itself cannot be opened")


def _step(parent: int, name: str) -> int:
    """Make one directory and enter it, whoever else makes things there; closes `parent`."""
    try:
        try:
            os.mkdir(name, NEW_DIRECTORY_MODE, dir_fd=parent)
        except FileExistsError:
            pass  # another container of the same volume was quicker; the open below decides
        return openat2(parent, name, os.O_PATH | os.O_DIRECTORY, ONE_STEP)
    finally:
        os.close(parent)


def is_directory(fd: int) -> bool:
    """Tell whether an fd, O_PATH or not, is a directory's."""
    return stat.S_ISDIR(os.fstat(fd).st_mode)

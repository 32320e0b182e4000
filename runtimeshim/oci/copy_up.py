"""tmpcopyup: a new tmpfs that begins with what the image has at its place.

Everything goes by directory fds and without following a link: the image owns every name.
"""

from __future__ import annotations

import os
import stat

from runtimeshim.oci import resolve

_CHUNK = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def copy(root: int, path: str, target: int) -> None:
    """Copy the directory `path` below `root` into `target`, a directory's fd; sockets are left."""
    source = resolve.open_inside(root, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        into = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=target)
        try:
            _copy_directory(source, into)
        finally:
            os.close(into)
    finally:
        os.close(source)


def _copy_directory(source: int, target: int) -> None:
    for name in os.listdir(source):
        _copy_entry(source, target, name, os.stat(name, dir_fd=source, follow_symlinks=False))
    _copy_attributes(source, target)


def _copy_entry(source: int, target: int, name: str, found: os.stat_result) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFLNK:
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    elif kind == stat.S_IFDIR:
        os.mkdir(name, 0o700, dir_fd=target)
        _with_both(source, target, name, os.O_RDONLY | os.O_DIRECTORY)
    elif kind == stat.S_IFREG:
        _with_both(source, target, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    elif kind == stat.S_IFIFO:
        os.mkfifo(name, stat.S_IMODE(found.st_mode), dir_fd=target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)


def _with_both(source: int, target: int, name: str, flags: int) -> None:
    inner = os.open(name, _READ, dir_fd=source)
    try:
        outer = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            if flags & os.O_CREAT:
                _copy_content(inner, outer)
            else:
                _copy_directory(inner, outer)
        finally:
            os.close(outer)
    finally:
        os.close(inner)


def _copy_content(source: int, target: int) -> None:
    while chunk := os.read(source, _CHUNK):
        os.write(target, chunk)
    _copy_attributes(source, target)


def _copy_attributes(source: int, target: int) -> None:
    """Copy owner, mode, xattrs and times; the owner first, as it clears set-id bits."""
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        if name.startswith(("user.", "security.")):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))

"""Copies of directory trees that belong to an image: nothing below follows a link.

A directory is opened by its path from the root of the tree, step by step without symbolic links
(man 2 openat2), so that depth costs neither descriptors nor stack.
"""

from __future__ import annotations

import errno
import os
import stat

from runtimeshim.linux.syscalls import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)

_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Labels of SELinux are given by where a file is, not by where it comes from.
_XATTRS = ("user.", "security.")
_NO_XATTRS = ("security.selinux",)


def copy(source: int, target: int, *, devices: bool = False) -> None:
    """Copy what is in the directory `source`, and its own attributes, into `target`, an empty one.

    Both are file descriptors. Owners, modes, times, xattrs and hard links are kept; sockets are
    left out, device nodes as well unless `devices`, and user xattrs where the target's file system
    has none, as a tmpfs before Linux 6.6. Raises OSError.
    """
    _Copy(source, target, devices=devices).run()


class _Copy:
    def __init__(self, source: int, target: int, *, devices: bool) -> None:
        self._source = source
        self._target = target
        self._devices = devices
        self._links: dict[tuple[int, int], str] = {}  # (device, inode) -> the first name's path

    def run(self) -> None:
        directories = ["."]  # grows while it is gone through
        for path in directories:
            source, target = self._open(path)
            try:
                for name in os.listdir(source):
                    if self._entry(source, target, path, name):
                        directories.append(f"{path}/{name}")
            finally:
                os.close(source)
                os.close(target)
        for path in reversed(directories):  # now that nothing changes their times any more
            source, target = self._open(path)
            try:
                _copy_attributes(source, target)
            finally:
                os.close(source)
                os.close(target)

    def _open(self, path: str) -> tuple[int, int]:
        source = openat2(self._source, path, _DIRECTORY, _INSIDE)
        try:
            return source, openat2(self._target, path, _DIRECTORY, _INSIDE)
        except BaseException:
            os.close(source)
            raise

    def _entry(self, source: int, target: int, path: str, name: str) -> bool:
        """Copy an entry of the directory `path`; tells whether it is a directory, made empty."""
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=target)
        elif kind == stat.S_IFREG:
            self._file(source, target, path, name, found)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            _copy_owner_and_times(found, target, name)
        elif kind == stat.S_IFIFO or (self._devices and kind in (stat.S_IFCHR, stat.S_IFBLK)):
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=target)
            _copy_owner_and_times(found, target, name)
            os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=target)
        return kind == stat.S_IFDIR

    def _file(self, source: int, target: int, path: str, name: str, found: os.stat_result) -> None:
        key = (found.st_dev, found.st_ino)
        if found.st_nlink > 1 and key in self._links:
            os.link(self._links[key], name, src_dir_fd=self._target, dst_dir_fd=target)
            return
        if found.st_nlink > 1:
            self._links[key] = f"{path}/{name}"
        inner = os.open(name, _READ, dir_fd=source)
        try:
            outer = os.open(name, _CREATE, 0o600, dir_fd=target)
            try:
                _copy_content(inner, outer, found.st_size)
                _copy_attributes(inner, outer)
            finally:
                os.close(outer)
        finally:
            os.close(inner)


def _copy_content(source: int, target: int, size: int) -> None:
    """Copy what there is between the holes of a file, which may be most of it."""
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as err:
            if err.errno != errno.ENXIO:
                raise
            break  # a hole to the end
        end = os.lseek(source, start, os.SEEK_HOLE)
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            start += os.sendfile(target, source, start, end - start)
    os.ftruncate(target, size)


def _copy_owner_and_times(found: os.stat_result, target: int, name: str) -> None:
    os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    times = (found.st_atime_ns, found.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)


def _copy_attributes(source: int, target: int) -> None:
    """Copy owner, mode, xattrs and times; the owner first, as it clears set-id bits."""
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        if name.startswith(_XATTRS) and name not in _NO_XATTRS:
            _copy_xattr(source, target, name)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _copy_xattr(source: int, target: int, name: str) -> None:
    try:
        os.setxattr(target, name, os.getxattr(source, name))
    except OSError as err:
        # What is said to programs may be missing, as in a copy by cp(1); what the kernel goes by,
        # such as a file's capabilities, may not.
        if err.errno != errno.EOPNOTSUPP or not name.startswith("user."):
            raise

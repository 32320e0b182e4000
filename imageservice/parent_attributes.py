"""Attributes of a directory that a layer has only by implication: those of the layers below."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from imageservice.layer_tree import OPAQUE_XATTR
from runtimeshim.linux import syscalls

_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
_OVERLAY_XATTR = "trusted.overlay."


def adopt(layer: int, path: bytes, parents: Sequence[int]) -> None:
    """Copy mode, owner, times and xattrs of `path` from the first of `parents` that shows it."""
    for parent in parents:
        source = open_directory(parent, path)
        if source is None:
            if hides(parent, path):
                return
            continue
        try:
            if stat.S_ISDIR(os.fstat(source).st_mode):
                target = open_directory(layer, path)
                if target is not None:
                    _copy_and_close(source, target)
            return
        finally:
            os.close(source)


def copy_attributes(source: int, target: int) -> None:
    """Copy mode, owner, times and xattrs from one open directory to another."""
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if not name.startswith(_OVERLAY_XATTR):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_and_close(source: int, target: int) -> None:
    try:
        copy_attributes(source, target)
    finally:
        os.close(target)


def open_directory(root: int, path: bytes) -> int | None:
    """Open `path` below `root`; None where there is no such directory."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        return syscalls.openat2(root, os.fsdecode(path) or ".", flags, _RESOLVE)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def hides(root: int, path: bytes) -> bool:
    """Tell whether this layer hides what the ones below have at `path`."""
    while path:
        if _is_other(root, path):
            return True
        fd = open_directory(root, path)
        if fd is not None:
            try:
                if _is_opaque(fd):
                    return True
            finally:
                os.close(fd)
        path = path.rpartition(b"/")[0]
    return False


def _is_other(root: int, path: bytes) -> bool:
    """Tell whether `path` is something else than a directory: a whiteout, a file, a link."""
    flags = os.O_PATH | os.O_NOFOLLOW
    try:
        fd = syscalls.openat2(root, os.fsdecode(path) or ".", flags, _RESOLVE)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    try:
        return not stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, OPAQUE_XATTR) == b"y"
    except OSError as err:
        if err.errno == errno.ENODATA:
            return False
        raise

"""Compares an unpacked layer with the archive that it came from: the reverse of layer_tree.

An entry that does not agree with the disk is suspect; one that comes later in the archive for the
same path, and agrees, clears it, as unpacking would have replaced it. What the archive has not is
found by a walk at the end. Whiteouts are looked for in overlayfs' form.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from imageservice import tar
from imageservice.layer_tree import (
    OPAQUE_MARKER,
    OPAQUE_XATTR,
    WHITEOUT,
    WHITEOUT_META,
    device_of,
)
from imageservice.tar import Entry, clean_path
from imageservice.tar_reader import TarReader

# Damages that are reported for one layer; more say nothing more.
MAX_FINDINGS = 20
# Set by the machine's own security module, whatever the archive says.
_OWN_XATTRS = frozenset(("security.selinux", "security.ima", "security.evm"))
_KINDS = {
    tar.REGULAR: stat.S_IFREG,
    tar.GNU_SPARSE: stat.S_IFREG,
    tar.DIRECTORY: stat.S_IFDIR,
    tar.SYMLINK: stat.S_IFLNK,
    tar.CHARACTER: stat.S_IFCHR,
    tar.BLOCKDEV: stat.S_IFBLK,
    tar.FIFO: stat.S_IFIFO,
}


class LayerCheck:
    """Compares entries with the current directory, which must be the root of the process too."""

    def __init__(self) -> None:
        self._suspects: dict[bytes, str] = {}
        self._seen: set[bytes] = {b""}
        self._covering: set[bytes] = set()  # seen, and no directories

    def compare(self, entry: Entry, reader: TarReader) -> None:
        """Compare one entry, whose data `reader` gives."""
        path = clean_path(entry.name)
        parent, _, base = path.rpartition(b"/")
        if base.startswith(WHITEOUT):
            if not self._is_covered(parent):
                self._see_parents(parent)
                self._whiteout(parent, base)
            return
        self._see_parents(parent)
        if entry.kind != tar.DIRECTORY:
            self._forget_below(path)
            self._covering.add(path)
        else:
            self._covering.discard(path)
        self._seen.add(path)
        found = self._difference(path or b".", entry, reader)
        if found:
            self._suspects[path] = found
        else:
            self._suspects.pop(path, None)

    def _see_parents(self, path: bytes) -> None:
        while path not in self._seen:
            self._seen.add(path)
            path = path.rpartition(b"/")[0]

    def _is_covered(self, path: bytes) -> bool:
        """Tell whether `path`, or what it is below, is no directory of this layer."""
        while path and path not in self._covering:
            path = path.rpartition(b"/")[0]
        return bool(path)

    def _forget_below(self, path: bytes) -> None:
        """Drop what was a directory's before this entry took its place; rare."""
        if path in self._seen and self._suspects:
            below = path + b"/"
            for known in [p for p in self._suspects if p.startswith(below)]:
                del self._suspects[known]

    def _whiteout(self, parent: bytes, base: bytes) -> None:
        if base == OPAQUE_MARKER:
            if not _is_opaque(parent or b"."):
                self._suspects[parent] = "it is not opaque"
            return
        if base.startswith(WHITEOUT_META):
            return
        name = base[len(WHITEOUT) :]
        path = parent + b"/" + name if parent else name
        if path in self._seen:
            return  # this layer's own entry covers what is below
        self._seen.add(path)
        status = _lstat(path)
        if status is None or not stat.S_ISCHR(status.st_mode) or status.st_rdev != 0:
            self._suspects[path] = "its whiteout is missing"

    # -- one entry ----------------------------------------------------------------------------

    def _difference(self, path: bytes, entry: Entry, reader: TarReader) -> str:
        """Return how disk and entry differ, "" when they agree."""
        status = _lstat(path)
        if status is None:
            return "it is missing"
        if entry.kind == tar.HARDLINK:
            target = _lstat(clean_path(entry.linkname))
            same = target is not None and target.st_ino == status.st_ino
            return "" if same else "it is not the hard link that it was"
        if stat.S_IFMT(status.st_mode) != _KINDS.get(entry.kind):
            return "it is of another kind"
        return (
            _attributes_difference(status, entry)
            or _content_difference(path, status, entry, reader)
            or _xattrs_difference(path, status, entry)
        )

    # -- the end ------------------------------------------------------------------------------

    def findings(self) -> list[str]:
        """Return what is damaged, "path: how"; to be called when all entries were compared."""
        found = [f"{_text(path)}: {how}" for path, how in self._suspects.items()]
        for path in _walk(b""):
            if len(found) > MAX_FINDINGS:
                break
            if path not in self._seen:
                found.append(f"{_text(path)}: it is not in the layer's archive")
        if len(found) > MAX_FINDINGS:
            found[MAX_FINDINGS:] = ["and more"]
        return found


def _attributes_difference(status: os.stat_result, entry: Entry) -> str:
    if (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
        return f"its owner is {status.st_uid}:{status.st_gid}, not {entry.uid}:{entry.gid}"
    if entry.kind != tar.SYMLINK and stat.S_IMODE(status.st_mode) != entry.mode:
        return f"its mode is {stat.S_IMODE(status.st_mode):o}, not {entry.mode:o}"
    if entry.kind in (tar.CHARACTER, tar.BLOCKDEV) and status.st_rdev != device_of(entry):
        return "it is another device"
    if status.st_mtime_ns != entry.mtime_ns:
        return "it was modified at another time"
    return ""


def _content_difference(
    path: bytes, status: os.stat_result, entry: Entry, reader: TarReader
) -> str:
    if entry.kind == tar.SYMLINK:
        return "" if os.readlink(path) == entry.linkname else "it points elsewhere"
    if entry.kind not in (tar.REGULAR, tar.GNU_SPARSE):
        return ""
    if status.st_size != entry.real_size:
        return f"it has {status.st_size} bytes, not {entry.real_size}"
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        same = _same_content(fd, entry, reader)
    finally:
        os.close(fd)
    return "" if same else "its content is another"


def _same_content(fd: int, entry: Entry, reader: TarReader) -> bool:
    if entry.sparse is None:
        return all(_same_bytes(fd, piece) for piece in reader.data())
    pieces = reader.data()
    piece = memoryview(b"")
    position = 0
    for offset, length in entry.sparse:
        if not _is_hole(fd, offset - position):
            return False
        position = offset + length
        while length:
            piece = piece or next(pieces)
            part, piece = piece[:length], piece[length:]
            if not _same_bytes(fd, part):
                return False
            length -= len(part)
    return _is_hole(fd, entry.real_size - position)


def _same_bytes(fd: int, piece: memoryview) -> bool:
    """Tell whether the next bytes of the file are these; a read may give fewer than asked for."""
    while piece:
        read = os.read(fd, len(piece))
        if not read or read != piece[: len(read)]:
            return False
        piece = piece[len(read) :]
    return True


def _is_hole(fd: int, length: int) -> bool:
    """Tell whether the next `length` bytes are all zero."""
    while length:
        read = os.read(fd, min(length, 1 << 20))
        if not read or read.count(0) != len(read):
            return False
        length -= len(read)
    return True


def _xattrs_difference(path: bytes, status: os.stat_result, entry: Entry) -> str:
    if stat.S_ISLNK(status.st_mode):
        return ""
    wanted = {k: v for k, v in (entry.xattrs or {}).items() if not k.startswith("trusted.")}
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        wanted = {k: v for k, v in wanted.items() if not k.startswith("user.")}  # man 7 xattr
    try:
        names = set(os.listxattr(path, follow_symlinks=False))
        there = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in names
            if not name.startswith("trusted.") and (name in wanted or name not in _OWN_XATTRS)
        }
    except OSError as err:
        if err.errno == errno.ENOTSUP:  # the filesystem has none
            return ""
        raise
    return "" if there == wanted else "its extended attributes are others"


def _is_opaque(path: bytes) -> bool:
    try:
        return os.getxattr(path, OPAQUE_XATTR, follow_symlinks=False) == b"y"
    except OSError as err:
        if err.errno in (errno.ENODATA, errno.ENOENT, errno.ENOTDIR):
            return False
        raise


def _lstat(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _walk(path: bytes) -> Iterator[bytes]:
    """Give every path below `path`, relative to the root."""
    pending = [path]
    while pending:
        directory = pending.pop()
        with os.scandir(directory or b".") as entries:
            for entry in entries:
                found = directory + b"/" + entry.name if directory else entry.name
                yield found
                if entry.is_dir(follow_symlinks=False):
                    pending.append(found)


def _text(path: bytes) -> str:
    return repr(path.decode(errors="backslashreplace") or ".")

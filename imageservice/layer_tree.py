"""A layer's directory, filled from tar entries by calls that name one component below an open fd.

The directory begins empty and nobody else writes to it, so this object knows every directory in
it. A parent is always one of those: no symbolic link is ever followed, whatever the archive says.
Directories get owner, special bits, xattrs and times last: a set-group-id bit or a default ACL
would otherwise be inherited, and each child would change the times.

Whiteouts become overlayfs' own: a character device 0:0, or the xattr trusted.overlay.opaque
(image-spec layer.md, "Whiteouts"; kernel Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import errno
import os
import stat

from imageservice import tar
from imageservice.tar import Entry, TarError, clean_path
from imageservice.tar_reader import TarReader

WHITEOUT = b".wh."
# aufs' own bookkeeping, e.g. .wh..wh.plnk; only the opaque marker means something.
WHITEOUT_META = b".wh..wh."
OPAQUE_MARKER = b".wh..wh..opq"
OPAQUE_XATTR = "trusted.overlay.opaque"

# Open directories kept; a tar comes directory by directory, so few are needed.
MAX_OPEN = 32
# Bytes written between two looks at the free space of the disk.
SPACE_INTERVAL = 64 << 20
# The disk is never filled to the brim: the node needs the rest to go on.
SPACE_RESERVE = 256 << 20

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Data up to this size is written in one call from one piece.
_SMALL = 128 * 1024
_SPECIAL_BITS = 0o7000


class CoveredError(TarError):
    """An entry is below something that this layer has made, and that is no directory."""


class LayerTree:
    """Applies entries to the directory `root`, an fd that stays the caller's.

    The process' umask must be 0.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._open: dict[bytes, int] = {b"": root}
        # Known directories; None for those that no entry has described.
        self._dirs: dict[bytes, Entry | None] = {b"": None}
        self._whiteouts: set[bytes] = set()
        self._unchecked = SPACE_INTERVAL
        self.ignored_xattrs = 0
        self.size = 0  # bytes on disk, in blocks of 4 KiB
        self.inodes = 1

    def apply(self, entry: Entry, reader: TarReader) -> None:
        """Apply one entry, whose data `reader` gives; raises TarError or OSError."""
        path = clean_path(entry.name)
        parent, _, base = path.rpartition(b"/")
        if not base:
            self._apply_root(entry)
            return
        if base.startswith(WHITEOUT):
            self._whiteout(parent, base)
            return
        dirfd = self._parent(parent)
        kind = entry.kind
        if kind == tar.REGULAR or kind == tar.GNU_SPARSE:
            self._file(dirfd, path, base, entry, reader)
        elif kind == tar.DIRECTORY:
            self._directory(dirfd, path, base, entry)
        else:
            self._special(dirfd, path, base, entry)

    def _apply_root(self, entry: Entry) -> None:
        if entry.kind != tar.DIRECTORY:
            raise TarError(f"entry {entry.name!r} would replace the root by something else")
        self._dirs[b""] = entry

    # -- parents ------------------------------------------------------------------------------

    def _parent(self, path: bytes) -> int:
        """Return an open fd of the directory `path`, made where it is missing."""
        fd = self._open.get(path)
        if fd is not None:
            return fd
        if path not in self._dirs:
            self._implicit(path)
        if len(self._open) > MAX_OPEN:
            self._close_all()
        fd = os.open(path, _DIRECTORY, dir_fd=self._root)
        self._open[path] = fd
        return fd

    def _implicit(self, path: bytes) -> None:
        """Make a directory that has no entry of its own (yet)."""
        parent, _, base = path.rpartition(b"/")
        dirfd = self._parent(parent)
        try:
            self._mkdir(dirfd, path, base, 0o755)
        except FileExistsError:
            raise CoveredError(f"{path!r} is not a directory, but entries are below it") from None
        self._dirs[path] = None

    def _mkdir(self, dirfd: int, path: bytes, base: bytes, mode: int) -> None:
        """Make a directory; where the same layer has a whiteout, what is below is hidden."""
        whiteout = path in self._whiteouts
        if whiteout:
            self._whiteouts.remove(path)
            os.unlink(base, dir_fd=dirfd)
        os.mkdir(base, mode, dir_fd=dirfd)
        self._count(4096)
        if whiteout:
            self._make_opaque(dirfd, base)

    def _make_opaque(self, dirfd: int, base: bytes) -> None:
        fd = os.open(base, _DIRECTORY, dir_fd=dirfd)
        try:
            os.setxattr(fd, OPAQUE_XATTR, b"y")
        finally:
            os.close(fd)

    def _close_all(self) -> None:
        for path, fd in self._open.items():
            if path:
                os.close(fd)
        self._open = {b"": self._root}

    # -- entries ------------------------------------------------------------------------------

    def _directory(self, dirfd: int, path: bytes, base: bytes, entry: Entry) -> None:
        if path not in self._dirs:
            try:
                self._mkdir(dirfd, path, base, entry.mode & 0o777)
            except FileExistsError:
                os.unlink(base, dir_fd=dirfd)
                self._mkdir(dirfd, path, base, entry.mode & 0o777)
        self._dirs[path] = entry

    def _file(self, dirfd: int, path: bytes, base: bytes, entry: Entry, reader: TarReader) -> None:
        try:
            fd = os.open(base, _CREATE, entry.mode, dir_fd=dirfd)
        except FileExistsError:
            self._clear(dirfd, path, base)
            fd = os.open(base, _CREATE, entry.mode, dir_fd=dirfd)
        try:
            if entry.sparse is not None:
                self._write_sparse(fd, entry, reader)
            elif entry.size:
                self._write(fd, entry, reader)
            if entry.uid or entry.gid:
                os.fchown(fd, entry.uid, entry.gid)
            if entry.mode & _SPECIAL_BITS:  # cleared by chown and write
                os.fchmod(fd, entry.mode)
            if entry.xattrs:
                self._set_xattrs(fd, entry)
            os.utime(fd, ns=_times(entry))
        finally:
            os.close(fd)

    def _write(self, fd: int, entry: Entry, reader: TarReader) -> None:
        self._count(entry.size)
        if entry.size <= _SMALL:
            _write_all(fd, memoryview(reader.small_data()))
            return
        for piece in reader.data():
            _write_all(fd, piece)

    def _write_sparse(self, fd: int, entry: Entry, reader: TarReader) -> None:
        self._count(entry.size)
        pieces = reader.data()
        piece = memoryview(b"")
        for offset, length in entry.sparse or ():
            os.lseek(fd, offset, os.SEEK_SET)
            while length:
                if not piece:
                    piece = next(pieces)
                part, piece = piece[:length], piece[length:]
                _write_all(fd, part)
                length -= len(part)
        os.ftruncate(fd, entry.real_size)

    def _special(self, dirfd: int, path: bytes, base: bytes, entry: Entry) -> None:
        try:
            self._make_special(dirfd, base, entry)
        except FileExistsError:
            if entry.kind == tar.HARDLINK and clean_path(entry.linkname) == path:
                return
            self._clear(dirfd, path, base)
            self._make_special(dirfd, base, entry)
        if entry.kind == tar.HARDLINK:  # the inode has its metadata from its first name
            return
        self._count(0)
        if entry.uid or entry.gid:
            os.chown(base, entry.uid, entry.gid, dir_fd=dirfd, follow_symlinks=False)
        if entry.mode & _SPECIAL_BITS and entry.kind != tar.SYMLINK:
            os.chmod(base, entry.mode, dir_fd=dirfd)
        if entry.xattrs:
            self._set_special_xattrs(dirfd, base, entry)
        os.utime(base, ns=_times(entry), dir_fd=dirfd, follow_symlinks=False)

    def _make_special(self, dirfd: int, base: bytes, entry: Entry) -> None:
        match entry.kind:
            case tar.SYMLINK:
                os.symlink(entry.linkname, base, dir_fd=dirfd)
            case tar.HARDLINK:
                self._link(dirfd, base, entry)
            case tar.FIFO:
                os.mknod(base, stat.S_IFIFO | entry.mode, dir_fd=dirfd)
            case tar.CHARACTER | tar.BLOCKDEV:
                kind = stat.S_IFCHR if entry.kind == tar.CHARACTER else stat.S_IFBLK
                os.mknod(base, kind | entry.mode, device_of(entry), dir_fd=dirfd)
            case other:
                raise TarError(f"entry {entry.name!r} has the unknown type {chr(other)!r}")

    def _link(self, dirfd: int, base: bytes, entry: Entry) -> None:
        target = clean_path(entry.linkname)
        parent, _, name = target.rpartition(b"/")
        if not name or parent not in self._dirs:
            raise TarError(
                f"entry {entry.name!r} is a hard link to {entry.linkname!r}, "
                "which is not in this layer"
            )
        try:
            # The look-up may close and reopen directories: dirfd stays open until the next one.
            source = os.open(parent, _DIRECTORY, dir_fd=self._root) if parent else self._root
            try:
                os.link(name, base, src_dir_fd=source, dst_dir_fd=dirfd, follow_symlinks=False)
            finally:
                if parent:
                    os.close(source)
        except (FileNotFoundError, PermissionError) as err:
            raise TarError(
                f"entry {entry.name!r} is a hard link to {entry.linkname!r}: {err.strerror}"
            ) from err

    def _clear(self, dirfd: int, path: bytes, base: bytes) -> None:
        """Remove what an earlier entry of this layer put where the next one goes."""
        if path not in self._dirs:
            self._whiteouts.discard(path)
            os.unlink(base, dir_fd=dirfd)
            return
        self._close_all_below(path)
        below = path + b"/"
        for known in [d for d in self._dirs if d == path or d.startswith(below)]:
            del self._dirs[known]
        remove_tree(dirfd, base)

    def _close_all_below(self, path: bytes) -> None:
        below = path + b"/"
        for known in [d for d in self._open if d == path or d.startswith(below)]:
            os.close(self._open.pop(known))

    # -- whiteouts ----------------------------------------------------------------------------

    def _whiteout(self, parent: bytes, base: bytes) -> None:
        try:
            dirfd = self._parent(parent)
        except CoveredError:
            # umoci lists what went with a directory that is now a link: that hides all of it.
            return
        if base == OPAQUE_MARKER:
            os.setxattr(dirfd, OPAQUE_XATTR, b"y")
            return
        if base.startswith(WHITEOUT_META):
            return
        name = base[len(WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise TarError(f"whiteout {base!r} names nothing")
        path = parent + b"/" + name if parent else name
        if path in self._dirs:  # this layer's directory stays, what is below it goes
            self._make_opaque(dirfd, name)
            return
        try:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=dirfd)
        except FileExistsError:  # this layer's file covers the one below as well
            return
        self._whiteouts.add(path)
        self._count(0)

    # -- metadata -----------------------------------------------------------------------------

    def _set_xattrs(self, target: int | bytes, entry: Entry) -> None:
        for name, value in (entry.xattrs or {}).items():
            # trusted.overlay.* would let an image redirect look-ups; containerd skips all of it.
            if name.startswith("trusted."):
                self.ignored_xattrs += 1
                continue
            try:
                os.setxattr(target, name, value, follow_symlinks=isinstance(target, int))
            except OSError as err:
                # Only files and directories may have user.* (man 7 xattr).
                if err.errno != errno.ENOTSUP and not name.startswith("user."):
                    raise
                self.ignored_xattrs += 1

    def _set_special_xattrs(self, dirfd: int, base: bytes, entry: Entry) -> None:
        """Set them by name: neither a symlink nor a device has an fd to set them on."""
        before = os.open(".", os.O_PATH | os.O_CLOEXEC)
        try:
            os.fchdir(dirfd)
            self._set_xattrs(base, entry)
        finally:
            os.fchdir(before)
            os.close(before)

    def finish(self) -> list[bytes]:
        """Give every directory its metadata; returns those that no entry described, parents first.

        The root is b"".
        """
        self._close_all()
        for path, entry in self._dirs.items():
            if entry is not None:
                self._finish_directory(path, entry)
        return sorted(path for path, entry in self._dirs.items() if entry is None)

    def _finish_directory(self, path: bytes, entry: Entry) -> None:
        fd = os.open(path, _DIRECTORY, dir_fd=self._root) if path else self._root
        try:
            if entry.uid or entry.gid:
                os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            if entry.xattrs:
                self._set_xattrs(fd, entry)
            os.utime(fd, ns=_times(entry))
        finally:
            if path:
                os.close(fd)

    def _count(self, size: int) -> None:
        blocks = -(-size // 4096) * 4096
        self.size += blocks
        self.inodes += 1
        self._unchecked += blocks
        if self._unchecked >= SPACE_INTERVAL:
            self._check_space(size)
            self._unchecked = 0

    def _check_space(self, size: int) -> None:
        fs = os.fstatvfs(self._root)
        reserve = min(SPACE_RESERVE, fs.f_blocks * fs.f_frsize // 20)
        if fs.f_bavail * fs.f_frsize < reserve + size:
            raise OSError(errno.ENOSPC, f"less than {reserve} bytes of disk space would be left")


def _times(entry: Entry) -> tuple[int, int]:
    return (max(entry.atime_ns, entry.mtime_ns), entry.mtime_ns)


def device_of(entry: Entry) -> int:
    """Return the device number of an entry; raises TarError where there can be none."""
    major, minor = entry.device
    # The kernel's 12 and 20 bits (linux/kdev_t.h).
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise TarError(f"entry {entry.name!r} has the impossible device {major}:{minor}")
    return os.makedev(major, minor)


def _write_all(fd: int, data: memoryview) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])


def remove_tree(dirfd: int, name: bytes) -> None:
    """Remove the directory `name` below `dirfd` with all that is in it, following no link."""
    fd = os.open(name, _DIRECTORY, dir_fd=dirfd)
    try:
        for entry in os.scandir(fd):
            raw = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                remove_tree(fd, raw)
            else:
                os.unlink(raw, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dirfd)

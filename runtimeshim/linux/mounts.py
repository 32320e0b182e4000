"""Mounts: mount(2), umount2(2) and the fd-based interface of Linux 5.2 and newer."""

from __future__ import annotations

import ctypes
import os

from runtimeshim.linux.syscalls import (
    SYS_FSCONFIG,
    SYS_FSMOUNT,
    SYS_FSOPEN,
    SYS_MOUNT_SETATTR,
    SYS_MOVE_MOUNT,
    SYS_OPEN_TREE,
    check,
    libc,
)

# man 2 mount
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

# linux/mount.h
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
OPEN_TREE_CLONE = 0x1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# A failing fsconfig explains itself in messages of this size at most (fs/fs_context.c).
_LOG_SIZE = 4096


class MountAttr(ctypes.Structure):
    """struct mount_attr of man 2 mount_setattr."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(source: str, target: str, fstype: str | None, flags: int, data: str = "") -> None:
    """Call mount(2)."""
    check(
        libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            None if fstype is None else fstype.encode(),
            flags,
            data.encode() if data else None,
        ),
        f"mount({fstype or 'flags'} 0x{flags:x})",
        target,
    )


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """Call umount2(2); detached by default: busy users keep it until they are gone."""
    check(libc.umount2(os.fsencode(target), flags), "umount2", target)


def _number(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


def fsopen(fstype: str) -> int:
    """Open a filesystem context (man 2 fsopen); returns an fd."""
    return check(
        libc.syscall(_number(SYS_FSOPEN), fstype.encode(), _number(FSOPEN_CLOEXEC)),
        f"fsopen({fstype})",
    )


def fsconfig(fd: int, key: str, value: str | None) -> None:
    """Set one parameter of a context: a string, or a flag when `value` is None (≤ 255 bytes)."""
    command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
    raw = None if value is None else os.fsencode(value)
    result = libc.syscall(
        _number(SYS_FSCONFIG), _number(fd), _number(command), key.encode(), raw, _number(0)
    )
    if result < 0:
        _raise_with_log(fd, f"fsconfig({key}={value})")


def fscreate(fd: int) -> None:
    """Make the superblock of a configured context."""
    result = libc.syscall(
        _number(SYS_FSCONFIG), _number(fd), _number(FSCONFIG_CMD_CREATE), None, None, _number(0)
    )
    if result < 0:
        _raise_with_log(fd, "fsconfig(CREATE)")


def _raise_with_log(fd: int, call: str) -> None:
    errno = ctypes.get_errno()
    try:
        log = os.read(fd, _LOG_SIZE).decode(errors="replace").strip()
    except OSError:  # the kernel had nothing to add
        log = ""
    detail = f" ({log})" if log else ""
    raise OSError(errno, f"{call}: {os.strerror(errno)}{detail}")


def fsmount(fd: int, attributes: int = 0) -> int:
    """Turn a created context into a detached mount; returns its fd."""
    return check(
        libc.syscall(
            _number(SYS_FSMOUNT), _number(fd), _number(FSMOUNT_CLOEXEC), _number(attributes)
        ),
        "fsmount",
    )


def new_mount(fstype: str, options: list[tuple[str, str | None]], attributes: int = 0) -> int:
    """Make a new filesystem as a detached mount; returns its fd."""
    context = fsopen(fstype)
    try:
        for key, value in options:
            fsconfig(context, key, value)
        fscreate(context)
        return fsmount(context, attributes)
    finally:
        os.close(context)


def open_tree(dirfd: int, path: str, *, recursive: bool = False) -> int:
    """Clone the mount at `path` ("" is `dirfd` itself) into a detached one; returns its fd."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    return check(
        libc.syscall(_number(SYS_OPEN_TREE), _number(dirfd), os.fsencode(path), _number(flags)),
        "open_tree",
        path,
    )


def move_mount(fd: int, target_fd: int, target: str = "") -> None:
    """Attach a detached mount at `target` below `target_fd`; "" is `target_fd` itself."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else MOVE_MOUNT_T_EMPTY_PATH)
    check(
        libc.syscall(
            _number(SYS_MOVE_MOUNT),
            _number(fd),
            b"",
            _number(target_fd),
            os.fsencode(target),
            _number(flags),
        ),
        "move_mount",
        target or None,
    )


def mount_setattr(
    fd: int,
    path: str = "",
    *,
    set_: int = 0,
    clear: int = 0,
    propagation: int = 0,
    user_namespace: int = 0,
    recursive: bool = False,
) -> None:
    """Change a mount's attributes by fd (Linux 5.12).

    With MOUNT_ATTR_IDMAP in `set_` its ids are mapped by `user_namespace`, an nsfs fd.
    """
    attr = MountAttr(set_, clear, propagation, user_namespace)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    check(
        libc.syscall(
            _number(SYS_MOUNT_SETATTR),
            _number(fd),
            os.fsencode(path),
            _number(flags),
            ctypes.byref(attr),
            _number(ctypes.sizeof(attr)),
        ),
        f"mount_setattr(+0x{set_:x} -0x{clear:x})",
        path or None,
    )


def set_propagation(target: str, flags: int) -> None:
    """Change the propagation of the mount at `target`, e.g. MS_SLAVE | MS_REC."""
    mount("none", target, None, flags)

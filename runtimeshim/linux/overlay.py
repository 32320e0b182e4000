"""Overlay mounts: by the fd-based interface, and by mount(2) before Linux 6.7.

"lowerdir+" came with Linux 6.7: it is refused as an option since 6.5, and before together with all
others, without a reason given. Those kernels take the layers as one string in a page of options,
so there they are named by file descriptors: these are short, and nothing has to be escaped.
"""

from __future__ import annotations

import errno
import os

from runtimeshim.linux import mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# What mount(2) and fsmount(2) call by the same number: read-only, nosuid, nodev, noexec.
_SAME_FLAGS = 0xF


class Writable:
    """What makes an overlay writable; with `volatile` nothing of it is synced."""

    __slots__ = ("upperdir", "volatile", "workdir")

    def __init__(self, upperdir: str, workdir: str, volatile: bool = False) -> None:
        self.upperdir = upperdir
        self.workdir = workdir
        self.volatile = volatile


def mount(
    lowerdirs: Sequence[str],
    target: str,
    writable: Writable | None = None,
    *,
    source: str = "overlay",
    attributes: int = 0,
    context: str = "",
) -> None:
    """Mount the layers, the top one first, at the directory `target`.

    `attributes` are MOUNT_ATTR_RDONLY, NOSUID, NODEV and NOEXEC. All files have the SELinux label
    `context`, if it is not "". Raises OSError. May change the working directory for a moment, so
    other threads must not depend on it.
    """
    try:
        fd = _new(lowerdirs, writable, source, attributes, context)
    except OSError as refused:
        _mount_by_string(refused, lowerdirs, target, writable, source, attributes, context)
        return
    try:
        directory = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mounts.move_mount(fd, directory)
        finally:
            os.close(directory)
    finally:
        os.close(fd)


def detached(
    lowerdirs: Sequence[str],
    scratch: Callable[[], str],
    writable: Writable | None = None,
    *,
    source: str = "overlay",
    attributes: int = 0,
    context: str = "",
) -> int:
    """Return the layers as a detached mount; `attributes` are any of MOUNT_ATTR_*.

    Before Linux 6.7 they are mounted first, for a moment, over the directory that `scratch`
    returns, in a mount namespace of the caller's own. Raises OSError.
    """
    try:
        return _new(lowerdirs, writable, source, attributes, context)
    except OSError as err:
        refused = err
    place = scratch()
    _mount_by_string(refused, lowerdirs, place, writable, source, attributes, context)
    try:
        fd = mounts.open_tree(mounts.AT_FDCWD, place)
    finally:
        mounts.umount(place)
    others = attributes & ~_SAME_FLAGS
    if others:  # the access-time modes are one field: whoever sets it clears it first
        mounts.mount_setattr(fd, set_=others, clear=mounts.MOUNT_ATTR__ATIME)
    return fd


def _new(
    lowerdirs: Sequence[str],
    writable: Writable | None,
    source: str,
    attributes: int,
    context: str,
) -> int:
    options: list[tuple[str, str | None]] = [("source", source)]
    if context:
        options.append(("context", context))
    options += [("lowerdir+", layer) for layer in lowerdirs]
    if writable is not None:
        options += [("upperdir", writable.upperdir), ("workdir", writable.workdir)]
        if writable.volatile:
            options.append(("volatile", None))
    return mounts.new_mount("overlay", options, attributes)


def _mount_by_string(
    refused: OSError,
    lowerdirs: Sequence[str],
    target: str,
    writable: Writable | None,
    source: str,
    attributes: int,
    context: str,
) -> None:
    """Mount at `target` if that may be why `_new` was refused; else raise that error."""
    if refused.errno != errno.EINVAL:
        raise refused
    target = os.path.abspath(target)
    directories = [*lowerdirs, *((writable.upperdir, writable.workdir) if writable else ())]
    try:
        with _Numbered(directories) as names:
            data = "lowerdir=" + ":".join(names[: len(lowerdirs)])
            if writable is not None:
                data += ",upperdir={},workdir={}".format(*names[len(lowerdirs) :])
                data += ",volatile" if writable.volatile else ""
            data += f',context="{context}"' if context else ""
            mounts.mount(source, target, "overlay", attributes & _SAME_FLAGS, data)
    except OSError as err:
        # Of two that say no more than EINVAL, the first may have the kernel's reason.
        raise refused if err.errno == errno.EINVAL else err from None


class _Numbered:
    """Makes the numbers of descriptors the names of directories: those that /proc/self/fd has."""

    __slots__ = ("_before", "_directories", "_opened")

    def __init__(self, directories: Sequence[str]) -> None:
        self._directories = directories
        self._opened: list[int] = []
        self._before = -1

    def __enter__(self) -> list[str]:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self._before = os.open(".", flags)
        try:
            for directory in self._directories:
                self._opened.append(os.open(directory, flags))
            os.chdir("/proc/self/fd")
        except BaseException:
            self.__exit__()
            raise
        return [str(fd) for fd in self._opened]

    def __exit__(self, *_: object) -> None:
        os.fchdir(self._before)
        for fd in (*self._opened, self._before):
            os.close(fd)

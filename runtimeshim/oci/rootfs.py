"""The container's root: overlay, masks, pivot.

Everything is mounted by fd from outside, before pivot_root: sources are ordinary host paths,
targets are resolved inside the root (runtimeshim.oci.resolve). The mount namespace is private to
the init, so whatever fails here disappears with it.
"""

from __future__ import annotations

import os
import stat

from runtimeshim.linux import mounts as m
from runtimeshim.linux import overlay as overlays
from runtimeshim.linux import syscalls
from runtimeshim.oci import mount_options, resolve
from runtimeshim.oci.errors import SpecError
from runtimeshim.oci.mounting import place, place_and_close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any


def detach_from_host(propagation: str | None, rootfs: str) -> None:
    """Enter a mount namespace of our own, from which nothing comes back to the host.

    With a shared root propagation (a pod with a bidirectional volume) the tree stays shared, and
    only the mount below the rootfs is made private, as pivot_root asks for.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    flags = mount_options.PROPAGATION.get(propagation or "rslave")
    if flags is None:
        raise SpecError(f"linux.rootfsPropagation: {propagation!r} is not a propagation")
    # What is unbindable cannot be a layer or a source: it becomes that once it is the root.
    m.set_propagation("/", m.MS_PRIVATE | m.MS_REC if flags & m.MS_UNBINDABLE else flags)
    if flags & m.MS_SHARED:
        m.set_propagation(_mount_of(rootfs), m.MS_PRIVATE)


def _mount_of(path: str) -> str:
    """Return the mount point that holds `path` (man 5 proc, mountinfo)."""
    best = "/"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            point = _unescape(line.split(" ", 5)[4])
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best = point
    return best


def _unescape(path: str) -> str:
    """Undo the four octal escapes of man 5 proc; the codec for more is a module not loaded."""
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(escape, character)
    return path


def mount_overlay(overlay: Mapping[str, Any], target: str, label: str) -> None:
    """Mount the container's layers at `target`; the first lower directory is the top one.

    `label` is linux.mountLabel, "" without one.
    """
    lowerdirs, writable = _layers(overlay)
    overlays.mount(lowerdirs, target, writable, context=label)


def open_overlay(overlay: Mapping[str, Any], scratch: Callable[[], str], label: str) -> int:
    """Return the container's layers as a detached mount; `scratch` as overlays.detached has it."""
    lowerdirs, writable = _layers(overlay)
    return overlays.detached(lowerdirs, scratch, writable, context=label)


def _layers(overlay: Mapping[str, Any]) -> tuple[list[str], overlays.Writable]:
    volatile = bool(overlay.get("volatile"))
    return overlay["lowerdirs"], overlays.Writable(
        overlay["upperdir"], overlay["workdir"], volatile
    )


def bind_root(path: str) -> None:
    """Make a bundle's own root directory a mount, which pivot_root asks for."""
    _attach(m.open_tree(m.AT_FDCWD, path, recursive=True), path)


def _attach(fd: int, target: str) -> None:
    try:
        m.move_mount(fd, m.AT_FDCWD, target)
    finally:
        os.close(fd)


def mask_paths(root: int, paths: Sequence[str], label: str) -> None:
    """Hide paths: a directory below an empty read-only one, anything else below /dev/null.

    `label` is linux.mountLabel, "" without one.
    """
    if not paths:
        return
    null = _open_null()
    attached = False
    options: list[tuple[str, str | None]] = [("source", "masked"), ("size", "4k"), ("mode", "755")]
    options += [("context", label)] if label else []
    empty = m.new_mount("tmpfs", options, m.MOUNT_ATTR_RDONLY)
    try:
        for path in paths:
            try:
                target = resolve.open_inside(root, path)
            except (FileNotFoundError, NotADirectoryError):
                continue  # this kernel has no such file: nothing to hide
            if not resolve.is_directory(target):
                place_and_close(m.open_tree(null, ""), target)
            elif attached:
                place_and_close(m.open_tree(empty, ""), target)
            else:  # once attached it can be copied, by kernels before 6.15 too
                place(empty, target)
                attached = True
    finally:
        os.close(null)
        os.close(empty)


def _open_null() -> int:
    """Open the host's /dev/null, and see that it is what it says (CVE-2025-31133)."""
    fd = os.open("/dev/null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(fd)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(1, 3):
        os.close(fd)
        raise OSError(19, "/dev/null of the host is not the null device (1:3)")
    return fd


def protect_paths(root: int, paths: Sequence[str]) -> None:
    """Make paths read-only, with all that is mounted below them."""
    for path in paths:
        try:
            target = resolve.open_inside(root, path)
        except (FileNotFoundError, NotADirectoryError):
            continue  # this kernel has no such file: nothing to protect
        copy = m.open_tree(target, "", recursive=True)
        m.mount_setattr(copy, set_=m.MOUNT_ATTR_RDONLY, recursive=True)
        place_and_close(copy, target)


def pivot(root: int) -> None:
    """Make `root` the root, and let go of the old one (man 2 pivot_root, NOTES)."""
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchdir(root)
        syscalls.pivot_root(".", ".")
        os.fchdir(old)
        # As a slave its unmount does not reach the host, whatever was shared with it.
        m.set_propagation(".", m.MS_SLAVE | m.MS_REC)
        m.umount(".", m.MNT_DETACH)
    finally:
        os.close(old)
    os.chdir("/")


def set_propagation(propagation: str | None) -> None:
    """Give the root mount the propagation of the spec, once it is the root.

    Private it is by then. Before the pivot it would have been a change to the host's mounts.
    """
    flags = mount_options.PROPAGATION.get(propagation or "private", m.MS_PRIVATE)
    if not flags & m.MS_PRIVATE:
        m.set_propagation("/", flags)


def move_to_root(root: int) -> None:
    """Make `root` the root where pivot_root cannot: the host's own root is a ramdisk (initramfs).

    The old root stays mounted below, out of reach only for who may not chroot: asked for by
    --no-pivot, never chosen by us.
    """
    os.fchdir(root)
    m.mount(os.getcwd(), "/", None, m.MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def make_root_readonly() -> None:
    """Make the root mount read-only, after pivot; what is mounted on it stays as it is."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        m.mount_setattr(root, set_=m.MOUNT_ATTR_RDONLY)
    finally:
        os.close(root)

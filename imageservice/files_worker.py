"""Workers of the spawner for an image as it is seen merged: read files, find directories, mount.

The files are the image's, so anything: a link to the host, a FIFO, a device, a gigabyte. They are
looked up inside the image by openat2, and opened for reading only when they are regular files.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from imageservice import parent_attributes
from runtimeshim.linux import mounts, overlay, syscalls

# What passwd and group may hold; runc and containerd parse no more in practice.
MAX_FILE = 1 << 20
_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
ATTRIBUTES = mounts.MOUNT_ATTR_RDONLY | mounts.MOUNT_ATTR_NODEV | mounts.MOUNT_ATTR_NOSUID
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)

Answer = tuple[dict[str, Any], list[int]]


def main(args: dict[str, Any], fds: list[int]) -> Answer:
    """Read files of a merged view.

    args: lowerdirs (top first), files (paths in the image). Answers, as a list in their order,
    None for each file that is not a regular one or over MAX_FILE, and otherwise its length; the
    contents follow one another in the memfd that comes along.
    """
    root = open_view(args["lowerdirs"])
    contents = [read_file(root, path) for path in args["files"]]
    memfd = os.memfd_create("image-files")
    with os.fdopen(os.dup(memfd), "wb") as file:
        file.write(b"".join(content for content in contents if content is not None))
    lengths = [None if content is None else len(content) for content in contents]
    return {"lengths": lengths}, [memfd]


def find_directory(args: dict[str, Any], fds: list[int]) -> Answer:
    """Find a directory of a merged view in the layers that it is merged from.

    args: lowerdirs (top first), path (in the image; symbolic links are followed inside it).
    Answers lowerdirs: the directory in each layer that adds to it, top first. Raises OSError where
    there is no such directory.
    """
    root = open_view(args["lowerdirs"])
    found = syscalls.openat2(root, args["path"], os.O_PATH | os.O_DIRECTORY, _RESOLVE)
    # The path without links, as seen from the view's root, which may be attached somewhere.
    base = os.readlink(f"/proc/self/fd/{root}").rstrip("/")
    path = os.readlink(f"/proc/self/fd/{found}").removeprefix(base).strip("/")
    return {"lowerdirs": _stacked(args["lowerdirs"], os.fsencode(path))}, []


def _stacked(lowerdirs: list[str], path: bytes) -> list[str]:
    """Return `path` in each layer that shows it, down to the first that hides those below."""
    if not path:
        return lowerdirs
    stacked = []
    for lower in lowerdirs:
        root = os.open(lower, os.O_PATH | os.O_DIRECTORY)
        fd = parent_attributes.open_directory(root, path)
        if fd is not None:
            os.close(fd)
            stacked.append(os.path.join(lower, os.fsdecode(path)))
        hidden = parent_attributes.hides(root, path)
        os.close(root)
        if hidden:
            break
    return stacked


def open_view(lowerdirs: list[str]) -> int:
    """Return a directory fd of the layers' merged view; it is attached nowhere."""
    if len(lowerdirs) == 1:
        return os.open(lowerdirs[0], os.O_PATH | os.O_DIRECTORY)

    def scratch() -> str:
        """Return a directory in a mount namespace that ends with this process."""
        syscalls.unshare(syscalls.CLONE_NEWNS)
        mounts.set_propagation("/", mounts.MS_PRIVATE | mounts.MS_REC)
        return lowerdirs[0]

    return overlay.detached(lowerdirs, scratch, attributes=ATTRIBUTES)


def mount_view(args: dict[str, Any], fds: list[int]) -> Answer:
    """Mount a merged view on the host: args are lowerdirs (top first) and target, a directory."""
    overlay.mount(
        args["lowerdirs"], args["target"], source="criserver-image", attributes=ATTRIBUTES
    )
    return {}, []


def read_file(root: int, path: str) -> bytes | None:
    """Return a regular file's content; None when there is none, or more than MAX_FILE."""
    try:
        found = syscalls.openat2(root, path, os.O_PATH, _RESOLVE)
    except OSError as err:
        if err.errno in _ABSENT:
            return None
        raise
    try:
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
            return None
        # The descriptor is of this very file: nothing is looked up again.
        with open(f"/proc/self/fd/{found}", "rb") as file:
            content = file.read(MAX_FILE + 1)
    finally:
        os.close(found)
    return content if len(content) <= MAX_FILE else None

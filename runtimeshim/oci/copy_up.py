"""tmpcopyup: a new tmpfs that begins with what the image has at its place."""

from __future__ import annotations

import os

from runtimeshim.linux import tree_copy
from runtimeshim.oci import resolve


def copy(root: int, path: str, target: int) -> None:
    """Copy the directory `path` below `root` into `target`, a directory's fd.

    Sockets are left out, and devices: in a user namespace none can be made.
    """
    source = resolve.open_inside(root, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        into = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=target)
        try:
            tree_copy.copy(source, into)
        finally:
            os.close(into)
    finally:
        os.close(source)

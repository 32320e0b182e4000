"""A worker of the spawner: anonymous volumes, filled with what the image has at their place."""

from __future__ import annotations

import errno
import os
from typing import Any

from imageservice.files_worker import open_view
from runtimeshim.linux import syscalls, tree_copy

_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY

Answer = tuple[dict[str, Any], list[int]]


def main(args: dict[str, Any], fds: list[int]) -> Answer:
    """Fill volumes.

    args: lowerdirs (top first), volumes (path in the image -> an empty directory on the host).
    What the image does not have stays empty. Answers `not_a_directory`: the first path that is
    something else in the image, if any. Raises OSError.
    """
    root = open_view(args["lowerdirs"])
    for path, volume in args["volumes"].items():
        try:
            source = syscalls.openat2(root, path, _DIRECTORY, _RESOLVE)
        except FileNotFoundError:
            continue
        except OSError as err:
            if err.errno != errno.ENOTDIR:
                raise
            return {"not_a_directory": path}, []
        target = os.open(volume, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        tree_copy.copy(source, target, devices=True)
        os.close(source)
        os.close(target)
    return {}, []

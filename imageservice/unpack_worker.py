"""Workers of the spawner: unpack one layer; adopt its parents' directory attributes.

Runs in a fork of the spawner as root. Imports only the standard library, runtimeshim.linux and the
C decompressors, all before the chroot: a later import would load files of the image.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from imageservice import parent_attributes
from imageservice.compression import decompressed
from imageservice.layer_stream import LayerStream
from imageservice.layer_tree import LayerTree
from imageservice.tar_reader import MAX_ENTRIES, TarReader
from runtimeshim.linux import capabilities, syscalls

# Bytes that one layer may unpack to, unless the caller gives another limit.
MAX_LAYER_BYTES = 256 << 30
# More at a time would be memory that is new, and so faulted in page by page, in every read.
READ_SIZE = 128 * 1024
# What creating files of any owner, mode and kind takes; SYS_ADMIN is for trusted.overlay.opaque.
# CAP_SYS_CHROOT is not among them: the way back out of the chroot is closed.
CAPABILITIES = capabilities.to_mask(
    (
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_MKNOD",
        "CAP_SETFCAP",
        "CAP_SYS_ADMIN",
    )
)

Answer = tuple[dict[str, Any], list[int]]


def main(args: dict[str, Any], fds: list[int]) -> Answer:
    """Unpack the stream fds[0] into the empty directory fds[1].

    args: max_bytes, max_entries (both optional).
    Answers diff_id, size (bytes on disk), inodes, root_described, ignored_xattrs, and, if there are
    directories without an entry of their own, a memfd that lists them, NUL-separated.
    Raises TarError, CompressionError, or OSError naming the entry.
    """
    source, target = fds
    # Before the chroot: OpenSSL reads its configuration when the first hash is made.
    stream = LayerStream(
        decompressed(lambda: os.read(source, READ_SIZE)), args.get("max_bytes", MAX_LAYER_BYTES)
    )
    confine(target)
    tree = LayerTree(target)
    unpack(stream, tree, args.get("max_entries", MAX_ENTRIES))
    implicit = tree.finish()
    described = implicit[:1] != [b""]
    listed = implicit if described else implicit[1:]
    answer = {
        "diff_id": stream.digest(),
        "size": tree.size,
        "inodes": tree.inodes,
        "root_described": described,
        "ignored_xattrs": tree.ignored_xattrs,
    }
    return answer, [_list_file(listed)] if listed else []


def confine(target: int) -> None:
    """Make `target` the root, and drop what unpacking does not need.

    From here on no name leads anywhere else.
    """
    os.umask(0)
    held = capabilities.current()  # reads /proc
    os.fchdir(target)
    os.chroot(".")
    sys.path.clear()
    kept = CAPABILITIES & held.permitted
    capabilities.apply(capabilities.Sets(held.bounding, kept, kept, 0, 0))
    syscalls.set_no_new_privs()


def unpack(stream: LayerStream, tree: LayerTree, max_entries: int) -> None:
    """Apply every entry, then read on to the end of the stream."""
    reader = TarReader(stream, max_entries=max_entries)
    for entry in reader:
        try:
            tree.apply(entry, reader)
        except OSError as err:
            raise OSError(err.errno, f"entry {_text(entry.name)}: {err.strerror}") from err
    stream.drain()


def _text(name: bytes) -> str:
    return repr(name.decode(errors="backslashreplace"))


def _list_file(paths: list[bytes]) -> int:
    fd = os.memfd_create("implicit-directories")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(b"\0".join(paths))
    return fd


def adopt_parents(args: dict[str, Any], fds: list[int]) -> Answer:
    """Give the directories listed in fds[1] (see `main`) the attributes they have further down.

    args: parents, the parent layers' directories as paths, nearest first. fds[0] is the layer.
    A directory that a tar only implies would otherwise cover the lower one's mode and owner.
    """
    layer, listing = fds
    os.umask(0)
    parents = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in args["parents"]]
    for path in _listed(listing):
        parent_attributes.adopt(layer, path, parents)
    return {}, []


def _listed(fd: int) -> Iterator[bytes]:
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(os.dup(fd), "rb") as file:
        yield from file.read().split(b"\0")

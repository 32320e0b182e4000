"""The images of the benchmark, and their registry.

Files are such that gzip halves them, as programs are. All bytes are the same in every run.
"""

from __future__ import annotations

import functools
import platform
import random
from collections.abc import Callable
from pathlib import Path

from isal import igzip

from podsandbox import pod_init
from tests.bench.runtimes import HOST
from tests.integration import images
from tests.integration.registry import Registry

MIB = 1 << 20


class _FastLayer(images.Layer):
    """A layer compressed by igzip: the large ones would take zlib half a minute."""

    @functools.cached_property
    def blob(self) -> bytes:
        return bytes(igzip.compress(self.tar, compresslevel=1, mtime=0))


def content(size: int, seed: int) -> bytes:
    """Bytes that gzip halves."""
    source = random.Random(seed)
    piece = b"".join(source.randbytes(512) + bytes(512) for _ in range(min(size, 8 * MIB) // 1024))
    return (piece * (size // len(piece) + 1))[:size]


def layer_of(files: dict[str, bytes]) -> images.Layer:
    """A layer of these files."""
    return _FastLayer(images.files_layer(files).tar)


def small() -> images.Image:
    return images.busybox(cmd=None)


def pulled() -> images.Image:
    """As small, but of a layer of its own, so that it can be removed while containers use that."""
    files = {"bin/busybox": images.BUSYBOX.read_bytes(), "etc/motd": b"to be pulled"}
    return images.Image((images.files_layer(files),))


def pause() -> images.Image:
    """A pod's first process for the peers, as small as ours: it waits in pause(2)."""
    program = images.entry("pause", pod_init.elf(platform.machine()), mode=0o755)
    return images.Image((images.layer(program),), {"Entrypoint": ["/pause"]})


def many_files() -> images.Image:
    files = {f"usr/{n // 100}/{n}": content(4096, n) for n in range(20_000)}
    return images.Image((layer_of(files),))


def four_layers() -> images.Image:
    return images.Image(
        tuple(
            layer_of({f"opt/{layer}/{n}": content(MIB, 60 * layer + n) for n in range(60)})
            for layer in range(4)
        )
    )


def one_file() -> images.Image:
    return images.Image((layer_of({"opt/large": content(200 * MIB, 1)}),))


LARGE: dict[str, Callable[[], images.Image]] = {
    "20,000 files of 4 KB": many_files,
    "4 layers of 60 x 1 MB": four_layers,
    "one file of 200 MB": one_file,
}


class Shelf:
    """A registry of our own and what is in it, by the names that every runtime pulls."""

    def __init__(self, directory: Path) -> None:
        """Start the registry with its files in `directory`."""
        directory.mkdir()
        self.registry = Registry(directory)
        try:
            self.small = self.put("small", small())
            self.pulled = self.put("pulled", pulled())
            self.pause = self.put("pause", pause())
        except BaseException:  # Ctrl-C too: nobody has it yet who could close it
            self.close()
            raise

    def put(self, repository: str, image: images.Image) -> str:
        """Push an image; returns its name."""
        images.push(self.registry.address, f"bench/{repository}", image)
        return f"{HOST}/bench/{repository}:latest"

    def close(self) -> None:
        self.registry.stop()

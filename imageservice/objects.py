"""What the image store hands out: images, layers, and what is to be deleted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Image:
    """A complete image.

    id: the digest of its configuration. layers: chain ids, the base first. size: bytes of its
    blobs as a registry holds them. config: the whole image configuration.
    """

    id: str
    config: dict[str, Any] = field(hash=False)
    layers: tuple[str, ...]
    size: int
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    pinned: bool = False

    @property
    def is_artifact(self) -> bool:
        """Tell whether its layer is files, and nothing in it can be run."""
        return "artifactType" in self.config

    @property
    def chain_id(self) -> str:
        """The chain id of the topmost layer, "" for an image without layers."""
        return self.layers[-1] if self.layers else ""


@dataclass(frozen=True)
class Layer:
    """An unpacked layer: `number` names its directory; size in bytes on disk."""

    chain_id: str
    parent: str
    diff_id: str
    number: int
    size: int
    inodes: int


@dataclass(frozen=True)
class Garbage:
    """What has left the database and is to be deleted from disk."""

    layers: tuple[int, ...] = ()
    blobs: tuple[str, ...] = ()

    def __add__(self, other: Garbage) -> Garbage:
        return Garbage(self.layers + other.layers, self.blobs + other.blobs)

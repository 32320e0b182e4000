"""Verification: every blob against its digest, every unpacked layer against its blob.

What is found damaged counts as missing from then on, so that the next pull of the image repairs it:
a blob is deleted, a layer is marked (imageservice.health).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path

from imageservice.artifact import is_files
from imageservice.collector import Collector
from imageservice.content import ContentStore
from imageservice.layers import GONE, Layers
from imageservice.objects import Image, Layer
from imageservice.store import ImageStore

log = logging.getLogger(__name__)

BLOB, LAYER = "blob", "layer"
UNCHECKED = "not checked: its blob is not on disk"


@dataclass(frozen=True)
class Finding:
    """What came of one check.

    kind: BLOB or LAYER. name: the digest or the chain id. images: what they are called that need
    it. damages: a line each, none when it is whole. note: why it could not be checked, or "".
    """

    kind: str
    name: str
    images: tuple[str, ...]
    damages: tuple[str, ...] = ()
    note: str = ""


class Verifier:
    """Reads everything again."""

    def __init__(
        self,
        store: ImageStore,
        content: ContentStore,
        layers: Layers,
        collector: Collector,
    ) -> None:
        self._store = store
        self._content = content
        self._layers = layers
        self._collector = collector

    async def verify(self, images: Collection[Image] = ()) -> AsyncIterator[Finding]:
        """Check `images`, or all there is when none is given; a finding for each blob and layer.

        Raises UnavailableError when the spawner is away.
        """
        blobs = self._blobs(images)
        for digest in sorted(blobs):
            finding = await self._blob(digest, blobs[digest])
            if finding is not None:
                yield finding
        for layer in self._wanted_layers(images):
            finding = await self._layer(layer)
            if finding is not None:
                yield finding

    async def verify_layers(self, layers: Collection[Layer]) -> list[Finding]:
        """Check these layers alone; returns what is damaged."""
        findings = [await self._layer(layer) for layer in layers]
        return [finding for finding in findings if finding is not None and finding.damages]

    # -- blobs --------------------------------------------------------------------------------

    def _blobs(self, images: Collection[Image]) -> dict[str, tuple[str, ...]]:
        """Return the digests to check, each with the images that need it."""
        needed: dict[str, list[str]] = {}
        if not images:
            needed = {digest: [] for digest in self._store.known_blobs()}
        for image in images or self._store.images():
            for digest in self._store.digests_needed_by(image.id):
                needed.setdefault(digest, []).append(_name_of(image))
        return {digest: tuple(names) for digest, names in needed.items()}

    async def _blob(self, digest: str, images: tuple[str, ...]) -> Finding | None:
        damage = await asyncio.to_thread(_blob_damage, self._content.path(digest), digest)
        if not damage:
            return Finding(BLOB, digest, images)
        if digest in self._store.known_blobs():
            log.warning("blob %s is damaged: %s", digest, damage)
            await self._collector.discard(self._store.drop_blob(digest))
        elif not images:
            return None  # it was removed meanwhile
        return Finding(BLOB, digest, images, (damage,))

    # -- layers -------------------------------------------------------------------------------

    def _wanted_layers(self, images: Collection[Image]) -> list[Layer]:
        if not images:
            return self._store.layers()
        chain_ids = dict.fromkeys(chain_id for image in images for chain_id in image.layers)
        found = [self._store.layer(chain_id) for chain_id in chain_ids]
        return [layer for layer in found if layer is not None]

    async def _layer(self, layer: Layer) -> Finding | None:
        images = tuple(
            _name_of(image) for image in self._store.images() if layer.chain_id in image.layers
        )
        marked = self._store.health.damaged.get(layer.chain_id)
        if marked is not None:
            return Finding(LAYER, layer.chain_id, images, (marked,))
        blobs = self._store.health.blobs_of(layer.chain_id)
        if not self._layers.path(layer.number).exists():
            damages: list[str] = [GONE]
        elif not blobs and not is_files(layer.chain_id):
            return Finding(LAYER, layer.chain_id, images, note=UNCHECKED)
        else:
            damages = await self._layers.compare(layer, next(iter(blobs), ""))
        if self._store.layer(layer.chain_id) != layer:
            return None  # it was removed, or made anew, meanwhile
        if damages:
            log.warning("layer %s is damaged: %s", layer.chain_id, damages[0])
            self._store.health.mark(layer.chain_id, damages[0])
        return Finding(LAYER, layer.chain_id, images, tuple(damages))


def _name_of(image: Image) -> str:
    return next(iter((*image.repo_tags, *image.repo_digests)), image.id)


def _blob_damage(path: Path, digest: str) -> str:
    """Return what is wrong with a blob, "" if nothing is."""
    try:
        with path.open("rb") as file:
            found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except FileNotFoundError:
        return "it is missing"
    except OSError as err:
        return f"it cannot be read: {err.strerror}"
    return "" if found == digest else f"its content has the digest {found}"

"""What a person asks of the image store beyond the CRI: verify, export, inspect, collect, mount."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imageservice.collector import Collector
from imageservice.content import ContentStore
from imageservice.export import Exporter
from imageservice.layers import Layers
from imageservice.objects import Garbage, Image
from imageservice.store import ImageStore
from imageservice.verify import Finding, Verifier
from imageservice.views import Views

log = logging.getLogger(__name__)

# How long before the last layer a layer may have been made that is looked at after a crash. What
# was synced before is what every restart has shown to be there.
RECENT_SECONDS = 600


@dataclass(frozen=True)
class Collected:
    """What a garbage collection has removed: images by name or id; bytes and inodes on disk."""

    images: tuple[str, ...]
    layers: int
    blobs: int
    freed_bytes: int


class Admin:
    """ImageService's methods for `criserver image`; used on the event loop's thread only."""

    def __init__(
        self,
        store: ImageStore,
        content: ContentStore,
        layers: Layers,
        collector: Collector,
        views: Views,
    ) -> None:
        self._store = store
        self._content = content
        self._layers = layers
        self._collector = collector
        self._views = views
        self._verifier = Verifier(store, content, layers, collector)
        self._exporter = Exporter(store, content)
        self._check: asyncio.Task[None] | None = None

    def _resolved(self, names: Sequence[str]) -> list[Image]:
        return [self._store.resolve(name) for name in names]

    # -- damage -------------------------------------------------------------------------------

    def verify(self, names: Sequence[str]) -> AsyncIterator[Finding]:
        """Check the named images, or everything: a finding for each blob and layer.

        Raises NotFoundError, InvalidArgumentError or UnavailableError.
        """
        return self._verifier.verify(self._resolved(names))

    async def note_damage(self) -> None:
        """Note which blobs and layers have disappeared or shrunk: a pull makes them again."""
        for digest in self._content.damaged(self._store.known_blobs()):
            log.warning("blob %s is missing or not whole: its image has to be pulled again", digest)
            await self._collector.discard(self._store.drop_blob(digest))
        for chain_id in self._layers.mark_missing():
            log.warning("layer %s is missing: its image has to be pulled again", chain_id)

    def check_after_crash(self) -> None:
        """Verify, in the background, the layers that the machine's crash can have damaged."""
        recent = self._store.recent_layers(RECENT_SECONDS)
        if recent:
            self._check = asyncio.create_task(self._check_layers(recent))

    async def _check_layers(self, chain_ids: Sequence[str]) -> None:
        layers = [layer for chain in chain_ids if (layer := self._store.layer(chain)) is not None]
        try:
            damaged = await self._verifier.verify_layers(layers)
        except Exception:  # nobody awaits this task: it is told here, or nowhere
            log.warning("the newest layers could not be verified", exc_info=True)
            return
        log.info("verified the %d newest layers: %d are damaged", len(layers), len(damaged))

    # -- the rest -----------------------------------------------------------------------------

    def export(self, names: Sequence[str]) -> AsyncIterator[bytes]:
        """Give an archive of the named images; a name that has a tag goes into the archive.

        Raises NotFoundError, InvalidArgumentError, or FailedPreconditionError when one is damaged.
        """
        images = self._resolved(names)
        tags = [self._tag(image, name) for image, name in zip(images, names, strict=True)]
        return self._exporter.export(list(zip(images, tags, strict=True)))

    def _tag(self, image: Image, name: str) -> str:
        """Return the tag of the image that `name` means: itself, or the first of the image."""
        return self._store.tag_named(name) or next(iter(image.repo_tags), "")

    def inspect(self, name: str) -> dict[str, Any]:
        """Return all that is known of an image, as JSON values.

        Raises NotFoundError, InvalidArgumentError or FailedPreconditionError.
        """
        image = self._store.resolve(name)
        on_disk = {blob.digest: blob for blob in self._store.descriptors_of(image.id)}
        return {
            "id": image.id,
            "repoTags": list(image.repo_tags),
            "repoDigests": list(image.repo_digests),
            "targets": self._store.targets_of(image.id),
            "size": image.size,
            "pinned": image.pinned,
            "damaged": not self._store.health.is_whole(image.layers),
            "usedBy": self._store.users_of(image.id),
            "layers": [self._layer(chain_id) for chain_id in image.layers],
            "blobs": [
                on_disk[digest].to_json() if digest in on_disk else {"digest": digest, "size": None}
                for digest in sorted(self._store.digests_needed_by(image.id))
            ],
            "config": image.config,
        }

    def _layer(self, chain_id: str) -> dict[str, Any]:
        layer = self._store.layer(chain_id)
        if layer is None:
            return {"chainID": chain_id}
        return {
            "chainID": chain_id,
            "diffID": layer.diff_id,
            "directory": str(self._layers.path(layer.number)),
            "size": layer.size,
            "inodes": layer.inodes,
            "damage": self._store.health.damaged.get(chain_id, ""),
        }

    async def collect(self, *, unused: bool) -> Collected:
        """Remove what broken-off pulls have left and, if asked, images that nothing uses.

        What a container, a mount or a pull in progress needs stays, and so do pinned images.
        """
        before = self._store.usage()[0]
        removed: list[str] = []
        garbage = Garbage()
        for image in self._store.images() if unused else ():
            if not image.pinned and not self._store.users_of(image.id):
                garbage += self._store.remove_image(image)
                removed.append(next(iter((*image.repo_tags, *image.repo_digests)), image.id))
        garbage += self._store.collect_orphans(0)
        freed = before - self._store.usage()[0]
        await self._collector.discard(garbage)
        partial = self._content.expire(0)
        log.info("collected %d images, %d layers", len(removed), len(garbage.layers))
        return Collected(
            tuple(removed),
            len(garbage.layers),
            len(garbage.blobs) + len(partial),
            freed + sum(partial),
        )

    async def mount(self, name: str, target: Path) -> Image:
        """Mount an image read-only on the host; raises CRIError."""
        image = self._store.resolve(name)
        await self._views.mount(image, target)
        return image

    async def unmount(self, target: Path) -> None:
        """Undo `mount`; raises FailedPreconditionError."""
        await self._views.unmount(target)

    async def close(self) -> None:
        """End the check in the background."""
        if self._check is not None:
            self._check.cancel()
            await asyncio.gather(self._check, return_exceptions=True)

"""ImageService: CRI's image methods, and what CreateContainer needs of images."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from api.cri import api_pb2 as cri
from api.errors import InvalidArgumentError, NotFoundError
from imageservice import auth, reference
from imageservice.admin import Admin
from imageservice.archive import ArchiveImporter
from imageservice.collector import Collector
from imageservice.content import ContentStore
from imageservice.hosts import RegistryConfig
from imageservice.layers import VERIFY_WORKER, Layers
from imageservice.objects import Image
from imageservice.pinning import Pins
from imageservice.progress import PullProgress
from imageservice.pull import Assembler, PullEngine
from imageservice.registry import RegistryClient
from imageservice.settings import ImageSettings
from imageservice.signatures import SignatureCheck
from imageservice.snapshots import (
    FILES_WORKER,
    VOLUMES_WORKER,
    Snapshots,
    Usage,
    UserDatabase,
)
from imageservice.store import ORPHAN_SECONDS, ImageStore
from imageservice.strays import ImageStrays
from imageservice.syncing import Syncer
from imageservice.unpacking import PARENTS_WORKER, UNPACK_WORKER
from imageservice.views import MOUNT_WORKER, SUBPATH_WORKER, Views
from runtimeshim.client import Rootfs, Spawner

log = logging.getLogger(__name__)

# How often pulls are looked at for whoever watches them: often enough for a bar that moves.
WATCH_SECONDS = 0.2

# What the spawner has to import: name -> module:function.
WORKERS: Final = {
    UNPACK_WORKER: "imageservice.unpack_worker:main",
    PARENTS_WORKER: "imageservice.unpack_worker:adopt_parents",
    FILES_WORKER: "imageservice.files_worker:main",
    VOLUMES_WORKER: "imageservice.volumes_worker:main",
    SUBPATH_WORKER: "imageservice.files_worker:find_directory",
    MOUNT_WORKER: "imageservice.files_worker:mount_view",
    VERIFY_WORKER: "imageservice.verify_worker:main",
}


class ImageService:
    """All of an instance's images below `root`; used on the event loop's thread only."""

    def __init__(
        self,
        root: Path,
        database: sqlite3.Connection,
        spawner: Spawner,
        registries: RegistryConfig,
        settings: ImageSettings | None = None,
    ) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root = root
        settings = settings or ImageSettings()
        self._store = ImageStore(database, Pins(settings.pinned_images))
        # Each layer on its way may block one thread on its pipe and have another one to close it.
        self._content = ContentStore(root, threads=2 * registries.max_parallel_layers + 2)
        syncer = Syncer(root)
        self._layers = Layers(
            root, self._store, self._content, spawner, syncer, registries.max_parallel_layers
        )
        self._collector = Collector(self._content, self._layers)
        assembler = Assembler(self._store, self._content, self._layers, syncer, self._collector)
        self._client = RegistryClient(registries)
        signatures = SignatureCheck(self._client, settings.signature_policy)
        self._pulls = PullEngine(
            self._client, self._store, self._content, self._layers, assembler, signatures
        )
        self._importer = ArchiveImporter(self._content, assembler)
        self._snapshots = Snapshots(
            root,
            self._store,
            self._layers,
            self._collector,
            spawner,
            volatile=settings.volatile_rootfs,
        )
        self._views = Views(self._store, self._layers, self._collector, spawner)
        self.strays = ImageStrays(
            self._store,
            self._content,
            self._layers,
            self._snapshots,
            self._views,
            lambda: not (self._imports or self._pulls.progress()),
        )
        self._imports = 0
        self.admin = Admin(self._store, self._content, self._layers, self._collector, self._views)

    def configure(self, certs_dir: Path, pinned_images: Sequence[str]) -> None:
        """Use another certs.d for pulls that begin from now on, and pin other images."""
        self._client.use_certs_dir(certs_dir)
        self._store.use_pins(Pins(pinned_images))

    # -- CRI ----------------------------------------------------------------------------------

    async def pull_image(self, request: cri.PullImageRequest) -> cri.PullImageResponse:
        """Pull an image; joins the same pull if one is under way.

        Raises InvalidArgumentError, NotFoundError, UnavailableError or ImagePullError, whose
        message begins with RegistryUnavailable where the registry cannot be reached or fails.
        """
        wanted = reference.parse(request.image.image)
        began = time.monotonic()
        image = await self._pulls.pull(wanted, auth.from_cri(request.auth))
        log.info("pulled %s as %s in %.3f s", wanted, image.id, time.monotonic() - began)
        return cri.PullImageResponse(image_ref=image.id)

    async def watch_pulls(self, name: str) -> AsyncGenerator[list[PullProgress], None]:
        """Give the pulls under way, of one image or ("") of all, now and after each change.

        Changes are looked for every WATCH_SECONDS; it does not end by itself. Raises
        InvalidArgumentError.
        """
        wanted = str(reference.parse(name)) if name else ""
        before: list[PullProgress] | None = None
        while True:
            now = [pull for pull in self._pulls.progress() if wanted in ("", pull.image)]
            if now != before:
                yield now
            before = now
            await asyncio.sleep(WATCH_SECONDS)

    def received(self) -> Mapping[str, int]:
        """Return the bytes of blobs that have come since the start, by registry."""
        return self._client.received

    async def list_images(self, request: cri.ListImagesRequest) -> cri.ListImagesResponse:
        """List images; the filter names one image."""
        wanted = request.filter.image.image
        images = self._store.images() if not wanted else self._found(wanted)
        return cri.ListImagesResponse(images=[to_cri(image) for image in images])

    async def image_status(self, request: cri.ImageStatusRequest) -> cri.ImageStatusResponse:
        """Return an image, or an empty answer if it is not there."""
        if not request.image.image:
            raise InvalidArgumentError("the image reference is empty")
        found = self._found(request.image.image)
        # A damaged one has to be pulled again, which the kubelet does when it is not there.
        if not found or not self._store.health.is_whole(found[0].layers):
            return cri.ImageStatusResponse()
        image = found[0]
        info = {"info": verbose_info(image)} if request.verbose else {}
        return cri.ImageStatusResponse(image=to_cri(image), info=info)

    async def remove_image(self, request: cri.RemoveImageRequest) -> cri.RemoveImageResponse:
        """Remove an image with all its names, whichever of them is given; idempotent.

        What containers stand on is kept until they are removed.
        """
        if not request.image.image:
            raise InvalidArgumentError("the image reference is empty")
        for image in self._found(request.image.image):
            self._collector.discard_later(self._store.remove_image(image))
            log.info("removed image %s", image.id)
        self._collector.discard_later(self._store.collect_orphans(ORPHAN_SECONDS))
        self._content.expire(ORPHAN_SECONDS)
        return cri.RemoveImageResponse()

    async def image_fs_info(self, request: cri.ImageFsInfoRequest) -> cri.ImageFsInfoResponse:
        """Return what images and what containers' writable layers take of the disk."""
        images = self._filesystem(*self._store.usage())
        containers = self._filesystem(*await self._snapshots.total_usage())
        return cri.ImageFsInfoResponse(
            image_filesystems=[images], container_filesystems=[containers]
        )

    def _filesystem(self, used: int, inodes: int) -> cri.FilesystemUsage:
        return cri.FilesystemUsage(
            timestamp=time.time_ns(),
            # One mount point for both: the kubelet takes two for two disks.
            fs_id=cri.FilesystemIdentifier(mountpoint=os.fspath(self._root)),
            used_bytes=cri.UInt64Value(value=used),
            inodes_used=cri.UInt64Value(value=inodes),
        )

    def _found(self, text: str) -> list[Image]:
        """Return the image that `text` names, or nothing; text that names no image finds none."""
        try:
            return [self._store.resolve(text)]
        except (NotFoundError, InvalidArgumentError):
            return []

    # -- containers ---------------------------------------------------------------------------

    def resolve(self, name: str) -> Image:
        """Return the image that a tag, digest, id or unique id prefix names.

        Raises NotFoundError, InvalidArgumentError or FailedPreconditionError.
        """
        return self._store.resolve(name)

    def repo_digest(self, image_id: str, name: str) -> str:
        """Return the `repository@digest` of an image, of the repository in `name` if it has it.

        The id itself for an image without one: imported, or removed while a container uses it.
        """
        return self._store.repo_digest(image_id, name)

    async def prepare_rootfs(self, image: Image, container_id: str) -> Rootfs:
        """Make a container's writable layer above the image's layers, which now stay."""
        return self._snapshots.prepare(image, container_id)

    async def image_volume(
        self, image: Image, container_id: str, sub_path: str = ""
    ) -> tuple[str, ...]:
        """Return the lower directories, top first, of a read-only overlay of an image's directory.

        To be called between `prepare_rootfs` and `remove_rootfs` of the container; the layers stay
        as long. Raises InvalidArgumentError where `sub_path` is no directory of the image.
        """
        return await self._views.volume(image, container_id, sub_path)

    async def add_volumes(
        self, rootfs: Rootfs, container_id: str, paths: Sequence[str]
    ) -> dict[str, str]:
        """Make the volumes that the image wants: path in the image -> directory on the host.

        They begin with what the image has there and go with the root filesystem. Raises
        InvalidArgumentError where that is no directory, InternalError or UnavailableError when
        they cannot be made.
        """
        return await self._snapshots.add_volumes(rootfs, container_id, paths)

    async def remove_rootfs(self, container_id: str) -> None:
        """Remove a container's writable layer and its volumes; idempotent."""
        await self._snapshots.remove(container_id)

    async def user_database(self, image: Image) -> UserDatabase:
        """Return the image's /etc/passwd and /etc/group."""
        return await self._snapshots.user_database(image)

    async def writable_usage(self, container_id: str) -> Usage:
        """Return what a container has written."""
        return await self._snapshots.usage(container_id)

    # -- archives and life --------------------------------------------------------------------

    async def import_archive(self, path: Path) -> list[str]:
        """Import every image of an OCI or docker archive for this machine's platform.

        Returns their names, or the id of an image without one. Raises InvalidArgumentError for a
        file that cannot be read, ImagePullError for one that is no such archive.
        """
        self._imports += 1
        try:
            return await self._importer.load(path)
        finally:
            self._imports -= 1

    async def recover(self, containers: Collection[str]) -> None:
        """Remove what an earlier daemon left unfinished, and root filesystems of nobody.

        To be called before anything else; `containers` are the ids whose root filesystems stay.
        """
        self._content.sweep(self._store.known_blobs())
        self._content.expire(ORPHAN_SECONDS)
        await self.admin.note_damage()
        await self._snapshots.sweep(containers)
        await self._views.sweep(set(containers))
        await self._collector.discard(self._store.collect_orphans(ORPHAN_SECONDS))
        await self._layers.sweep()

    async def settle(self) -> None:
        """Wait until what has been removed is gone from the disk."""
        await self._collector.settle()

    async def close(self) -> None:
        """Break off pulls, close connections and threads."""
        await self.admin.close()
        await self._pulls.close()
        await self._collector.settle()
        await self._layers.close()
        await self._client.close()
        self._content.close()


def to_cri(image: Image) -> cri.Image:
    """Return CRI's message for an image."""
    message = cri.Image(
        id=image.id,
        repo_tags=image.repo_tags,
        repo_digests=image.repo_digests,
        size=image.size,
        pinned=image.pinned,
        spec=cri.ImageSpec(image=image.id),
    )
    config = image.config.get("config") or {}
    user = str(config.get("User") or "").partition(":")[0]
    if user.removeprefix("-").isdecimal() and len(user) < 19:
        message.uid.value = int(user)
    else:
        message.username = user
    return message


def verbose_info(image: Image) -> str:
    """Return what `crictl inspecti` shows, as containerd names it."""
    return json.dumps({"chainID": image.chain_id, "imageSpec": image.config})

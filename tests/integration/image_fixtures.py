"""An ImageService of a test's own: a private spawner and root, and the session's registry."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from api.cri import api_pb2 as cri
from imageservice.hosts import RegistryConfig
from imageservice.objects import Image
from imageservice.retries import RetryPolicy
from imageservice.service import WORKERS, ImageService
from imageservice.settings import ImageSettings
from runtimeshim.client import Spawner
from tests.integration import harness, images
from tests.integration.registry import Registry


class Images:
    """A service with what tests look at besides."""

    def __init__(
        self, directory: Path, spawner: Spawner, settings: ImageSettings | None = None
    ) -> None:
        self.settings = settings
        self.root = directory / "root"
        self.certs_dir = directory / "certs.d"
        self.certs_dir.mkdir(exist_ok=True)
        self.spawner = spawner
        self.open()

    def open(self, **settings: Any) -> None:
        """Begin, or begin again on the same root as a restarted daemon does.

        settings: of RegistryConfig, where they are to be others than those of the tests.
        """
        self.root.mkdir(exist_ok=True)
        self.database = sqlite3.connect(self.root / "criserver.db", isolation_level="IMMEDIATE")
        self.database.execute("PRAGMA journal_mode=WAL")
        given: dict[str, Any] = {
            "certs_dir": self.certs_dir,
            "stall_timeout": 5.0,
            "retries": RetryPolicy(seconds=0.01),
            "environment": {},
            **settings,
        }
        config = RegistryConfig(**given)
        self.service = ImageService(self.root, self.database, self.spawner, config, self.settings)

    async def close(self) -> None:
        await self.service.close()
        self.database.close()

    async def pull(self, name: str, auth: cri.AuthConfig | None = None) -> Image:
        request = cri.PullImageRequest(image=cri.ImageSpec(image=name), auth=auth)
        answer = await self.service.pull_image(request)
        return self.service.resolve(answer.image_ref)

    async def pull_of(self, registry: Registry, repository: str, image: images.Image) -> Image:
        """Push an image as `repository`:latest and pull it."""
        images.push(registry.address, repository, image)
        return await self.pull(f"{registry.address}/{repository}")

    async def remove(self, name: str) -> None:
        await self.service.remove_image(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)))
        await self.service.settle()

    async def listed(self, name: str = "") -> list[cri.Image]:
        request = cri.ListImagesRequest(filter=cri.ImageFilter(image=cri.ImageSpec(image=name)))
        return list((await self.service.list_images(request)).images)

    async def status(self, name: str, verbose: bool = False) -> cri.ImageStatusResponse:
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name), verbose=verbose)
        return await self.service.image_status(request)

    def mirror(self, host: str, text: str) -> None:
        """Write certs.d/<host>/hosts.toml."""
        directory = self.certs_dir / host
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "hosts.toml").write_text(text)

    async def layer_dirs(self, image: Image) -> list[Path]:
        """Directories of the image's layers, the base first."""
        rootfs = await self.service.prepare_rootfs(image, "looking")
        await self.service.remove_rootfs("looking")
        await self.service.settle()
        return [Path(path) for path in reversed(rootfs.lowerdirs)]

    def left(self) -> list[str]:
        """Everything of blobs, ingests, layers and containers that is on disk."""
        found = []
        for top in ("content/blobs/sha256", "content/ingest", "layers", "containers"):
            found += [f"{top}/{path.name}" for path in sorted((self.root / top).iterdir())]
        found.remove("layers/empty")
        rows = (
            "images", "image_names", "image_blobs", "layers", "blobs", "snapshots", "views",
            "layer_blobs", "damaged_layers", "retired_layers",
        )  # fmt: skip
        for table in rows:
            count = self.database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            found += [f"{table}: {count}"] if count else []
        return found


@asynccontextmanager
async def running_images(
    directory: Path, settings: ImageSettings | None = None
) -> AsyncIterator[Images]:
    """Run a spawner in a private run directory; both end with the block."""
    run_dir = directory / "run"
    run_dir.mkdir(mode=0o700)
    spawner = await Spawner.connect(run_dir, WORKERS)
    try:
        images = Images(directory, spawner, settings)
        try:
            yield images
        finally:
            await images.close()
    finally:
        await spawner.retire()
        await spawner.close()
        await harness.until(lambda: not harness.alive(spawner.pid))
        harness.assert_no_crash(run_dir)


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """All that a filesystem tree is: path -> kind, mode, owner, content, xattrs; mtime of files."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(directory, name)
            found[str(path.relative_to(root))] = describe(path)
    return found


def describe(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    content: object = status.st_rdev
    if stat.S_ISREG(status.st_mode):
        content = path.read_bytes()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    xattrs = {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
    }
    links = status.st_nlink if kind == stat.S_IFREG else 1
    mode = stat.S_IMODE(status.st_mode)
    return (kind, mode, status.st_uid, status.st_gid, links, status.st_mtime_ns, content, xattrs)

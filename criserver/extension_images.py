"""The image methods of criserver.extension.v1: what `criserver image` asks beyond the CRI."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

import grpc.aio

from api.errors import InvalidArgumentError
from api.extension import extension_pb2 as pb
from api.extension import extension_pb2_grpc
from criserver.pull_watch import PullWatcher, to_message
from imageservice.admin import Admin


class Images(PullWatcher, Protocol):
    """What is needed of the ImageService."""

    @property
    def admin(self) -> Admin:
        """What a person may ask of the store."""

    async def import_archive(self, path: Path) -> list[str]:
        """Import the images of an archive and return their names or ids."""


class ImageServicer(extension_pb2_grpc.ExtensionServicer):
    """Import, export, inspect, verify, collect, mount, and the pulls under way."""

    def __init__(self, images: Images) -> None:
        self._images = images

    async def ImportImage(  # noqa: N802 - the name is the RPC's
        self,
        request: pb.ImportImageRequest,
        context: grpc.aio.ServicerContext[pb.ImportImageRequest, pb.ImportImageResponse],
    ) -> pb.ImportImageResponse:
        """Import the images of an archive on the node."""
        path = _absolute("path", request.path)
        return pb.ImportImageResponse(names=await self._images.import_archive(path))

    async def WatchPulls(  # noqa: N802
        self,
        request: pb.WatchPullsRequest,
        context: grpc.aio.ServicerContext[pb.WatchPullsRequest, pb.WatchPullsResponse],
    ) -> AsyncIterator[pb.WatchPullsResponse]:
        """Tell how far pulls are, until the caller goes away."""
        async with aclosing(self._images.watch_pulls(request.image)) as changes:
            async for pulls in changes:
                yield to_message(pulls)

    async def ExportImages(  # noqa: N802
        self,
        request: pb.ExportImagesRequest,
        context: grpc.aio.ServicerContext[pb.ExportImagesRequest, pb.ExportImagesResponse],
    ) -> AsyncIterator[pb.ExportImagesResponse]:
        """Send an archive of images."""
        if not request.images:
            raise InvalidArgumentError("images: name one at least")
        async for piece in self._images.admin.export(list(request.images)):
            yield pb.ExportImagesResponse(data=piece)

    async def InspectImage(  # noqa: N802
        self,
        request: pb.InspectImageRequest,
        context: grpc.aio.ServicerContext[pb.InspectImageRequest, pb.InspectImageResponse],
    ) -> pb.InspectImageResponse:
        """Tell all about an image."""
        found = self._images.admin.inspect(request.image)
        return pb.InspectImageResponse(json=json.dumps(found))

    async def VerifyImages(  # noqa: N802
        self,
        request: pb.VerifyImagesRequest,
        context: grpc.aio.ServicerContext[pb.VerifyImagesRequest, pb.VerifyImagesResponse],
    ) -> AsyncIterator[pb.VerifyImagesResponse]:
        """Check images, or everything."""
        async for found in self._images.admin.verify(list(request.images)):
            yield pb.VerifyImagesResponse(
                kind=found.kind,
                name=found.name,
                images=found.images,
                damages=found.damages,
                note=found.note,
            )

    async def CollectImages(  # noqa: N802
        self,
        request: pb.CollectImagesRequest,
        context: grpc.aio.ServicerContext[pb.CollectImagesRequest, pb.CollectImagesResponse],
    ) -> pb.CollectImagesResponse:
        """Remove what nobody needs."""
        collected = await self._images.admin.collect(unused=request.unused)
        return pb.CollectImagesResponse(
            images=collected.images,
            layers=collected.layers,
            blobs=collected.blobs,
            freed_bytes=max(0, collected.freed_bytes),
        )

    async def MountImage(  # noqa: N802
        self,
        request: pb.MountImageRequest,
        context: grpc.aio.ServicerContext[pb.MountImageRequest, pb.MountImageResponse],
    ) -> pb.MountImageResponse:
        """Mount an image on the node."""
        target = _absolute("target", request.target)
        image = await self._images.admin.mount(request.image, target)
        return pb.MountImageResponse(image_id=image.id)

    async def UnmountImage(  # noqa: N802
        self,
        request: pb.UnmountImageRequest,
        context: grpc.aio.ServicerContext[pb.UnmountImageRequest, pb.UnmountImageResponse],
    ) -> pb.UnmountImageResponse:
        """Undo MountImage."""
        await self._images.admin.unmount(_absolute("target", request.target))
        return pb.UnmountImageResponse()


def _absolute(field: str, path: str) -> Path:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgumentError(f"{field} must be absolute, not {path!r}")
    return Path(path)

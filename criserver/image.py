"""ImageService's RPCs: the work is imageservice's, which knows no gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator

from api.cri import api_pb2 as cri
from criserver.paging import pages
from criserver.runtime import Runtime
from criserver.store.sandboxes import sandbox_name
from imageservice import reference


async def pull_image(runtime: Runtime, request: cri.PullImageRequest) -> cri.PullImageResponse:
    """Pull an image with the request's credentials."""
    wanted = reference.parse(request.image.image)
    if request.HasField("sandbox_config"):
        name = sandbox_name(request.sandbox_config.metadata)
        if (pod := runtime.sandboxes.mirror.by_name(name)) is not None:
            runtime.history.pulled_for(str(wanted), pod.id)
    return await runtime.images.pull_image(request)


async def list_images(runtime: Runtime, request: cri.ListImagesRequest) -> cri.ListImagesResponse:
    """List the images that match the filter."""
    return await runtime.images.list_images(request)


async def stream_images(
    runtime: Runtime, request: cri.StreamImagesRequest
) -> AsyncIterator[cri.StreamImagesResponse]:
    """ListImages in pieces."""
    found = await runtime.images.list_images(cri.ListImagesRequest(filter=request.filter))
    for page in pages(found.images):
        yield cri.StreamImagesResponse(images=page)


async def image_status(
    runtime: Runtime, request: cri.ImageStatusRequest
) -> cri.ImageStatusResponse:
    """Return an image; one that is not there is an answer without an image (api.proto)."""
    return await runtime.images.image_status(request)


async def remove_image(
    runtime: Runtime, request: cri.RemoveImageRequest
) -> cri.RemoveImageResponse:
    """Remove an image; one that is not there is no error (api.proto)."""
    return await runtime.images.remove_image(request)


async def image_fs_info(
    runtime: Runtime, request: cri.ImageFsInfoRequest
) -> cri.ImageFsInfoResponse:
    """Return the space that images take."""
    return await runtime.images.image_fs_info(request)

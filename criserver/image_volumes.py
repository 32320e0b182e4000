"""Image volumes: CRI mounts that show an image's directory read-only instead of a host path."""

from __future__ import annotations

from api.cri import api_pb2 as cri
from api.errors import CRIError, FailedPreconditionError, InvalidArgumentError
from imageservice.service import ImageService

# The kubelet makes an event of its own of a message with this prefix (cri-api,
# errors.ErrImageVolumeMountFailed).
FAILED = "ImageVolumeMountFailed"


def check(config: cri.ContainerConfig) -> None:
    """Raise InvalidArgumentError for an image volume that contradicts itself."""
    for index, mount in enumerate(config.mounts):
        if not mount.HasField("image"):
            if mount.image_sub_path:
                raise _invalid(index, "image_sub_path needs image")
            continue
        if not mount.image.image:
            raise _invalid(index, "image.image is empty")
        if mount.host_path:
            raise _invalid(index, "image and host_path exclude each other")
        if not mount.readonly:
            raise _invalid(index, "an image can be mounted readonly only")


def _invalid(index: int, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{FAILED}: config.mounts[{index}]: {reason}")


async def prepare(
    images: ImageService, container_id: str, config: cri.ContainerConfig
) -> dict[int, tuple[str, ...]]:
    """Return the lower directories of each image volume by its index in config.mounts.

    Each mount's image_ref becomes the id of the image that was found, for the status. The images'
    layers stay until the container's root filesystem is removed. Raises FailedPreconditionError.
    """
    found = {}
    for index, mount in enumerate(config.mounts):
        if mount.HasField("image"):
            try:
                image = images.resolve(mount.image.image)
                mount.image.image_ref = image.id
                found[index] = await images.image_volume(image, container_id, mount.image_sub_path)
            except CRIError as err:
                raise FailedPreconditionError(
                    f"{FAILED}: config.mounts[{index}] ({mount.image.image}): {err}"
                ) from err
    return found

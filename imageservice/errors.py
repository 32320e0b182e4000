"""Errors of a pull that need more words than api.errors gives them."""

from __future__ import annotations

from api.errors import ImagePullError, NotFoundError

# The kubelet turns a message with this prefix into the reason ErrRegistryUnavailable.
REGISTRY_UNAVAILABLE = "RegistryUnavailable"


class RemoteImageNotFoundError(NotFoundError):
    """No registry that was asked has the image; the message lists what each answered."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__("image", name)
        self.args = (f"image {name!r} not found: {detail}",)


class BadContentError(ImagePullError):
    """The image itself is wrong: asking again gives the same. What was pulled of it is removed."""


class StalePartialError(ImagePullError):
    """Bytes that an earlier transfer left were of no use, and are gone: asked anew it may work."""


class DiskError(ImagePullError):
    """The disk below the store is full or fails: nothing that is half there is kept on it."""


def registry_unavailable(detail: str) -> ImagePullError:
    """Return the error for a registry that cannot be reached or fails by itself."""
    return ImagePullError(f"{REGISTRY_UNAVAILABLE}: {detail}")


# The kubelet turns a message with this prefix into the reason SignatureValidationFailed.
SIGNATURE_VALIDATION_FAILED = "SignatureValidationFailed"


def signature_invalid(detail: str) -> ImagePullError:
    """Return the error for an image that the signature policy does not let in."""
    return ImagePullError(f"{SIGNATURE_VALIDATION_FAILED}: {detail}")

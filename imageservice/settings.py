"""What the configuration says about images, beside how registries are reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImageSettings:
    """pinned_images: patterns of imageservice.pinning. signature_policy: None for no policy.

    volatile_rootfs: containers' writable layers are mounted with overlayfs' `volatile`.
    """

    pinned_images: tuple[str, ...] = ()
    signature_policy: Path | None = None
    volatile_rootfs: bool = False

"""The OCI bundle of a container in the run directory: its directory and its config.json.

Everything in it may hold secrets (environment variables), so directories are 0700, files 0600.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE_NAME = "config.json"
ROOTFS = "rootfs"  # where the init mounts the root, in its own mount namespace


def write_bundle(bundle: Path, spec: Mapping[str, Any]) -> None:
    """Make the bundle's directory, its mount point and its spec. Raises OSError."""
    bundle.mkdir(mode=0o700)
    (bundle / ROOTFS).mkdir(mode=0o700)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(bundle / FILE_NAME, flags, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(json.dumps(spec, separators=(",", ":")).encode())


def replace_spec(bundle: Path, spec: Mapping[str, Any]) -> None:
    """Replace the spec as a whole: a reader finds the old one or the new one. Raises OSError."""
    written = bundle / f"{FILE_NAME}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with os.fdopen(os.open(written, flags, 0o600), "wb") as file:
        file.write(json.dumps(spec, separators=(",", ":")).encode())
    written.rename(bundle / FILE_NAME)


def read_spec(bundle: Path) -> dict[str, Any] | None:
    """Return the spec; None when the bundle has gone (a reboot, a removal)."""
    try:
        spec: dict[str, Any] = json.loads((bundle / FILE_NAME).read_bytes())
    except FileNotFoundError:
        return None
    return spec


def remove_flat_bundle(bundle: Path) -> bool:
    """Remove a bundle of files and empty directories, which takes a few calls on the run directory.

    Returns whether it is gone: what more there is, or in its way, is `remove_bundle`'s, off the
    event loop.
    """
    try:
        for name in os.listdir(bundle):
            path = f"{bundle}/{name}"
            try:
                os.unlink(path)
            except IsADirectoryError:
                os.rmdir(path)
        os.rmdir(bundle)
    except OSError:
        return not bundle.exists()
    return True


def remove_bundle(bundle: Path) -> None:
    """Remove the bundle's directory; idempotent."""
    while bundle.exists():
        with contextlib.suppress(FileNotFoundError):  # a shim that ends removes its socket itself
            shutil.rmtree(bundle)

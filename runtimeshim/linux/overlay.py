"""Overlay mounts: by the fd-based interface, and by mount(2) before Linux 6.7."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

from runtimeshim.linux import mounts


class Writable(NamedTuple):
    """What makes an overlay writable; with `volatile` nothing of it is synced."""

    upperdir: str
    workdir: str
    volatile: bool = False


def new(lowerdirs: Sequence[str], writable: Writable | None = None, attributes: int = 0) -> int:
    """Return the layers, the top one first, as a detached mount.

    Raises OSError; what `mount_by_string` does with it is not the caller's to decide.
    """
    options: list[tuple[str, str | None]] = [("source", "overlay")]
    options += [("lowerdir+", layer) for layer in lowerdirs]
    if writable is not None:
        options += [("upperdir", writable.upperdir), ("workdir", writable.workdir)]
        if writable.volatile:
            options.append(("volatile", None))
    return mounts.new_mount("overlay", options, attributes)


def mount_by_string(
    refused: OSError,
    lowerdirs: Sequence[str],
    target: str,
    writable: Writable | None = None,
    flags: int = 0,
) -> None:
    """Mount at `target` if that is why `new` was `refused`; else raise that error.

    "lowerdir+" came with Linux 6.7: it is refused as an option since 6.5, and before together with
    all others, without a reason given. Changes the working directory: the options have to fit in
    a page, so layers are named relatively.
    """
    if refused.errno != errno.EINVAL:
        raise refused
    base = os.path.commonpath([os.path.dirname(layer) for layer in lowerdirs])
    data = "lowerdir=" + ":".join(os.path.relpath(layer, base) for layer in lowerdirs)
    if writable is not None:
        data += f",upperdir={writable.upperdir},workdir={writable.workdir}"
        data += ",volatile" if writable.volatile else ""
    os.chdir(base)
    try:
        mounts.mount("overlay", target, "overlay", flags, data)
    except OSError as err:
        # Of two that say no more than EINVAL, the first may have the kernel's reason.
        raise refused if err.errno == errno.EINVAL else err from None

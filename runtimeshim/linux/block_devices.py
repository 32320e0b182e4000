"""Names of block devices, from sysfs (kernel, ABI/stable/sysfs-devices)."""

from __future__ import annotations

import functools
import os


@functools.lru_cache(maxsize=256)
def device_name(major: int, minor: int) -> str:
    """Return the path of a block device's node, /dev/sda; "8:0" for one without a name.

    Names are kept: those of present disks do not change.
    """
    try:
        target = os.readlink(f"/sys/dev/block/{major}:{minor}")
    except FileNotFoundError:
        return f"{major}:{minor}"
    return "/dev/" + os.path.basename(target).replace("!", "/")


def device_of(path: str) -> str:
    """Return the device that holds `path`; "0:52" where a file system has none. Raises OSError."""
    number = os.stat(path).st_dev
    return device_name(os.major(number), os.minor(number))

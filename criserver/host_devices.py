"""Device nodes of the host as OCI devices: the part of a spec that must look at disk."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from api.cri import api_pb2
from api.errors import InvalidArgumentError

ACCESS = "rwm"

# Below /dev, but each container's own or no devices: walked over.
SKIPPED = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"})


@dataclass(frozen=True)
class Device:
    """A device node: its path in the container, its numbers, and the access to allow ("rwm")."""

    path: str
    kind: str  # "b" or "c"
    major: int
    minor: int
    mode: int  # permission bits
    uid: int
    gid: int
    access: str = ACCESS

    def node(self) -> dict[str, Any]:
        """Return the entry of OCI linux.devices."""
        return {
            "path": self.path,
            "type": self.kind,
            "major": self.major,
            "minor": self.minor,
            "fileMode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
        }

    def rule(self) -> dict[str, Any]:
        """Return the entry of OCI linux.resources.devices that allows it."""
        return {
            "allow": True,
            "type": self.kind,
            "major": self.major,
            "minor": self.minor,
            "access": self.access,
        }


def requested(devices: Sequence[api_pb2.Device]) -> list[Device]:
    """Resolve the devices of a ContainerConfig; a directory stands for all devices below it.

    Raises InvalidArgumentError naming the one that does not exist or is no device.
    """
    found: list[Device] = []
    for index, device in enumerate(devices):
        field = f"config.devices[{index}]"
        if not device.permissions or not set(device.permissions) <= set(ACCESS):
            raise InvalidArgumentError(
                f"{field}.permissions: {device.permissions!r} is not made of r, w and m"
            )
        path = device.container_path or device.host_path
        if not device.host_path.startswith("/") or not path.startswith("/") or "\0" in path:
            raise InvalidArgumentError(f"{field}: paths must be absolute and without NUL bytes")
        found += _resolve(field, device.host_path, path, device.permissions)
    return found


def _resolve(field: str, host_path: str, path: str, access: str) -> list[Device]:
    try:
        real = os.path.realpath(host_path)
        if os.path.isdir(real):
            return [_device(each, path + each[len(real) :], access) for each in _device_nodes(real)]
        return [_device(real, path, access)]
    except (OSError, ValueError) as err:
        raise InvalidArgumentError(f"{field}.host_path: {host_path!r}: {err}") from err


def host_devices() -> list[Device]:
    """Return all devices below /dev, which a privileged container gets."""
    found = []
    for path in _device_nodes("/dev"):
        try:
            found.append(_device(path, path, ACCESS))
        except FileNotFoundError:  # unplugged meanwhile
            continue
    return found


def _device_nodes(directory: str) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            if entry.name in SKIPPED or entry.is_symlink():
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _device_nodes(entry.path)
            elif _is_device(entry):
                yield entry.path


def _is_device(entry: os.DirEntry[str]) -> bool:
    try:
        mode = entry.stat(follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _device(host_path: str, path: str, access: str) -> Device:
    info = os.lstat(host_path)
    if stat.S_ISBLK(info.st_mode):
        kind = "b"
    elif stat.S_ISCHR(info.st_mode):
        kind = "c"
    else:
        raise OSError(errno.ENODEV, "not a device")
    return Device(
        path,
        kind,
        os.major(info.st_rdev),
        os.minor(info.st_rdev),
        stat.S_IMODE(info.st_mode),
        info.st_uid,
        info.st_gid,
        access,
    )

"""/dev: the specification's default devices and links, and the spec's own devices.

In a user namespace nobody may make a device node. There they are made ahead, by the host's root in
a filesystem of its own, and bound.
"""

from __future__ import annotations

import os
import stat

from runtimeshim.linux import mounts as m
from runtimeshim.linux import userns
from runtimeshim.oci import mounting, resolve
from runtimeshim.oci.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Device = Mapping[str, Any]

# runtime-spec, config-linux.md, "Default Devices": name, major, minor; 0666, owned by root.
DEFAULT_DEVICES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
# runtime-spec, runtime-linux.md, "Dev symbolic links", and ptmx of config-linux.md.
DEV_SYMLINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
DEVICE_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_OWN = frozenset(f"/dev/{name}" for name, _ in DEV_SYMLINKS)


def fill(root: int, devices: Sequence[Device]) -> None:
    """Fill /dev: the specification's default devices and links, then the spec's own."""
    old = os.umask(0)
    try:
        dev = resolve.make_directory(root, "dev")
        try:
            for name, major, minor in DEFAULT_DEVICES:
                _make_node(dev, name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
            _make_links(dev)
        finally:
            os.close(dev)
        for number, device in enumerate(devices):
            if os.path.normpath(device["path"]) in _OWN:
                continue  # the host's ptmx in a privileged container: its own instance is meant
            _make_device(root, device, f"linux.devices[{number}]")
    finally:
        os.umask(old)


def _make_links(dev: int) -> None:
    for name, target in DEV_SYMLINKS:
        try:
            os.symlink(target, name, dir_fd=dev)
        except FileExistsError:
            pass  # the image's or the mount's own choice; it names things inside only


def _make_node(directory: int, name: str, mode: int, device: int) -> None:
    try:
        os.mknod(name, mode, device, dir_fd=directory)
    except FileExistsError:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (stat.S_IFMT(found.st_mode), found.st_rdev) != (stat.S_IFMT(mode), device):
            raise


def _mode(device: Device, field: str) -> int:
    kind = DEVICE_TYPES.get(device["type"])
    if kind is None:
        raise SpecError(f"{field}.type: {device['type']!r} is none of {', '.join(DEVICE_TYPES)}")
    return kind | stat.S_IMODE(device.get("fileMode") or 0o666)


def _number(device: Device) -> int:
    return os.makedev(device.get("major") or 0, device.get("minor") or 0)


def _make_device(root: int, device: Device, field: str) -> None:
    mode = _mode(device, field)
    parts = resolve.components(device["path"])
    parent = resolve.make_directory(root, "/".join(parts[:-1]))
    try:
        _make_node(parent, parts[-1], mode, _number(device))
        owner = (device.get("uid") or 0, device.get("gid") or 0)
        if owner != (0, 0):
            os.chown(parts[-1], *owner, dir_fd=parent, follow_symlinks=False)
    except FileExistsError as err:
        raise OSError(
            err.errno, f"{field}.path: {device['path']} is there, and another file"
        ) from err
    finally:
        os.close(parent)


def make_ahead(stage: str, linux: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Make the nodes in `stage`, a directory of ours; returns (path inside, fd to attach)."""
    uids, gids = linux.get("uidMappings") or (), linux.get("gidMappings") or ()
    defaults = [
        {"path": f"/dev/{name}", "type": "c", "major": major, "minor": minor}
        for name, major, minor in DEFAULT_DEVICES
    ]
    wanted: dict[str, tuple[str, Device]] = {}
    for number, device in enumerate([*defaults, *(linux.get("devices") or ())]):
        path = os.path.normpath(device["path"])
        if path not in _OWN:
            wanted[path] = (f"linux.devices[{number - len(defaults)}]", device)
    made = []
    old = os.umask(0)
    try:
        for number, (path, (field, device)) in enumerate(wanted.items()):
            node = f"{stage}/device-{number}"
            os.mknod(node, _mode(device, field), _number(device))
            os.chown(node, _owner(uids, device.get("uid")), _owner(gids, device.get("gid")))
            made.append((path, m.open_tree(m.AT_FDCWD, node)))
    finally:
        os.umask(old)
    return made


def _owner(mappings: userns.Mappings, inside: int | None) -> int:
    """Return the host's id of an owner; one that the namespace lacks stays the host's root."""
    return userns.host_id(mappings, inside or 0) or 0


def bind(root: int, made: Sequence[tuple[str, int]]) -> None:
    """Show the nodes of `make_ahead` in the container, and make the links."""
    dev = resolve.make_directory(root, "dev")
    try:
        _make_links(dev)
    finally:
        os.close(dev)
    for path, fd in made:
        mounting.place_and_close(fd, resolve.make_file(root, path))

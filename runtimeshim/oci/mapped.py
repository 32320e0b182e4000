"""What a container in a user namespace cannot reach, made ready while we are the host's root.

Behind the user namespace we are root over its ids only: the layers, the bundle and the sources of
bind mounts may lie below directories of 0700, and no device node can be made. So all of it is
opened before, and only attached after.
"""

from __future__ import annotations

import os
import stat

from runtimeshim.linux import mounts as m
from runtimeshim.linux import userns
from runtimeshim.oci import devices, mounting, rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


class Prepared:
    """Detached mounts that wait for the container's mount namespace."""

    __slots__ = ("devices", "root")

    def __init__(self, root: int, nodes: list[tuple[str, int]] | None) -> None:
        self.root = root
        self.devices = nodes  # None: /dev is the spec's own affair


def prepare(
    spec: Mapping[str, Any],
    path: str,
    overlay: Mapping[str, Any] | None,
    user_namespace: int,
    around: mounting.Surroundings,
) -> Prepared:
    """Open root, bind sources and devices; `path` is the mount point of the root on the host.

    Leaves us in it: from the new mount namespace the path may be out of reach, and the working
    directory is not.
    """
    linux: Mapping[str, Any] = spec.get("linux") or {}
    mounts = spec.get("mounts") or ()
    bundle_root = None if overlay is not None else m.open_tree(m.AT_FDCWD, path, recursive=True)
    # Whatever has to be attached to be used is, in here: it goes with the old root.
    options: list[tuple[str, str | None]] = [("source", "stage"), ("mode", "755")]
    options += [("context", around.label)] if around.label else []
    stage = m.new_mount("tmpfs", options)
    m.move_mount(stage, m.AT_FDCWD, path)
    os.close(stage)
    if bundle_root is None:
        assert overlay is not None
        layers = idmapped_layers(overlay, path, user_namespace)
        bundle_root = rootfs.open_overlay(layers, lambda: path, around.label)
    mounting.open_binds(mounts, around)
    mounting.open_overlays(
        mounts,
        around,
        lambda layer, name: _attach_mapped(layer, f"{path}/{name}", user_namespace),
        path,
    )
    nodes = None
    if not mounting.is_bind(mounts, "/dev"):
        nodes = devices.make_ahead(path, linux)
    own_stdio(spec)
    os.chdir(path)
    return Prepared(bundle_root, nodes)


def idmapped_layers(
    overlay: Mapping[str, Any], stage: str, user_namespace: int
) -> Mapping[str, Any]:
    """Attach id-mapped views of the layers below `stage`; returns the overlay of these.

    On disk the layers keep the image's ids, so containers of different maps share them and no tree
    is ever chowned. The upper directory is as it is: overlayfs works in it as the host's root,
    whom a map would leave without an id. It becomes the user namespace's root's, as the top
    layer's directory has become.
    """
    lower = [
        _attach_mapped(layer, f"{stage}/lower-{number}", user_namespace)
        for number, layer in enumerate(overlay["lowerdirs"])
    ]
    found = os.stat(lower[0])
    os.chown(overlay["upperdir"], found.st_uid, found.st_gid)
    return {**overlay, "lowerdirs": lower}


def _attach_mapped(source: str, target: str, user_namespace: int) -> str:
    tree = m.open_tree(m.AT_FDCWD, source)
    try:
        m.mount_setattr(tree, set_=m.MOUNT_ATTR_IDMAP, user_namespace=user_namespace)
        os.mkdir(target, 0o755)
        m.move_mount(tree, m.AT_FDCWD, target)
    finally:
        os.close(tree)
    return target


def own_stdio(spec: Mapping[str, Any]) -> None:
    """Give pipes on 0, 1, 2 to the user, as process.own_stdio does where it is not too late."""
    linux: Mapping[str, Any] = spec.get("linux") or {}
    inside = (spec["process"].get("user") or {}).get("uid") or 0
    owner = userns.host_id(linux.get("uidMappings") or (), inside)
    if owner is None:
        return
    for fd in (0, 1, 2):
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.fchown(fd, owner, -1)


def open_cgroup(directories: Sequence[tuple[str, str]]) -> list[int]:
    """Open a cgroup for `join_cgroup`, in every hierarchy; see V1Manager.join for `tasks`.

    Empty for one that is not there yet: a scope of systemd's, which begins with its first process.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC
    if not all(os.path.isdir(directory) for _, directory in directories):
        return []
    return [
        os.open(f"{directory}/{'tasks' if name else 'cgroup.procs'}", flags)
        for name, directory in directories
    ]


def join_cgroup(opened: Sequence[int]) -> bool:
    """Join the cgroup by fds of before; False where somebody outside has to move us.

    Since Linux 5.16 it is who opened the file that has to have the right to.
    """
    if not opened:
        return False
    try:
        for fd in opened:
            os.write(fd, b"0")
    except PermissionError:
        return False
    finally:
        for fd in opened:
            os.close(fd)
    return True

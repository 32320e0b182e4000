"""The mounts of a spec, made in their order at targets inside the root.

A bind mount's source is a host path. Where the container's user namespace could not reach it, it
has been opened ahead (runtimeshim.oci.mapped).
"""

from __future__ import annotations

import errno
import os

from runtimeshim.linux import mounts as m
from runtimeshim.linux import overlay, selinux
from runtimeshim.oci import copy_up, mount_options, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    Mount = Mapping[str, Any]

# A symbolic link at one of these would put it elsewhere (CVE-2019-19921, CVE-2023-27561).
NO_SYMLINK_TYPES = frozenset({"proc", "sysfs"})

# What takes SELinux's label of all its files as an option, in a user namespace too (the kernel's
# selinux_set_mnt_opts). mqueue does not: its superblock is as old as the IPC namespace.
LABELLED_TYPES = frozenset({"tmpfs", "ramfs", "devpts", "overlay"})


class Surroundings:
    """What the mounts of a container need beside the spec."""

    __slots__ = ("cgroup_directories", "cgroups", "idmaps", "label", "opened")

    def __init__(
        self,
        *,
        cgroups: Sequence[tuple[str, str, str]] = (),
        cgroup_directories: Sequence[tuple[str, str]] = (),
        idmaps: Mapping[int, int] | None = None,
        label: str = "",
    ) -> None:
        self.cgroups = cgroups  # CgroupManager.mounts
        self.cgroup_directories = cgroup_directories  # of a container that sees the host's cgroups
        self.idmaps = idmaps or {}  # mount number -> user namespace
        self.label = label  # linux.mountLabel
        self.opened: dict[int, int] = {}  # mount number -> the source of a bind, ready to attach


def mount_all(root: int, mounts: Sequence[Mount], around: Surroundings) -> None:
    """Make the spec's mounts in their order."""
    for number, mount in enumerate(mounts):
        try:
            _mount_one(root, mount, number, around)
        except OSError as err:
            raise _named(err, number, mount) from err


def _named(err: OSError, number: int, mount: Mount) -> OSError:
    """Return the error with the mount that it belongs to."""
    what = f"mounts[{number}] ({mount.get('source', '')} on {mount['destination']})"
    return OSError(err.errno, f"{what}: {err.strerror}")


def _parsed(mount: Mount, number: int) -> mount_options.MountOptions:
    fstype = mount.get("type") or "none"
    return mount_options.parse(mount.get("options") or [], fstype, f"mounts[{number}]")


def _mount_one(root: int, mount: Mount, number: int, around: Surroundings) -> None:
    options = _parsed(mount, number)
    fstype = mount.get("type") or "none"
    if options.bind:
        source = around.opened.pop(number, None)
        if source is None:
            source = open_bind(mount, options, around.idmaps.get(number))
        _place_bind(root, mount["destination"], source)
    elif number in around.opened:
        _place_bind(root, mount["destination"], around.opened.pop(number))
    elif fstype == "cgroup":
        _mount_cgroups(root, mount["destination"], options, around)
    else:
        _mount_new(root, mount, fstype, options, around.label)


def open_binds(mounts: Sequence[Mount], around: Surroundings) -> None:
    """Open every bind's source now, for a container that could not reach it later."""
    for number, mount in enumerate(mounts):
        options = _parsed(mount, number)
        if options.bind:
            try:
                around.opened[number] = open_bind(mount, options, around.idmaps.get(number))
            except OSError as err:
                raise _named(err, number, mount) from err


def open_overlays(
    mounts: Sequence[Mount],
    around: Surroundings,
    mapped: Callable[[str, str], str],
    scratch: str,
) -> None:
    """Make overlays now whose layers the container could not reach later.

    `mapped` takes a layer's directory and a name, and returns where an id-mapped view of it is;
    `scratch` is a directory of our mount namespace alone.
    """
    for number, mount in enumerate(mounts):
        if mount.get("type") != "overlay":
            continue
        options = _parsed(mount, number)
        try:
            data = [
                (key, mapped(value, f"mount-{number}-{place}"))
                if key == "lowerdir+" and value
                else (key, value)
                for place, (key, value) in enumerate(options.data)
            ]
            source = mount.get("source") or "overlay"
            around.opened[number] = _new(
                "overlay", source, data, options.set_, scratch, around.label
            )
        except OSError as err:
            raise _named(err, number, mount) from err


def open_bind(mount: Mount, options: mount_options.MountOptions, user_namespace: int | None) -> int:
    """Return a detached copy of a bind's source, with all its attributes."""
    source = m.open_tree(m.AT_FDCWD, mount["source"], recursive=options.recursive)
    try:
        _set_attributes(source, options)
        if user_namespace is not None:
            _map_ids(source, user_namespace, recursive=options.recursive_idmap)
    except BaseException:
        os.close(source)
        raise
    return source


def _map_ids(source: int, user_namespace: int, *, recursive: bool) -> None:
    try:
        m.mount_setattr(
            source, set_=m.MOUNT_ATTR_IDMAP, user_namespace=user_namespace, recursive=recursive
        )
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        below = ", or one mounted below it," if recursive else ""
        raise OSError(
            err.errno,
            f"this kernel cannot map the ids of its filesystem{below} (Linux 5.12 maps ext4 and"
            " XFS, 5.15 Btrfs, 5.19 overlayfs' layers, 6.3 tmpfs): mount it without ids",
        ) from err


def _place_bind(root: int, destination: str, source: int) -> None:
    try:
        if resolve.is_directory(source):
            target = resolve.make_directory(root, destination)
        else:
            target = resolve.make_file(root, destination)
        place(source, target)
    finally:
        os.close(source)


def _mount_new(
    root: int, mount: Mount, fstype: str, options: mount_options.MountOptions, label: str
) -> None:
    # The root's place: nobody outside sees it, and it has a path until the pivot.
    scratch = os.readlink(f"/proc/self/fd/{root}")
    source = mount.get("source") or fstype
    attributes = 0 if options.copy_up else options.set_
    fd = _new(fstype, source, options.data, attributes, scratch, label)
    try:
        if label and fstype == "mqueue":
            os.setxattr(f"/proc/self/fd/{fd}", selinux.ATTRIBUTE, label.encode())
        target = _target_of(root, mount["destination"], fstype)
        if options.copy_up:
            copy_up.copy(root, mount["destination"], fd)
            m.mount_setattr(fd, set_=options.set_)
        if options.set_recursive or options.clear_recursive or options.propagation:
            _set_attributes(fd, options)
        place(fd, target)
    finally:
        os.close(fd)


def _new(
    fstype: str,
    source: str,
    data: Sequence[tuple[str, str | None]],
    attributes: int,
    scratch: str,
    label: str,
) -> int:
    """Return a new filesystem as a detached mount; one of layers alone on older kernels too."""
    layers = [value for key, value in data if key == "lowerdir+" and value]
    if fstype == "overlay" and layers and len(layers) == len(data):
        return overlay.detached(
            layers, lambda: scratch, source=source, attributes=attributes, context=label
        )
    labelled = [("context", label)] if label and fstype in LABELLED_TYPES else []
    return m.new_mount(fstype, [("source", source), *data, *labelled], attributes)


def _target_of(root: int, path: str, fstype: str) -> int:
    if fstype not in NO_SYMLINK_TYPES:
        return resolve.make_directory(root, path)
    os.close(resolve.make_directory(root, path))
    try:
        return resolve.open_without_symlinks(root, path, os.O_PATH | os.O_DIRECTORY)
    except OSError as err:
        raise OSError(
            err.errno, f"{path} has a symbolic link in it: {fstype} is mounted on directories only"
        ) from err


def place(fd: int, target: int) -> None:
    """Attach a detached mount at an O_PATH fd, and close that."""
    try:
        m.move_mount(fd, target)
    finally:
        os.close(target)


def place_and_close(fd: int, target: int) -> None:
    """Attach a detached mount at an O_PATH fd, and close both."""
    try:
        place(fd, target)
    finally:
        os.close(fd)


def _set_attributes(fd: int, options: mount_options.MountOptions) -> None:
    if options.set_ or options.clear:
        m.mount_setattr(fd, set_=options.set_, clear=options.clear)
    if options.set_recursive or options.clear_recursive:
        m.mount_setattr(
            fd, set_=options.set_recursive, clear=options.clear_recursive, recursive=True
        )
    for propagation in options.propagation:
        m.mount_setattr(
            fd,
            propagation=propagation & ~m.MS_REC,
            recursive=bool(propagation & m.MS_REC),
        )


def _mount_cgroups(
    root: int,
    destination: str,
    options: mount_options.MountOptions,
    around: Surroundings,
) -> None:
    """Show the container its own cgroup, of which the cgroup namespace makes the root.

    Version 2 is one mount; version 1 a tmpfs with one mount a hierarchy, and a link for each
    controller that shares one. Without a cgroup namespace a mount shows the host's whole tree: so
    runc has it on version 2, and on version 1 binds the container's own directories instead.
    """
    target = resolve.make_directory(root, destination)
    if [name for name, _, _ in around.cgroups] == [""]:
        place_and_close(_open_unified(options, around), target)
        return
    own = dict(around.cgroup_directories)
    base = m.new_mount("tmpfs", [("source", "tmpfs"), ("mode", "755")])
    try:
        place(base, target)
        for name, fstype, data in around.cgroups:
            if fstype == "link":
                os.symlink(data, name, dir_fd=base)
                continue
            os.mkdir(name, 0o755, dir_fd=base)
            fd = _open_hierarchy(fstype, data, own.get(name), options)
            place_and_close(fd, os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=base))
        if options.set_:
            m.mount_setattr(base, set_=options.set_)
    finally:
        os.close(base)


def _open_unified(options: mount_options.MountOptions, around: Surroundings) -> int:
    try:
        return m.new_mount("cgroup2", [("source", "cgroup")], options.set_)
    except OSError as err:
        # A user namespace without a cgroup namespace of its own may not mount it.
        if err.errno not in (errno.EPERM, errno.EBUSY) or not around.cgroup_directories:
            raise
    ((_, own),) = around.cgroup_directories
    return _open_hierarchy("cgroup2", "", own, options)


def _open_hierarchy(
    fstype: str, data: str, directory: str | None, options: mount_options.MountOptions
) -> int:
    if directory is None:
        return m.new_mount(fstype, [("source", "cgroup"), *_pairs(data)], options.set_)
    fd = m.open_tree(m.AT_FDCWD, directory)
    if options.set_:
        m.mount_setattr(fd, set_=options.set_)
    return fd


def _pairs(data: str) -> list[tuple[str, str | None]]:
    pairs: list[tuple[str, str | None]] = []
    for option in data.split(",") if data else ():
        key, separator, value = option.partition("=")
        pairs.append((key, value if separator else None))
    return pairs


def is_bind(mounts: Sequence[Mount], destination: str) -> bool:
    """Tell whether `destination` is a bind mount of the spec: then it is not ours to fill."""
    for mount in mounts:
        if os.path.normpath(mount["destination"]) == destination:
            return mount.get("type") == "bind" or bool(
                {"bind", "rbind"} & set(mount.get("options") or ())
            )
    return False


def check_label(label: str) -> None:
    """Refuse linux.mountLabel where no SELinux would read it. Raises OSError.

    A quote would end it early where it is one of mount(2)'s options, and begin another one.
    """
    if '"' in label:
        raise OSError(errno.EINVAL, "linux.mountLabel: contains a quote, which no label does")
    if label and not os.path.exists("/sys/fs/selinux/enforce"):
        raise OSError(errno.EOPNOTSUPP, "linux.mountLabel: this kernel has no SELinux")

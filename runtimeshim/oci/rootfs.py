"""The container's filesystem: overlay, mounts, devices, masks, pivot.

Everything is mounted by fd from outside, before pivot_root: sources are ordinary host paths,
targets are resolved inside the root (runtimeshim.oci.resolve). The mount namespace is private to
the init, so whatever fails here disappears with it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from runtimeshim.linux import mounts as m
from runtimeshim.linux import syscalls
from runtimeshim.oci import mount_options, resolve
from runtimeshim.oci.errors import SpecError

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

# A symbolic link at one of these would put it elsewhere (CVE-2019-19921, CVE-2023-27561).
NO_SYMLINK_TYPES = frozenset({"proc", "sysfs"})

CgroupMounts = Sequence[tuple[str, str, str]]


def detach_from_host(propagation: str | None, rootfs: str) -> None:
    """Enter a mount namespace of our own, from which nothing comes back to the host.

    With a shared root propagation (a pod with a bidirectional volume) the tree stays shared, and
    only the mount below the rootfs is made private, as pivot_root asks for.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    flags = mount_options.PROPAGATION.get(propagation or "rslave")
    if flags is None:
        raise SpecError(f"linux.rootfsPropagation: {propagation!r} is not a propagation")
    m.set_propagation("/", flags)
    if flags & m.MS_SHARED:
        m.set_propagation(_mount_of(rootfs), m.MS_PRIVATE)


def _mount_of(path: str) -> str:
    """Return the mount point that holds `path` (man 5 proc, mountinfo)."""
    best = "/"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            point = _unescape(line.split(" ", 5)[4])
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best = point
    return best


def _unescape(path: str) -> str:
    """Undo the four octal escapes of man 5 proc; the codec for more is a module not loaded."""
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(escape, character)
    return path


def mount_overlay(overlay: Mapping[str, Any], target: str) -> None:
    """Mount the container's layers at `target`; the first lower directory is the top one."""
    options: list[tuple[str, str | None]] = [("source", "overlay")]
    options += [("lowerdir+", layer) for layer in overlay["lowerdirs"]]
    options += [("upperdir", overlay["upperdir"]), ("workdir", overlay["workdir"])]
    try:
        fd = m.new_mount("overlay", options)
    except OSError as err:
        if "lowerdir+" not in str(err) or err.errno != 22:  # EINVAL
            raise
        _mount_overlay_by_string(overlay, target)  # before Linux 6.5
        return
    _attach(fd, target)


def _mount_overlay_by_string(overlay: Mapping[str, Any], target: str) -> None:
    """Mount by mount(2), whose options have to fit in a page: so layers are named relatively."""
    base = os.path.commonpath([os.path.dirname(layer) for layer in overlay["lowerdirs"]])
    lower = ":".join(os.path.relpath(layer, base) for layer in overlay["lowerdirs"])
    data = f"lowerdir={lower},upperdir={overlay['upperdir']},workdir={overlay['workdir']}"
    os.chdir(base)
    m.mount("overlay", target, "overlay", 0, data)


def bind_root(path: str) -> None:
    """Make a bundle's own root directory a mount, which pivot_root asks for."""
    _attach(m.open_tree(m.AT_FDCWD, path, recursive=True), path)


def _attach(fd: int, target: str) -> None:
    try:
        m.move_mount(fd, m.AT_FDCWD, target)
    finally:
        os.close(fd)


def mount_all(root: int, mounts: Sequence[Mapping[str, Any]], cgroups: CgroupMounts) -> None:
    """Make the spec's mounts in their order."""
    for number, mount in enumerate(mounts):
        field = f"mounts[{number}]"
        try:
            _mount_one(root, mount, field, cgroups)
        except OSError as err:
            raise OSError(
                err.errno,
                f"{field} ({mount.get('source', '')} on {mount['destination']}): {err.strerror}",
            ) from err


def _mount_one(root: int, mount: Mapping[str, Any], field: str, cgroups: CgroupMounts) -> None:
    fstype = mount.get("type") or "none"
    options = mount_options.parse(mount.get("options") or [], fstype, field)
    if options.bind:
        _mount_bind(root, mount, options)
    elif fstype == "cgroup":
        _mount_cgroups(root, mount["destination"], options, cgroups)
    else:
        _mount_new(root, mount, fstype, options)


def _mount_bind(root: int, mount: Mapping[str, Any], options: mount_options.MountOptions) -> None:
    source = m.open_tree(m.AT_FDCWD, mount["source"], recursive=options.recursive)
    try:
        _set_attributes(source, options)
        if resolve.is_directory(source):
            target = resolve.make_directory(root, mount["destination"])
        else:
            target = resolve.make_file(root, mount["destination"])
        _place(source, target)
    finally:
        os.close(source)


def _mount_new(
    root: int, mount: Mapping[str, Any], fstype: str, options: mount_options.MountOptions
) -> None:
    data = [("source", mount.get("source") or fstype), *options.data]
    fd = m.new_mount(fstype, data, options.set_)
    try:
        if options.set_recursive or options.clear_recursive or options.propagation:
            _set_attributes(fd, options)
        _place(fd, _target_of(root, mount["destination"], fstype))
    finally:
        os.close(fd)


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


def _place(fd: int, target: int) -> None:
    """Attach a detached mount at an O_PATH fd, and close that."""
    try:
        m.move_mount(fd, target)
    finally:
        os.close(target)


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
    cgroups: CgroupMounts,
) -> None:
    """Show the container its own cgroup, of which the cgroup namespace makes the root.

    Version 2 is one mount; version 1 a tmpfs with one mount a hierarchy, and a link for each
    controller that shares one.
    """
    target = resolve.make_directory(root, destination)
    if [name for name, _, _ in cgroups] == [""]:
        fd = m.new_mount("cgroup2", [("source", "cgroup")], options.set_)
        _place_and_close(fd, target)
        return
    base = m.new_mount("tmpfs", [("source", "tmpfs"), ("mode", "755")])
    try:
        _place(base, target)
        for name, fstype, data in cgroups:
            if fstype == "link":
                os.symlink(data, name, dir_fd=base)
                continue
            os.mkdir(name, 0o755, dir_fd=base)
            fd = m.new_mount(fstype, [("source", "cgroup"), *_pairs(data)], options.set_)
            _place_and_close(fd, os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=base))
        if options.set_:
            m.mount_setattr(base, set_=options.set_)
    finally:
        os.close(base)


def _pairs(data: str) -> list[tuple[str, str | None]]:
    pairs: list[tuple[str, str | None]] = []
    for option in data.split(",") if data else ():
        key, separator, value = option.partition("=")
        pairs.append((key, value if separator else None))
    return pairs


def _place_and_close(fd: int, target: int) -> None:
    try:
        _place(fd, target)
    finally:
        os.close(fd)


def make_devices(root: int, devices: Sequence[Mapping[str, Any]]) -> None:
    """Fill /dev: the specification's default devices and links, then the spec's own."""
    old = os.umask(0)
    try:
        dev = resolve.make_directory(root, "dev")
        try:
            for name, major, minor in DEFAULT_DEVICES:
                _make_node(dev, name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
            for name, target in DEV_SYMLINKS:
                _make_link(dev, name, target)
        finally:
            os.close(dev)
        own = {f"/dev/{name}" for name, _ in DEV_SYMLINKS}
        for number, device in enumerate(devices):
            if os.path.normpath(device["path"]) in own:
                continue  # the host's ptmx in a privileged container: its own instance is meant
            _make_device(root, device, f"linux.devices[{number}]")
    finally:
        os.umask(old)


def _make_node(directory: int, name: str, mode: int, device: int) -> None:
    try:
        os.mknod(name, mode, device, dir_fd=directory)
    except FileExistsError:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (stat.S_IFMT(found.st_mode), found.st_rdev) != (stat.S_IFMT(mode), device):
            raise


def _make_link(directory: int, name: str, target: str) -> None:
    try:
        os.symlink(target, name, dir_fd=directory)
    except FileExistsError:
        pass  # the image's or the mount's own choice; it names things inside only


def _make_device(root: int, device: Mapping[str, Any], field: str) -> None:
    kind = DEVICE_TYPES.get(device["type"])
    if kind is None:
        raise SpecError(f"{field}.type: {device['type']!r} is none of {', '.join(DEVICE_TYPES)}")
    parts = resolve.components(device["path"])
    parent = resolve.make_directory(root, "/".join(parts[:-1]))
    try:
        number = os.makedev(device.get("major", 0), device.get("minor", 0))
        _make_node(parent, parts[-1], kind | device.get("fileMode", 0o666), number)
        owner = (device.get("uid", 0), device.get("gid", 0))
        if owner != (0, 0):
            os.chown(parts[-1], *owner, dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(parent)


def is_bind(mounts: Sequence[Mapping[str, Any]], destination: str) -> bool:
    """Tell whether `destination` is a bind mount of the spec: then it is not ours to fill."""
    for mount in mounts:
        if os.path.normpath(mount["destination"]) == destination:
            return mount.get("type") == "bind" or bool(
                {"bind", "rbind"} & set(mount.get("options") or ())
            )
    return False


def mask_paths(root: int, paths: Sequence[str]) -> None:
    """Hide paths: a directory below an empty read-only one, anything else below /dev/null."""
    if not paths:
        return
    null = _open_null()
    empty = m.new_mount(
        "tmpfs", [("source", "masked"), ("size", "4k"), ("mode", "755")], m.MOUNT_ATTR_RDONLY
    )
    try:
        for path in paths:
            try:
                target = resolve.open_inside(root, path)
            except (FileNotFoundError, NotADirectoryError):
                continue  # this kernel has no such file: nothing to hide
            source = m.open_tree(empty if resolve.is_directory(target) else null, "")
            _place_and_close(source, target)
    finally:
        os.close(null)
        os.close(empty)


def _open_null() -> int:
    """Open the host's /dev/null, and see that it is what it says (CVE-2025-31133)."""
    fd = os.open("/dev/null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(fd)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(1, 3):
        os.close(fd)
        raise OSError(19, "/dev/null of the host is not the null device (1:3)")
    return fd


def protect_paths(root: int, paths: Sequence[str]) -> None:
    """Make paths read-only, with all that is mounted below them."""
    for path in paths:
        try:
            target = resolve.open_inside(root, path)
        except (FileNotFoundError, NotADirectoryError):
            continue  # this kernel has no such file: nothing to protect
        copy = m.open_tree(target, "", recursive=True)
        m.mount_setattr(copy, set_=m.MOUNT_ATTR_RDONLY, recursive=True)
        _place_and_close(copy, target)


def write_sysctls(sysctls: Mapping[str, str]) -> None:
    """Write namespaced kernel parameters through a procfs that only we can see.

    The container's own /proc is no place to write from: an image could have put something else
    there (CVE-2019-16884, CVE-2025-52881).
    """
    if not sysctls:
        return
    proc = m.new_mount("proc", [("source", "proc")])
    try:
        for name, value in sysctls.items():
            path = "sys/" + name.replace(".", "/")
            fd = syscalls.openat2(proc, path, os.O_WRONLY, resolve.ONE_STEP)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
    finally:
        os.close(proc)


def pivot(root: int) -> None:
    """Make `root` the root, and let go of the old one (man 2 pivot_root, NOTES)."""
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchdir(root)
        syscalls.pivot_root(".", ".")
        os.fchdir(old)
        # As a slave its unmount does not reach the host, whatever was shared with it.
        m.set_propagation(".", m.MS_SLAVE | m.MS_REC)
        m.umount(".", m.MNT_DETACH)
    finally:
        os.close(old)
    os.chdir("/")


def make_root_readonly() -> None:
    """Make the root mount read-only, after pivot; what is mounted on it stays as it is."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        m.mount_setattr(root, set_=m.MOUNT_ATTR_RDONLY)
    finally:
        os.close(root)

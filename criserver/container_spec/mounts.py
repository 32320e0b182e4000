"""The mounts of a container's spec: the standard ones, the pod's files, volumes, the request's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from api.cri import api_pb2
from criserver.container_spec.fields import absolute_path, invalid
from criserver.container_spec.inputs import ContainerSpecInput

Mount = dict[str, Any]

SHM = "/dev/shm"
ETC_FILES = ("hostname", "hosts", "resolv.conf")

PROPAGATION = {
    api_pb2.PROPAGATION_PRIVATE: "rprivate",
    api_pb2.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    api_pb2.PROPAGATION_BIDIRECTIONAL: "rshared",
}
# What Mount.mount_options may restrict or tune; nothing that undoes what another field says.
MOUNT_OPTIONS = frozenset(
    {"noexec", "nosuid", "nodev", "nosymfollow", "noatime", "nodiratime", "relatime", "strictatime"}
)


def mounts(given: ContainerSpecInput, *, bind_sys: bool) -> list[Mount]:
    """Return all mounts in the order in which they are to be made.

    A mount of the request takes the place of a standard one with the same destination; one on
    /dev replaces all that is standard below it. Binds come after, shallow ones first, so that none
    covers another. With `bind_sys` /sys is the host's, which only it can be in the host's network
    with a user namespace.
    """
    wanted = [_requested(given, i, each) for i, each in enumerate(given.config.mounts)]
    taken = {mount["destination"] for mount in wanted}
    binds = wanted + [bind for bind in _own_binds(given) if bind["destination"] not in taken]
    taken |= {bind["destination"] for bind in binds}
    binds.sort(key=lambda bind: bind["destination"].count("/"))
    return [
        mount for mount in _standard(given, bind_sys) if not _covered(mount["destination"], taken)
    ] + binds


def rootfs_propagation(given: ContainerSpecInput) -> str:
    """Return the propagation that the root needs for its mounts' to work, "" for the default."""
    used = {PROPAGATION.get(mount.propagation) for mount in given.config.mounts}
    return next((mode for mode in ("rshared", "rslave") if mode in used), "")


def anonymous_volumes(
    image_config: Mapping[str, Any], config: api_pb2.ContainerConfig
) -> list[str]:
    """Return the directories that the image wants on volumes (its config's Volumes).

    Without those that the request mounts something at, and the files that are the pod's. The
    caller makes a directory on the host for each and passes them as `volumes`.
    """
    taken = {
        absolute_path(f"config.mounts[{index}].container_path", mount.container_path)
        for index, mount in enumerate(config.mounts)
    }
    taken |= {"/", *(f"/etc/{name}" for name in ETC_FILES)}
    volumes = {
        absolute_path("image config Volumes", "/" + path.lstrip("/"))
        for path in image_config.get("Volumes") or ()
    }
    return sorted(volumes - taken)


def _covered(destination: str, taken: set[str]) -> bool:
    return destination in taken or ("/dev" in taken and destination.startswith("/dev/"))


def _standard(given: ContainerSpecInput, bind_sys: bool) -> list[Mount]:
    writable = "rw" if given.context.privileged else "ro"
    return [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            *("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        ),
        _mount(SHM, "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "bind", "/sys", "rbind", "nosuid", "noexec", "nodev", "rro")
        if bind_sys
        else _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", writable),
        _mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            *("nosuid", "noexec", "nodev", "relatime", writable),
        ),
    ]


def _mount(destination: str, kind: str, source: str, *options: str) -> Mount:
    return {
        "destination": destination,
        "type": kind,
        "source": source,
        "options": list(options),
    }


def _own_binds(given: ContainerSpecInput) -> list[Mount]:
    """Return the pod's files in /etc, the pod's shared memory, and the image's volumes.

    The files are read-only where the root is; shared memory and volumes are there to be written.
    In a user namespace, files and shared memory belong to the pod's root already.
    """
    files = given.sandbox.files
    mode = "ro" if given.context.readonly_rootfs else "rw"
    mappings = _user_namespace_mappings(given)
    binds = [
        _bind(f"/etc/{name}", files[name], "rprivate", mode) for name in ETC_FILES if name in files
    ]
    if "ipc" not in given.sandbox.namespaces:
        binds.append(_bind(SHM, SHM, "rprivate", "rw"))
    elif "shm" in files:
        binds.append(_bind(SHM, files["shm"], "rprivate", "rw"))
    return binds + [
        _bind(destination, source, "rprivate", "rw") | mappings
        for destination, source in given.volumes.items()
    ]


def _bind(destination: str, source: str, *options: str) -> Mount:
    return _mount(destination, "bind", source, "rbind", *options)


def _user_namespace_mappings(given: ContainerSpecInput) -> dict[str, Any]:
    user = given.context.namespace_options.userns_options
    return _mappings(user.uids, user.gids)


def _mappings(
    uids: Sequence[api_pb2.IDMapping], gids: Sequence[api_pb2.IDMapping]
) -> dict[str, Any]:
    made = {}
    if uids:
        made["uidMappings"] = id_mappings(uids)
    if gids:
        made["gidMappings"] = id_mappings(gids)
    return made


def id_mappings(mappings: Sequence[api_pb2.IDMapping]) -> list[dict[str, int]]:
    """Return CRI id mappings as the OCI writes them."""
    return [
        {"containerID": each.container_id, "hostID": each.host_id, "size": each.length}
        for each in mappings
    ]


def _requested(given: ContainerSpecInput, index: int, mount: api_pb2.Mount) -> Mount:
    """Return one mount of the request. That its host path exists is the caller's care."""
    field = f"config.mounts[{index}]"
    destination = absolute_path(f"{field}.container_path", mount.container_path)
    if destination == "/":
        raise invalid(f"{field}.container_path", "the root cannot be mounted over")
    if mount.HasField("image"):
        return _image_mount(given, index, destination)
    source = absolute_path(f"{field}.host_path", mount.host_path)
    if mount.propagation not in PROPAGATION:
        raise invalid(f"{field}.propagation", f"unknown value {mount.propagation}")
    options = [PROPAGATION[mount.propagation], _access(given, field, mount)]
    return _bind(destination, source, *options, *_extra_options(field, mount)) | _mappings(
        mount.uidMappings, mount.gidMappings
    )


def _image_mount(given: ContainerSpecInput, index: int, destination: str) -> Mount:
    """Return an image volume: an overlay without a writable layer, for the init to mount."""
    mount = given.config.mounts[index]
    options = [f"lowerdir+={lower}" for lower in given.image_mounts[index]]
    options += ["ro", "nodev", "nosuid", *_extra_options(f"config.mounts[{index}]", mount)]
    # Mappings can be the container's own only, which the executor gives to the layers by itself.
    return _mount(destination, "overlay", "image", *options)


def _access(given: ContainerSpecInput, field: str, mount: api_pb2.Mount) -> str:
    if not mount.recursive_read_only:
        return "ro" if mount.readonly else "rw"
    field = f"{field}.recursive_read_only"
    if not mount.readonly:
        raise invalid(field, "needs readonly")
    if mount.propagation != api_pb2.PROPAGATION_PRIVATE:
        raise invalid(field, "needs private propagation")
    if not given.host.recursive_read_only:
        # The kubelet knows this prefix (cri-api, errors.ErrRROUnsupported).
        raise invalid("RROUnsupported", f"{field} is not supported on this host")
    return "rro"


def _extra_options(field: str, mount: api_pb2.Mount) -> list[str]:
    for option in mount.mount_options:
        if option not in MOUNT_OPTIONS:
            raise invalid(f"{field}.mount_options", f"{option!r} is not supported")
    return list(mount.mount_options)

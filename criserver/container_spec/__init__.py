"""CRI request + OCI image config + sandbox -> OCI runtime spec. Pure: nothing is looked up here.

Every error is an InvalidArgumentError that names the field.
"""

from __future__ import annotations

from typing import Any

from api.cri import api_pb2
from criserver.container_spec import mounts, namespaces, process, resources, security
from criserver.container_spec.fields import invalid, text
from criserver.container_spec.inputs import ContainerSpecInput, HostFacts, Sandbox
from criserver.container_spec.mounts import anonymous_volumes
from criserver.container_spec.process import oom_score_adj
from criserver.container_spec.resources import limits
from criserver.container_spec.security import localhost_profile
from runtimeshim.linux.cgroups import units

__all__ = [
    "ContainerSpecInput",
    "HostFacts",
    "Sandbox",
    "anonymous_volumes",
    "container_cgroup",
    "container_spec",
    "limits",
    "localhost_profile",
    "oom_score_adj",
]

OCI_VERSION = "1.2.0"


def container_spec(given: ContainerSpecInput) -> dict[str, Any]:
    """Return config.json for a container, as JSON objects."""
    context = given.context
    if context.privileged and not given.sandbox_config.linux.security_context.privileged:
        raise invalid("linux.security_context.privileged", "the sandbox is not privileged")
    return {
        "ociVersion": OCI_VERSION,
        "process": process.process(given),
        "root": {"path": "rootfs", "readonly": context.readonly_rootfs},
        "mounts": mounts.mounts(given, bind_sys=_binds_sys(given)),
        "linux": _linux(given),
        "annotations": _annotations(given),
    }


def container_cgroup(parent: str, container_id: str) -> str:
    """Return a container's cgroup below its pod's, as runtimeshim.linux.cgroups takes it."""
    return units.child(parent, container_id)


def _binds_sys(given: ContainerSpecInput) -> bool:
    """Tell whether sysfs cannot be mounted: the kernel refuses it to a user namespace that does
    not own the network namespace.
    """
    return namespaces.has_user_namespace(given) and "network" not in given.sandbox.namespaces


def _linux(given: ContainerSpecInput) -> dict[str, Any]:
    context, host = given.context, given.host
    user_namespace = namespaces.has_user_namespace(given)
    # By path: a device that is asked for goes before the host's of the same name.
    nodes = {device.path: device for device in (host.devices if context.privileged else ())}
    nodes |= {device.path: device for device in given.devices}
    made: dict[str, Any] = {
        "namespaces": namespaces.namespaces(given),
        "cgroupsPath": container_cgroup(given.sandbox.cgroup_parent, given.container_id),
        "devices": [device.node() for device in nodes.values()],
        "resources": {
            "devices": resources.device_rules(given.devices, privileged=context.privileged),
            **resources.limits(given.config.linux.resources, host),
        },
        "maskedPaths": security.masked_paths(context, user_namespace),
        "readonlyPaths": security.readonly_paths(context, user_namespace),
    }
    if user_namespace:
        options = context.namespace_options.userns_options
        made["uidMappings"] = mounts.id_mappings(options.uids)
        made["gidMappings"] = mounts.id_mappings(options.gids)
    for name, value in (
        ("seccomp", security.seccomp(given)),
        ("mountLabel", security.mount_label(given)),
        ("rootfsPropagation", mounts.rootfs_propagation(given)),
    ):
        if value:
            made[name] = value
    return made


def _annotations(given: ContainerSpecInput) -> dict[str, str]:
    """Return containerd's annotations, by which hooks and sandboxed runtimes know a container."""
    pod: api_pb2.PodSandboxMetadata = given.sandbox_config.metadata
    return {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": text(
            "config.metadata.name", given.config.metadata.name
        ),
        "io.kubernetes.cri.image-name": text("config.image", given.image_name),
        "io.kubernetes.cri.sandbox-id": given.sandbox_id,
        "io.kubernetes.cri.sandbox-name": pod.name,
        "io.kubernetes.cri.sandbox-namespace": pod.namespace,
        "io.kubernetes.cri.sandbox-uid": pod.uid,
    }

"""The namespaces of a container's spec: the sandbox's, its own, or the host's."""

from __future__ import annotations

from typing import Any

from api.cri import api_pb2
from criserver.container_spec.fields import invalid
from criserver.container_spec.inputs import ContainerSpecInput

FIELD = "linux.security_context.namespace_options"


def namespaces(given: ContainerSpecInput) -> list[dict[str, str]]:
    """Return OCI linux.namespaces.

    Network, IPC and UTS are the sandbox's: where it uses the host's there is no entry, and a
    container cannot ask for the host's where its sandbox has its own. The mount namespace is
    always new. So is the cgroup namespace, on v1 as on v2, but for privileged containers, which
    see the host's as with the peers.
    """
    options = given.context.namespace_options
    _check_shared("network", options.network)
    _check_shared("ipc", options.ipc)
    made = [{"type": "mount"}, *_pid(given)]
    for kind in ("network", "ipc", "uts"):
        if kind in given.sandbox.namespaces:
            made.append({"type": kind, "path": given.sandbox.namespaces[kind]})
    if not given.context.privileged:
        made.append({"type": "cgroup"})
    if has_user_namespace(given):
        made.append({"type": "user", "path": given.sandbox.namespaces["user"]})
    return made


def _check_shared(name: str, mode: int) -> None:
    """A pod has one network and one IPC namespace; the kubelet sends POD or NODE."""
    if mode not in (api_pb2.POD, api_pb2.NODE):
        raise invalid(f"{FIELD}.{name}", f"{_name(mode)} is neither POD nor NODE")


def _name(mode: int) -> str:
    known = mode in api_pb2.NamespaceMode.values()
    return api_pb2.NamespaceMode.Name(mode) if known else str(mode)


def _pid(given: ContainerSpecInput) -> list[dict[str, Any]]:
    """Return the PID namespace's entry, none for the host's.

    POD in a sandbox that shares none (its own mode is CONTAINER) is a private one: never the
    host's by accident.
    """
    field = f"{FIELD}.pid"
    mode = given.context.namespace_options.pid
    sandbox = given.sandbox_config.linux.security_context.namespace_options.pid
    match mode:
        case api_pb2.CONTAINER:
            return [{"type": "pid"}]
        case api_pb2.TARGET:
            if not given.target_pid_namespace:
                raise invalid(f"{FIELD}.target_id", "names no running container of this sandbox")
            return [{"type": "pid", "path": given.target_pid_namespace}]
        case api_pb2.POD | api_pb2.NODE:
            pass
        case _:
            raise invalid(field, f"unknown value {mode}")
    if sandbox == api_pb2.NODE:
        return []
    if mode == api_pb2.NODE:
        raise invalid(field, "NODE needs a sandbox that is in the host's PID namespace")
    if "pid" in given.sandbox.namespaces:
        return [{"type": "pid", "path": given.sandbox.namespaces["pid"]}]
    return [{"type": "pid"}]


def has_user_namespace(given: ContainerSpecInput) -> bool:
    """Tell whether the container is in the pod's user namespace; request and sandbox must agree."""
    field = f"{FIELD}.userns_options"
    wanted = given.context.namespace_options
    sandbox = given.sandbox_config.linux.security_context.namespace_options
    if not wanted.HasField("userns_options"):
        if "user" in given.sandbox.namespaces:
            raise invalid(field, "the sandbox has a user namespace, the container asks for none")
        return False
    mode = wanted.userns_options.mode
    if mode not in (api_pb2.POD, api_pb2.NODE):
        raise invalid(f"{field}.mode", f"{_name(mode)} is neither POD nor NODE")
    if wanted.userns_options != sandbox.userns_options:
        raise invalid(field, "differs from the sandbox's")
    if mode == api_pb2.NODE:
        return False
    if "user" not in given.sandbox.namespaces:
        raise invalid(field, "the sandbox has no user namespace")
    return True

"""Version, Status and RuntimeConfig: who we are and whether pods can be run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import Any

from api.cri import api_pb2 as cri
from criserver.runtime import Runtime

KUBELET_API_VERSION = "0.1.0"  # what the kubelet compares with; it has never changed
RUNTIME_NAME = "criserver"  # becomes the name:// of every container id, so it never changes
RUNTIME_API_VERSION = "v1"

CGROUP_DRIVERS: dict[str, cri.CgroupDriver] = {"cgroupfs": cri.CGROUPFS, "systemd": cri.SYSTEMD}

VERSION = importlib.metadata.version("criserver")


async def version(_runtime: Runtime, _request: cri.VersionRequest) -> cri.VersionResponse:
    """Say what serves here."""
    return cri.VersionResponse(
        version=KUBELET_API_VERSION,
        runtime_name=RUNTIME_NAME,
        runtime_version=VERSION,
        runtime_api_version=RUNTIME_API_VERSION,
    )


async def status(runtime: Runtime, request: cri.StatusRequest) -> cri.StatusResponse:
    """Say whether the runtime and its network are ready, and what they can do."""
    condition = await runtime.readiness.condition()
    ready, reason, message = await runtime.network.status()
    network = cri.RuntimeCondition(
        type="NetworkReady", status=ready, reason="" if ready else reason, message=message
    )
    return cri.StatusResponse(
        status=cri.RuntimeStatus(conditions=[condition, network]),
        runtime_handlers=[
            cri.RuntimeHandler(name=name, features=_handler_features(runtime, name))
            for name in ("", *runtime.config.handlers)
        ],
        features=cri.RuntimeFeatures(
            supplemental_groups_policy=True, user_namespaces_host_network=True, mount_options=True
        ),
        info=_info(runtime, network) if request.verbose else {},
    )


def _info(runtime: Runtime, network: cri.RuntimeCondition) -> dict[str, str]:
    """Return what a person wants to know of the daemon: JSON objects by topic."""
    host, cgroups = runtime.host, runtime.cgroups
    topics: dict[str, Any] = {
        "config": runtime.config.as_json(),
        "version": {
            "criserver": VERSION,
            "python": platform.python_version(),
            "kernel": os.uname().release,
            "machine": host.machine,
        },
        "network": {
            "provider": runtime.network.provider(),
            "ready": network.status,
            "reason": network.reason,
            "message": network.message,
        },
        "host": {
            "cgroupVersion": cgroups.version,
            "cgroupControllers": sorted(cgroups.controllers),
            "swapAccounting": host.swap,
            "selinux": host.selinux,
            "apparmor": bool(host.apparmor_profile),
            "capabilities": list(host.capabilities),
        },
        "objects": {
            "podSandboxes": len(runtime.sandboxes.mirror.made()),
            "containers": len(runtime.containers.mirror.made()),
            "operations": runtime.operations.under_way(),
        },
    }
    return {name: json.dumps(topic) for name, topic in topics.items()}


def _handler_features(runtime: Runtime, name: str) -> cri.RuntimeHandlerFeatures:
    """Return what a handler can do; of user namespaces, an OCI binary gets no idmapped root."""
    external = name in runtime.config.runtimes
    read_only = runtime.host.recursive_read_only
    return cri.RuntimeHandlerFeatures(
        recursive_read_only_mounts=read_only
        and (not external or name in runtime.recursive_read_only),
        user_namespaces=not external,
    )


async def runtime_config(
    runtime: Runtime, _request: cri.RuntimeConfigRequest
) -> cri.RuntimeConfigResponse:
    """Tell the kubelet the cgroup driver; without it the kubelet keeps its own, and may differ."""
    driver = CGROUP_DRIVERS[runtime.config.cgroup_driver]
    return cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=driver))

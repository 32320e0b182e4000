"""PodSandboxStatus: the state, the addresses, and, verbose, what was made."""

from __future__ import annotations

import json
import time

from google.protobuf.json_format import MessageToDict

from api.cri import api_pb2 as cri
from criserver import container_status
from criserver.runtime import Runtime
from criserver.store.sandboxes import Sandbox


async def pod_sandbox_status(
    runtime: Runtime, request: cri.PodSandboxStatusRequest
) -> cri.PodSandboxStatusResponse:
    """Return a sandbox's status. NotFoundError is the one error that the kubelet understands."""
    sandbox = runtime.sandboxes.mirror.get(request.pod_sandbox_id)
    info = await _info(runtime, sandbox) if request.verbose else {}
    containers = (each for each in runtime.containers.of_sandbox(sandbox.id) if each.made)
    return cri.PodSandboxStatusResponse(
        status=status_of(sandbox),
        info=info,
        # So that a kubelet that listens to events need not ask for each container.
        containers_statuses=container_status.newest_first(containers, runtime.images.repo_digest),
        timestamp=time.time_ns(),
    )


def status_of(sandbox: Sandbox) -> cri.PodSandboxStatus:
    """Return the status of a sandbox from its record alone."""
    config = sandbox.message
    return cri.PodSandboxStatus(
        id=sandbox.id,
        metadata=config.metadata,
        state=sandbox.state,
        created_at=sandbox.created_at,
        network=_network(sandbox),
        linux=cri.LinuxPodSandboxStatus(
            namespaces=cri.Namespace(options=config.linux.security_context.namespace_options)
        ),
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=sandbox.runtime_handler,
    )


def _network(sandbox: Sandbox) -> cri.PodSandboxNetworkStatus:
    """Return the addresses, the primary one first; a stopped sandbox has given them back."""
    ips: list[str] = (sandbox.runtime_values or {}).get("ips", [])
    if sandbox.state != cri.SANDBOX_READY or not ips:
        return cri.PodSandboxNetworkStatus()
    return cri.PodSandboxNetworkStatus(
        ip=ips[0], additional_ips=[cri.PodIP(ip=address) for address in ips[1:]]
    )


async def _info(runtime: Runtime, sandbox: Sandbox) -> dict[str, str]:
    made = sandbox.runtime_values or {}
    info = {
        "pid": made.get("init_pid") or 0,
        "runtimeHandler": sandbox.runtime_handler,
        "runtimeType": runtime.config.default_runtime,
        "config": MessageToDict(sandbox.message, preserving_proto_field_name=True),
        "namespaces": made.get("namespaces", {}),
        "network": made.get("network", {}),
        "networkProblem": runtime.network.problem(sandbox.id),
        "cgroupParent": made.get("cgroup_parent", ""),
    }
    current = runtime.operations.where(sandbox.id)
    return {
        "info": json.dumps(info),
        "timings": json.dumps(runtime.operations.timings(sandbox.id)),
        "explain": json.dumps(await runtime.explainer.explain(sandbox.id)),
        **({"operation": current} if current else {}),
    }

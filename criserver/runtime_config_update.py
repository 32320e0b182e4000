"""UpdateRuntimeConfig: the kubelet tells the node's pod CIDRs."""

from __future__ import annotations

from api.cri import api_pb2 as cri
from criserver.runtime import Runtime


async def update_runtime_config(
    runtime: Runtime, request: cri.UpdateRuntimeConfigRequest
) -> cri.UpdateRuntimeConfigResponse:
    """Keep the pod CIDRs for the pods to come; an empty one changes nothing (api.proto)."""
    runtime.network.pod_cidrs.set(request.runtime_config.network_config.pod_cidr)
    return cri.UpdateRuntimeConfigResponse()

"""UpdatePodSandboxResources: the kubelet says that it has resized the pod's cgroup."""

from __future__ import annotations

import hashlib

from api.cri import api_pb2 as cri
from api.errors import InvalidArgumentError
from api.stages import stage
from criserver.container_update import refused
from criserver.resources_merge import merged
from criserver.runtime import Runtime
from podsandbox.plan import oci_resources, own_cgroup_of
from runtimeshim.linux.cgroups import CgroupError
from runtimeshim.linux.cgroups.update import update

OPERATION = "UpdatePodSandboxResources"


async def update_pod_sandbox_resources(
    runtime: Runtime, request: cri.UpdatePodSandboxResourcesRequest
) -> cri.UpdatePodSandboxResourcesResponse:
    """Record the pod's resources and overhead, and apply the former to a cgroup of our own.

    A cgroup that came with the pod is the kubelet's, which has done so already.
    """
    sandbox = runtime.sandboxes.mirror.get(request.pod_sandbox_id)
    if not (request.HasField("resources") or request.HasField("overhead")):
        raise InvalidArgumentError("the request has neither resources nor overhead")
    content = request.SerializeToString(deterministic=True)
    await runtime.operations.run(
        sandbox.id,
        OPERATION,
        lambda: _update(runtime, sandbox.id, request),
        detail=hashlib.sha256(content).hexdigest(),
    )
    return cri.UpdatePodSandboxResourcesResponse()


async def _update(
    runtime: Runtime, sandbox_id: str, request: cri.UpdatePodSandboxResourcesRequest
) -> None:
    sandbox = runtime.sandboxes.mirror.get(sandbox_id)
    config = cri.PodSandboxConfig()
    config.CopyFrom(sandbox.message)
    linux = config.linux
    linux.resources.CopyFrom(merged(linux.resources, request.resources))
    linux.overhead.CopyFrom(merged(linux.overhead, request.overhead))
    hugetlb = runtime.host.hugetlb
    resources = oci_resources(linux.resources, linux.overhead, hugetlb=hugetlb)
    is_ours = not linux.cgroup_parent
    if is_ours and resources and sandbox.state == cri.SANDBOX_READY:
        try:
            with stage("cgroup"):
                own = own_cgroup_of(sandbox_id, runtime.config.cgroup_driver)
                update(runtime.cgroups, own, resources)
        except CgroupError as err:
            raise refused(err) from err
    with stage("record"):
        runtime.sandboxes.configured(sandbox_id, config)

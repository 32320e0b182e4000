"""RemovePodSandbox: stop it, remove its containers, then itself."""

from __future__ import annotations

import asyncio

from api.cri import api_pb2 as cri
from api.stages import stage
from criserver import container_remove, sandbox_stop
from criserver.runtime import Runtime


async def remove_pod_sandbox(
    runtime: Runtime, request: cri.RemovePodSandboxRequest
) -> cri.RemovePodSandboxResponse:
    """Remove a sandbox, by force if need be; one that is not there is no error (api.proto)."""
    sandbox = runtime.sandboxes.mirror.find(request.pod_sandbox_id)
    if sandbox is not None:
        await runtime.operations.run(
            sandbox.id, "RemovePodSandbox", lambda: _remove(runtime, sandbox.id)
        )
    return cri.RemovePodSandboxResponse()


async def _remove(runtime: Runtime, sandbox_id: str) -> None:
    if sandbox_id not in runtime.sandboxes.mirror:  # removed while we waited
        return
    await sandbox_stop.stop(runtime, sandbox_id)
    with stage("containers"):
        await asyncio.gather(
            *(
                container_remove.remove(runtime, container.id)
                for container in runtime.containers.of_sandbox(sandbox_id)
            )
        )
    with stage("sandbox"):
        await runtime.pods.remove(sandbox_id)
    runtime.sandboxes.remove(sandbox_id)
    runtime.operations.forget(sandbox_id)

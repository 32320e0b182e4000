"""StopPodSandbox: end the containers, detach the network, release the namespaces."""

from __future__ import annotations

import asyncio
import time

from api.cri import api_pb2 as cri
from api.stages import stage
from criserver.container_stop import kill_container
from criserver.runtime import Runtime
from podsandbox.lifecycle import SandboxRuntime


async def stop_pod_sandbox(
    runtime: Runtime, request: cri.StopPodSandboxRequest
) -> cri.StopPodSandboxResponse:
    """Stop a sandbox; one that is stopped, or not there, is no error (api.proto)."""
    sandbox = runtime.sandboxes.mirror.find(request.pod_sandbox_id)
    if sandbox is not None:
        await runtime.operations.run(
            sandbox.id, "StopPodSandbox", lambda: stop(runtime, sandbox.id)
        )
    return cri.StopPodSandboxResponse()


async def stop(runtime: Runtime, sandbox_id: str) -> None:
    """Stop a sandbox as a part of another operation; idempotent.

    It is NOTREADY from the first moment, so that no container can be created in it meanwhile;
    when the network cannot be detached a retry tries that again.
    """
    if sandbox_id not in runtime.sandboxes.mirror:  # removed while we waited
        return
    sandbox = runtime.sandboxes.stopped(sandbox_id, time.time_ns())
    runtime.sandbox_watch.remove(sandbox_id)
    with stage("containers"):
        await asyncio.gather(
            *(
                kill_container(runtime, container.id)
                for container in runtime.containers.of_sandbox(sandbox_id)
                if container.made
            )
        )
    with stage("sandbox"):
        values = sandbox.runtime_values or {}
        await runtime.pods.stop(sandbox_id, sandbox.message, SandboxRuntime(**values))

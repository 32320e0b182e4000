"""RemoveContainer: kill, then remove the writable layer, the bundle and the record."""

from __future__ import annotations

import asyncio

from api.cri import api_pb2 as cri
from api.stages import stage
from criserver.bundle import remove_bundle, remove_flat_bundle
from criserver.container_stop import kill
from criserver.runtime import Runtime


async def remove_container(
    runtime: Runtime, request: cri.RemoveContainerRequest
) -> cri.RemoveContainerResponse:
    """Remove a container, by force if it runs; one that is not there is no error (api.proto)."""
    container = runtime.containers.mirror.find(request.container_id)
    if container is not None:
        await remove(runtime, container.id)
    return cri.RemoveContainerResponse()


async def remove(runtime: Runtime, container_id: str) -> None:
    """Remove a container as an operation of its own; what is under way on it comes to its end."""
    if runtime.operations.in_flight(container_id, "StopContainer"):
        runtime.stops.request(container_id, 0)
    await runtime.operations.run(
        container_id, "RemoveContainer", lambda: _remove(runtime, container_id)
    )


async def _remove(runtime: Runtime, container_id: str) -> None:
    if container_id not in runtime.containers.mirror:  # removed, or undone, while we waited
        return
    await kill(runtime, container_id)
    with stage("rootfs"):
        await runtime.images.remove_rootfs(container_id)
    with stage("bundle"):
        bundle = runtime.bundle(container_id)
        if not remove_flat_bundle(bundle):
            await asyncio.to_thread(remove_bundle, bundle)
    runtime.containers.remove(container_id)
    runtime.operations.forget(container_id)

"""StopContainer: the stop signal once, then SIGKILL after the grace period."""

from __future__ import annotations

import signal

from api.cri import api_pb2 as cri
from api.errors import InternalError, InvalidArgumentError
from api.stages import stage, waiting_for
from criserver import waits
from criserver.runtime import Runtime
from criserver.store.containers import State
from runtimeshim.client import ShimError

# A grace period that ends after the machine; it keeps the event loop's clock from overflowing.
MAX_TIMEOUT = 100 * 365 * 24 * 3600


async def stop_container(
    runtime: Runtime, request: cri.StopContainerRequest
) -> cri.StopContainerResponse:
    """Stop a container; one that is not running, or not there, is no error (api.proto)."""
    if request.timeout < 0:
        raise InvalidArgumentError(f"timeout is {request.timeout}: it must be 0 or more seconds")
    container = runtime.containers.mirror.find(request.container_id)
    if container is not None:
        timeout = min(request.timeout, MAX_TIMEOUT)
        await runtime.operations.run(
            container.id,
            "StopContainer",
            lambda: _stop(runtime, container.id, timeout),
            joined=lambda: runtime.stops.request(container.id, timeout),
        )
    return cri.StopContainerResponse()


async def kill_container(runtime: Runtime, container_id: str) -> None:
    """End a container now, whether it is created or running; a grace period under way is cut."""
    if runtime.operations.in_flight(container_id, "StopContainer"):
        runtime.stops.request(container_id, 0)
    await runtime.operations.run(container_id, "KillContainer", lambda: kill(runtime, container_id))


async def kill(runtime: Runtime, container_id: str) -> None:
    """Send SIGKILL and wait until the end is recorded; part of another operation."""
    with stage("kill"):
        waiting_for(lambda: waits.killed(runtime, container_id))
        await _signal(runtime, container_id, signal.SIGKILL)
        await runtime.shims.ended(container_id)


async def _stop(runtime: Runtime, container_id: str, timeout: float) -> None:
    runtime.stops.request(container_id, timeout)
    try:
        if _is_running(runtime, container_id) and not runtime.stops.over(container_id):
            await _ask_to_stop(runtime, container_id)
        if _is_running(runtime, container_id):
            await kill(runtime, container_id)
    finally:
        runtime.stops.done(container_id)


async def _ask_to_stop(runtime: Runtime, container_id: str) -> None:
    """Send the stop signal, unless it has been sent before, and wait for the grace period."""
    container = runtime.containers.mirror.exact(container_id)
    if not container.stop_signalled:
        with stage("signal"):
            await _signal(runtime, container_id, container.stop_signal)
            runtime.containers.stop_signalled(container_id)
    with stage("grace"):
        waiting_for(lambda: waits.signalled(runtime, container_id, container.stop_signal))
        async with runtime.stops.grace(container_id):
            await runtime.shims.ended(container_id)


async def _signal(runtime: Runtime, container_id: str, number: int) -> None:
    """Send a signal to the container's init; one that has ended meanwhile needs none."""
    try:
        await runtime.shims.signal(container_id, number)
    except ShimError as err:
        raise InternalError(f"signal {number} to {container_id}: {err}") from err


def _is_running(runtime: Runtime, container_id: str) -> bool:
    if container_id not in runtime.containers.mirror:
        return False
    return runtime.containers.mirror.exact(container_id).state is State.RUNNING

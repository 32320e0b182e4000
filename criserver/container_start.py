"""StartContainer: let the created init execve."""

from __future__ import annotations

import logging
import time

from api.cri import api_pb2 as cri
from api.errors import FailedPreconditionError, InternalError, InvalidArgumentError
from api.stages import stage, waiting_for
from criserver import waits
from criserver.container_stop import kill
from criserver.runtime import Runtime
from criserver.store.containers import State
from runtimeshim.client import ShimError, StartError

log = logging.getLogger(__name__)


async def start_container(
    runtime: Runtime, request: cri.StartContainerRequest
) -> cri.StartContainerResponse:
    """Start a created container. A failure leaves it EXITED with StartError and 128."""
    container = runtime.containers.mirror.get(request.container_id)
    await runtime.operations.run(
        container.id, "StartContainer", lambda: _start(runtime, container.id)
    )
    return cri.StartContainerResponse()


async def _start(runtime: Runtime, container_id: str) -> None:
    container = runtime.containers.mirror.get(container_id)
    if container.state is not State.CREATED:
        raise FailedPreconditionError(
            f"container {container_id} is {container.state.name}; only CREATED can be started"
        )
    _check_sandbox(runtime, container.sandbox_id)
    shim = runtime.shims.get(container_id)
    started_at = time.time_ns()
    try:
        if shim is None:  # init died while it waited: its exit is being recorded
            raise StartError(f"the init of container {container_id} is gone")
        with stage("start"):
            waiting_for(lambda: waits.creator(runtime, container_id))
            await shim.start()
    except ShimError as err:
        await _failed(runtime, container_id, err)
    else:
        runtime.containers.started(container_id, started_at)


def _check_sandbox(runtime: Runtime, sandbox_id: str) -> None:
    if runtime.sandboxes.mirror.get(sandbox_id).state != cri.SANDBOX_READY:
        raise FailedPreconditionError(f"the pod sandbox {sandbox_id} is not ready")


async def _failed(runtime: Runtime, container_id: str, error: ShimError) -> None:
    runtime.containers.start_failed(container_id, str(error), time.time_ns())
    await kill(runtime, container_id)
    # What the caller asked to run cannot be run; anything else is the system's fault.
    kind = InvalidArgumentError if error.kind == "start" else InternalError
    raise kind(f"container {container_id} cannot be started: {error}") from error

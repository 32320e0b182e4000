"""ReopenContainerLog: the kubelet has renamed the log file and wants a new one."""

from __future__ import annotations

from api.cri import api_pb2 as cri
from api.errors import FailedPreconditionError, InternalError
from criserver.runtime import Runtime
from criserver.store.containers import State
from runtimeshim.client import ShimError


async def reopen_container_log(
    runtime: Runtime, request: cri.ReopenContainerLogRequest
) -> cri.ReopenContainerLogResponse:
    """Reopen the log; the file exists on return, and on an error the old one is written on."""
    container = runtime.containers.mirror.get(request.container_id)
    shim = runtime.shims.get(container.id)
    if container.state is not State.RUNNING or shim is None:
        raise FailedPreconditionError(
            f"container {container.id} is {container.state.name}: only a RUNNING one's log is open"
        )
    try:
        await shim.reopen_log()
    except ShimError as err:
        raise InternalError(f"the log {container.log_path} cannot be reopened: {err}") from err
    return cri.ReopenContainerLogResponse()

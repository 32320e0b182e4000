"""PortForward: a URL at which a client connects to TCP ports of a pod's localhost."""

from __future__ import annotations

import socket

from api.cri import api_pb2 as cri
from api.errors import FailedPreconditionError, InternalError, InvalidArgumentError
from criserver.runtime import Runtime
from criserver.store.sandboxes import Sandbox
from criserver.streaming.port_forward import MAX_PORT, Forward
from podsandbox.sockets import WORKER_SECONDS, connect_localhost
from runtimeshim.client import SpawnerError, WorkerError


async def port_forward(
    runtime: Runtime, request: cri.PortForwardRequest
) -> cri.PortForwardResponse:
    """Return the URL, which is good for one client within a minute."""
    if not request.pod_sandbox_id:
        raise InvalidArgumentError("pod_sandbox_id is missing")
    sandbox = _ready(runtime, request.pod_sandbox_id)
    for port in request.port:
        _check(sandbox, port)

    async def connect(port: int) -> socket.socket:
        return await connect_to_pod(runtime, sandbox.id, port)

    forward = Forward(f"port-forward to pod {sandbox.id}", tuple(request.port), connect)
    return cri.PortForwardResponse(url=runtime.streams.url("portforward", forward))


async def connect_to_pod(runtime: Runtime, reference: str, port: int) -> socket.socket:
    """Return a connection to a TCP port of a pod's localhost.

    Raises NotFoundError, FailedPreconditionError when the pod is not ready or nobody listens,
    InvalidArgumentError for what is no TCP port of it, InternalError.
    """
    sandbox = _ready(runtime, reference)
    _check(sandbox, port)
    try:
        return await connect_localhost(runtime.spawner, _netns(sandbox), port)
    except (WorkerError, SpawnerError, TimeoutError) as err:
        reason = str(err) or f"nothing for {WORKER_SECONDS:.0f} s"
        raise InternalError(f"no socket in the pod's network namespace: {reason}") from err
    except OSError as err:
        raise FailedPreconditionError(err.strerror or str(err)) from err


def _ready(runtime: Runtime, reference: str) -> Sandbox:
    sandbox = runtime.sandboxes.mirror.get(reference)
    if sandbox.state != cri.SANDBOX_READY:
        raise FailedPreconditionError(f"pod sandbox {sandbox.id} is not ready")
    return sandbox


def _netns(sandbox: Sandbox) -> str | None:
    """Return the path of the pod's network namespace; None for a pod on the host's network."""
    options = sandbox.message.linux.security_context.namespace_options
    if options.network == cri.NODE:
        return None
    path: str = (sandbox.runtime_values or {})["namespaces"]["network"]
    return path


def _check(sandbox: Sandbox, port: int) -> None:
    """Refuse what is no TCP port, or one that the pod declares for UDP or SCTP.

    Raises InvalidArgumentError.
    """
    if not 1 <= port <= MAX_PORT:
        raise InvalidArgumentError(f"port {port} is not a TCP port (1 to {MAX_PORT})")
    mappings = [m for m in sandbox.message.port_mappings if m.container_port == port]
    protocols = {mapping.protocol for mapping in mappings}
    if protocols and cri.TCP not in protocols:
        names = ", ".join(sorted(cri.Protocol.Name(protocol) for protocol in protocols))
        raise InvalidArgumentError(
            f"port {port} of the pod is declared for {names}: port-forward carries TCP only"
        )

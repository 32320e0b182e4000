"""Attach: a URL at which a client joins the streams of a container's own process."""

from __future__ import annotations

from api.cri import api_pb2 as cri
from criserver.container_exec import check_streams, command_request
from criserver.runtime import Runtime
from criserver.streaming.remote_command import Command
from criserver.streaming.session import AttachSession, Session, Wanted


async def attach(runtime: Runtime, request: cri.AttachRequest) -> cri.AttachResponse:
    """Return the URL, which is good for one client within a minute.

    The container may be created only: whoever attaches before the start misses nothing. Where its
    stdin stays open for the next client (no stdin_once, or a terminal), the end of a client's input
    is its detaching.
    """
    check_streams(request)
    container = runtime.containers.mirror.get(request.container_id)
    runtime.find_shim(container.id)  # raises FailedPreconditionError
    config = container.message_config
    wanted = Wanted(request.stdin, request.stdout, request.stderr)

    async def start() -> Session:
        shim, _ = runtime.find_shim(container.id)
        return await AttachSession.open(shim, wanted, terminal=config.tty)

    command = Command(
        f"attach to container {container.id}",
        start,
        has_exit_code=False,
        ends_with_stdin=config.stdin and (config.tty or not config.stdin_once),
    )
    return cri.AttachResponse(url=runtime.streams.url("attach", command_request(command, request)))

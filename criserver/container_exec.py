"""Exec: a URL at which a client runs a command in a container, with its streams."""

from __future__ import annotations

from api.cri import api_pb2 as cri
from api.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from criserver.bundle import read_spec
from criserver.exec_process import exec_process
from criserver.runtime import Runtime
from criserver.store.containers import State
from criserver.streaming.endpoints import CommandRequest
from criserver.streaming.remote_command import Command
from criserver.streaming.session import ExecSession, Session, Wanted


async def exec_(runtime: Runtime, request: cri.ExecRequest) -> cri.ExecResponse:
    """Return the URL, which is good for one client within a minute."""
    check_streams(request)
    container = runtime.containers.mirror.get(request.container_id)
    if container.state is not State.RUNNING:
        raise FailedPreconditionError(
            f"container {container.id} is {container.state.name}, not RUNNING"
        )
    wanted = Wanted(request.stdin, request.stdout, request.stderr)
    cmd = list(request.cmd)
    exec_process({}, cmd, terminal=request.tty)  # raises what is wrong with the command

    async def start() -> Session:
        shim, bundle = runtime.find_shim(container.id)
        spec = read_spec(bundle)
        if spec is None:
            raise NotFoundError("bundle of container", container.id)
        process = exec_process(spec["process"], cmd, terminal=request.tty)
        return await ExecSession.open(shim, process, wanted)

    command = Command(f"exec in container {container.id}", start, has_exit_code=True)
    return cri.ExecResponse(url=runtime.streams.url("exec", command_request(command, request)))


def check_streams(request: cri.ExecRequest | cri.AttachRequest) -> None:
    """Check the streams as api.proto demands. Raises InvalidArgumentError."""
    if not request.container_id:
        raise InvalidArgumentError("container_id is missing")
    if request.tty and request.stderr:
        raise InvalidArgumentError("tty and stderr cannot both be set: a terminal has one output")
    if not (request.stdin or request.stdout or request.stderr):
        raise InvalidArgumentError("one of stdin, stdout and stderr must be set")


def command_request(
    command: Command, request: cri.ExecRequest | cri.AttachRequest
) -> CommandRequest:
    """Return what the URL's token stands for."""
    return CommandRequest(
        command,
        stdin=request.stdin,
        stdout=request.stdout,
        stderr=request.stderr,
        tty=request.tty,
    )

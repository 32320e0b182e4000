"""ExecSync: run a command in a container and return its output and exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import dataclass, field

from api.cri import api_pb2 as cri
from api.errors import (
    CRIError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
)
from criserver.bundle import read_spec
from criserver.exec_process import exec_process
from criserver.runtime import Runtime
from criserver.server_limits import MAX_MESSAGE
from criserver.store.containers import Container, State
from criserver.streaming.session import SHIM_ERRORS
from runtimeshim.client import Exec, ShimError, StartError, read_to_end

log = logging.getLogger(__name__)

# What is kept of each stream, as the peers have it; more is read, so that the command does not
# block, and dropped.
MAX_STREAM = 16 * 1024 * 1024

# The two streams together have to fit in one message beside the exit code and the framing.
MAX_OUTPUT = MAX_MESSAGE - 1024

# After SIGKILL an exec'd process ends at once, or hangs in the kernel: then nobody waits for it.
KILL_SECONDS = 5.0


@dataclass
class Output:
    """The read ends of a command's pipes and what has come out of them."""

    fds: tuple[int, int]
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)

    async def drain(self) -> None:
        """Read both pipes until nobody holds their other ends."""
        await asyncio.gather(
            read_to_end(self.fds[0], self.stdout, MAX_STREAM),
            read_to_end(self.fds[1], self.stderr, MAX_STREAM),
        )


async def exec_sync(runtime: Runtime, request: cri.ExecSyncRequest) -> cri.ExecSyncResponse:
    """Run a command to its end.

    Each stream is cut at 16 MiB. If both together exceed what fits in a message, the longer one is
    cut, down to half of that at most. After `timeout` seconds (0: never) the command and what it
    started are killed and the answer is DEADLINE_EXCEEDED; the same when the caller goes away.
    A child of the command that keeps the output open is waited for exec_drain_seconds.
    """
    container = runtime.containers.mirror.get(request.container_id)
    if request.timeout < 0:
        raise InvalidArgumentError(f"timeout is {request.timeout}: it must be 0 or more seconds")
    with contextlib.ExitStack() as stack:
        started, output = await _start(runtime, container, list(request.cmd), stack)
        reading = asyncio.create_task(output.drain())
        try:
            async with asyncio.timeout(request.timeout or None):
                code = await started.wait()
            await asyncio.wait({reading}, timeout=runtime.config.containers.exec_drain_seconds)
        except TimeoutError as err:
            await _kill(started)
            raise DeadlineExceededError(
                f"command {request.cmd[0]!r} in container {container.id} was killed "
                f"after its timeout of {request.timeout} s"
            ) from err
        except asyncio.CancelledError:
            await _kill(started)
            raise
        except ShimError as err:
            raise _error(container, err) from err
        finally:
            reading.cancel()
            await asyncio.wait({reading})
    stdout, stderr = fit(output.stdout, output.stderr, MAX_OUTPUT)
    return cri.ExecSyncResponse(stdout=stdout, stderr=stderr, exit_code=code)


def fit(stdout: bytearray, stderr: bytearray, limit: int) -> tuple[bytes, bytes]:
    """Cut the longer stream, and both if need be, so that together they are within `limit`."""
    half = limit // 2
    keep_stdout = min(len(stdout), max(half, limit - len(stderr)))
    keep_stderr = min(len(stderr), limit - keep_stdout)
    return bytes(memoryview(stdout)[:keep_stdout]), bytes(memoryview(stderr)[:keep_stderr])


async def _start(
    runtime: Runtime, container: Container, cmd: list[str], stack: contextlib.ExitStack
) -> tuple[Exec, Output]:
    """Start the command on two pipes, whose read ends are closed with `stack`."""
    shim = runtime.shims.get(container.id)
    spec = read_spec(runtime.bundle(container.id))
    if container.state is not State.RUNNING or shim is None or spec is None:
        raise FailedPreconditionError(
            f"container {container.id} is {container.state.name}, not RUNNING"
        )
    process = exec_process(spec["process"], cmd, terminal=False)
    with contextlib.ExitStack() as theirs:
        stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        theirs.callback(os.close, stdin)
        stdout_r, stdout_w = _pipe(stack, theirs)
        stderr_r, stderr_w = _pipe(stack, theirs)
        try:
            started = await shim.exec(process, (stdin, stdout_w, stderr_w))
        except StartError as err:
            raise InvalidArgumentError(
                f"command {cmd[0]!r} cannot be started in container {container.id}: {err}"
            ) from err
        except ShimError as err:
            raise _error(container, err) from err
    return started, Output((stdout_r, stderr_r))


def _error(container: Container, err: ShimError) -> CRIError:
    """Return what a client may see of the shim's refusal."""
    return SHIM_ERRORS.get(err.kind, InternalError)(f"exec in container {container.id}: {err}")


def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read, False)
    ours.callback(os.close, read)
    theirs.callback(os.close, write)
    return read, write


async def _kill(started: Exec) -> None:
    """Kill the command and what it started, and wait a moment for its end."""
    try:
        await started.kill(signal.SIGKILL)
        async with asyncio.timeout(KILL_SECONDS):
            await started.wait()
    except (ShimError, TimeoutError) as err:
        log.warning("an exec'd process (pid %d) was not seen to end: %s", started.pid, err)

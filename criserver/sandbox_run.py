"""RunPodSandbox: reserve the name, pin the namespaces, attach the network."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from contextlib import AsyncExitStack
from pathlib import Path

from api.cri import api_pb2 as cri
from api.errors import InvalidArgumentError
from api.stages import stage
from criserver.made_once import holder_of, join_or_claim
from criserver.runtime import Runtime, new_id
from criserver.store.sandboxes import sandbox_name

OPERATION = "RunPodSandbox"

LOG_DIRECTORY_MODE = 0o755  # the kubelet's and the log collectors'


async def run_pod_sandbox(
    runtime: Runtime, request: cri.RunPodSandboxRequest
) -> cri.RunPodSandboxResponse:
    """Create a sandbox and make it READY; the same name again joins the operation in flight."""
    config = request.config
    _check(runtime, request)
    name = sandbox_name(config.metadata)
    holder = holder_of(runtime.operations, OPERATION, runtime.sandboxes, name)
    if holder is not None:
        if holder.made and holder.state != cri.SANDBOX_READY:
            runtime.operations.claim(holder.id)  # it is of no use to a retry
        sandbox_id = await join_or_claim(runtime.operations, OPERATION, holder)
    else:
        sandbox = runtime.sandboxes.reserve(new_id(), config, request.runtime_handler)
        sandbox_id = await runtime.operations.run(
            sandbox.id, OPERATION, lambda: _run(runtime, sandbox.id, config)
        )
    return cri.RunPodSandboxResponse(pod_sandbox_id=sandbox_id)


def _check(runtime: Runtime, request: cri.RunPodSandboxRequest) -> None:
    metadata = request.config.metadata
    if not (metadata.name and metadata.namespace and metadata.uid):
        raise InvalidArgumentError("config.metadata needs name, namespace and uid")
    if any("\0" in text for text in (metadata.name, metadata.namespace, metadata.uid)):
        raise InvalidArgumentError("config.metadata contains a NUL byte")
    handlers = runtime.config.handlers
    if request.runtime_handler and request.runtime_handler not in handlers:
        raise InvalidArgumentError(
            f"runtime handler {request.runtime_handler[:80]!r} is not configured; "
            f"known: {', '.join(map(repr, handlers))} and '' (the default)"
        )
    options = request.config.linux.security_context.namespace_options
    wants_user = options.HasField("userns_options") and options.userns_options.mode == cri.POD
    if wants_user and request.runtime_handler in runtime.config.runtimes:
        raise InvalidArgumentError(
            f"runtime handler {request.runtime_handler!r}: an OCI binary gets no user namespace; "
            f"{runtime.config.default_runtime!r} does"
        )
    directory = request.config.log_directory
    if directory and (not directory.startswith("/") or "\0" in directory):
        raise InvalidArgumentError(f"log_directory {directory[:256]!r} is not an absolute path")


def _make_log_directory(path: Path) -> None:
    try:
        path.mkdir(mode=LOG_DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as err:
        shown = str(path)[:256]
        raise InvalidArgumentError(
            f"log_directory {shown!r} cannot be made: {err.strerror}"
        ) from err


async def _run(runtime: Runtime, sandbox_id: str, config: cri.PodSandboxConfig) -> str:
    created_at = time.time_ns()
    async with AsyncExitStack() as undo:
        undo.callback(runtime.sandboxes.remove, sandbox_id)
        if config.log_directory:
            await asyncio.to_thread(_make_log_directory, Path(config.log_directory))
        with stage("sandbox"):
            made = await runtime.pods.create(sandbox_id, config)
        undo.push_async_callback(runtime.pods.remove, sandbox_id)
        sandbox = runtime.sandboxes.created(sandbox_id, dataclasses.asdict(made), created_at)
        undo.pop_all()
    runtime.sandbox_watch.add(sandbox)
    return sandbox_id

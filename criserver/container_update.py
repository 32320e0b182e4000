"""UpdateContainerResources: new limits for a container in place, all of them or none."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from typing import Any

from api.cri import api_pb2 as cri
from api.errors import CRIError, FailedPreconditionError, InternalError, InvalidArgumentError
from api.stages import stage
from criserver.bundle import read_spec, replace_spec
from criserver.container_spec import container_cgroup, limits, oom_score_adj
from criserver.resources_merge import merged
from criserver.runtime import Runtime
from criserver.store.containers import Container, State
from runtimeshim.linux.cgroups import CgroupError
from runtimeshim.linux.cgroups.files import UNACCEPTABLE
from runtimeshim.linux.cgroups.update import update
from runtimeshim.linux.processes import set_oom_score_adj

log = logging.getLogger(__name__)

OPERATION = "UpdateContainerResources"

# What the kernel says of values that no machine, or not this one, can take.
_WRONG = (errno.ENOENT, errno.EACCES, errno.ENOSPC, *UNACCEPTABLE)


async def update_container_resources(
    runtime: Runtime, request: cri.UpdateContainerResourcesRequest
) -> cri.UpdateContainerResourcesResponse:
    """Change limits; what is 0 or "" stays. Of a container that has exited it is only recorded."""
    container = runtime.containers.mirror.get(request.container_id)
    if not request.HasField("linux"):
        raise InvalidArgumentError("linux: the request has no limits to set")
    # Two updates with other values are two operations, the same again is a retry.
    content = request.SerializeToString(deterministic=True)
    await runtime.operations.run(
        container.id,
        OPERATION,
        lambda: _update(runtime, container.id, request.linux),
        detail=hashlib.sha256(content).hexdigest(),
    )
    return cri.UpdateContainerResourcesResponse()


async def _update(runtime: Runtime, container_id: str, wanted: cri.LinuxContainerResources) -> None:
    container = runtime.containers.mirror.get(container_id)
    config = cri.ContainerConfig()
    config.CopyFrom(container.message_config)
    config.linux.resources.CopyFrom(merged(config.linux.resources, wanted))
    score = oom_score_adj(wanted.oom_score_adj)
    old = limits(container.message_config.linux.resources, runtime.host)
    new = limits(config.linux.resources, runtime.host)
    path = _cgroup(runtime, container)
    before: dict[str, Any] = {}
    if container.state is not State.EXITED:
        with stage("cgroup"):
            before = _apply(runtime, path, new)
    try:
        with stage("record"):
            _rewrite(runtime, container_id, new, score)
            runtime.containers.configured(container_id, config)
    except BaseException as err:
        _undo(runtime, container_id, path, before, old)
        if isinstance(err, OSError):
            raise InternalError(f"the new limits cannot be recorded: {err}") from err
        raise
    if score and container.state is not State.EXITED:
        _set_oom_score_adj(runtime, container_id, path, score)


def _set_oom_score_adj(runtime: Runtime, container_id: str, path: str, score: int) -> None:
    """Set it for all processes; where the kernel refuses it, the old one stays, as at the start."""
    try:
        set_oom_score_adj(runtime.cgroups.pids(path), score)
    except OSError as err:
        log.warning("container %s: oom_score_adj %d is refused: %s", container_id, score, err)


def _cgroup(runtime: Runtime, container: Container) -> str:
    sandbox = runtime.sandboxes.mirror.exact(container.sandbox_id)
    parent = str((sandbox.runtime_values or {}).get("cgroup_parent", ""))
    return container_cgroup(parent, container.id)


def _apply(runtime: Runtime, path: str, resources: dict[str, Any]) -> dict[str, Any]:
    """Write the limits; returns those before. A failure has restored them."""
    if "memory" in resources:
        # On v2 a limit below the usage would not be refused but call the OOM killer.
        memory = {**resources["memory"], "checkBeforeUpdate": True}
        resources = {**resources, "memory": memory}
    try:
        return update(runtime.cgroups, path, resources)
    except CgroupError as err:
        _, directory = runtime.cgroups.directories(path)[0]
        if not os.path.exists(directory):  # the container has ended meanwhile
            return {}
        raise refused(err) from err


def _undo(
    runtime: Runtime, container_id: str, path: str, before: dict[str, Any], old: dict[str, Any]
) -> None:
    """Restore what an update has changed that could not be recorded."""
    try:
        if before:
            runtime.cgroups.apply(path, before)
        _rewrite(runtime, container_id, old)
    except OSError as err:
        log.warning("container %s: the limits before are not restored: %s", container_id, err)


def _rewrite(
    runtime: Runtime, container_id: str, resources: dict[str, Any], score: int = 0
) -> None:
    """Put the limits into the bundle's spec: whoever reads it finds what holds."""
    bundle = runtime.bundle(container_id)
    spec = read_spec(bundle)
    if spec is None:  # the machine has been restarted
        return
    own = spec["linux"]["resources"]
    kept = {name: own[name] for name in ("devices", "pids") if name in own}
    spec["linux"]["resources"] = kept | resources
    if score:
        spec["process"]["oomScoreAdj"] = score
    replace_spec(bundle, spec)


def refused(error: CgroupError) -> CRIError:
    """Return the error for limits that the kernel does not take."""
    said = "; ".join([f"the limits cannot be set: {error}", *getattr(error, "__notes__", ())])
    if error.errno == errno.EBUSY:
        return FailedPreconditionError(said)
    return InvalidArgumentError(said) if error.errno in _WRONG else InternalError(said)

"""ContainerStatus: the state, what was asked for, and, verbose, what was made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.json_format import MessageToDict

from api.cri import api_pb2 as cri
from criserver import signals
from criserver.bundle import read_spec
from criserver.runtime import Runtime
from criserver.store.containers import CRI_STATES, Container, State

# An image by its id, and the name that a user gave it -> ImageService.repo_digest.
RepoDigest = Callable[[str, str], str]


async def container_status(
    runtime: Runtime, request: cri.ContainerStatusRequest
) -> cri.ContainerStatusResponse:
    """Return a container's status. NotFoundError is the one error that the kubelet understands."""
    container = runtime.containers.mirror.get(request.container_id)
    info = await _info(runtime, container) if request.verbose else {}
    return cri.ContainerStatusResponse(
        status=status_of(container, runtime.images.repo_digest), info=info
    )


def status_of(container: Container, repo_digest: RepoDigest) -> cri.ContainerStatus:
    """Return a container's status from its record, and what `repo_digest` says of its image."""
    config = container.message_config
    image = _image(config.image)
    exited = container.state is State.EXITED
    return cri.ContainerStatus(
        id=container.id,
        metadata=config.metadata,
        state=CRI_STATES[container.state],
        created_at=container.created_at,
        # One that never ran has an end and, as every container that has ended, a start.
        started_at=container.started_at or container.finished_at,
        finished_at=container.finished_at,
        exit_code=container.exit_code,
        image=image,
        # The kubelet shows it as the imageID of the pod's status; a digest that others can pull.
        image_ref=repo_digest(container.image_id, image.image),
        image_id=container.image_id,
        reason=container.reason if exited else "",
        message=container.message if exited else "",
        labels=config.labels,
        annotations=config.annotations,
        mounts=config.mounts,
        log_path=container.log_path,
        resources=_resources(config),
        user=_user(container),
        stop_signal=_stop_signal(container),
    )


def newest_first(
    containers: Iterable[Container], repo_digest: RepoDigest
) -> list[cri.ContainerStatus]:
    """Return the statuses of a sandbox's containers, the newest first.

    With EventedPLEG a kubelet takes the first of a name for the one that counts, and gives the next
    the attempt after it (kubelet: GetPodStatus, FindContainerStatusByName).
    """
    ordered = sorted(containers, key=lambda each: each.created_at, reverse=True)
    return [status_of(each, repo_digest) for each in ordered]


def _image(spec: cri.ImageSpec) -> cri.ImageSpec:
    """Return the image as the user named it: what the kubelet shows in the pod's status."""
    image = cri.ImageSpec()
    image.CopyFrom(spec)
    image.image = spec.user_specified_image or spec.image
    return image


def _resources(config: cri.ContainerConfig) -> cri.ContainerResources | None:
    if not config.linux.HasField("resources"):
        return None
    return cri.ContainerResources(linux=config.linux.resources)


def _user(container: Container) -> cri.ContainerUser:
    user = container.user_values
    return cri.ContainerUser(
        linux=cri.LinuxContainerUser(
            uid=user["uid"], gid=user["gid"], supplemental_groups=user["groups"]
        )
    )


def _stop_signal(container: Container) -> cri.Signal:
    return container.message_config.stop_signal or signals.cri_signal(container.stop_signal)


async def _info(runtime: Runtime, container: Container) -> dict[str, str]:
    info: dict[str, Any] = {
        "sandboxID": container.sandbox_id,
        "pid": container.pid,
        "runtimeType": runtime.config.default_runtime,
        "config": MessageToDict(container.message_config, preserving_proto_field_name=True),
        "runtimeSpec": read_spec(runtime.bundle(container.id)),
    }
    if (shim := runtime.shims.get(container.id)) is not None:
        info["shimProtocol"] = shim.protocol
    timings = runtime.operations.timings(container.id)
    current = runtime.operations.where(container.id)
    return {
        "info": json.dumps(info),
        "timings": json.dumps(timings),
        "explain": json.dumps(await runtime.explainer.explain(container.id)),
        **({"operation": current} if current else {}),
    }

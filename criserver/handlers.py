"""Which function answers which RPC. What is not named here answers UNIMPLEMENTED."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from criserver import (
    container_attach,
    container_create,
    container_exec,
    container_exec_sync,
    container_list,
    container_log,
    container_remove,
    container_start,
    container_status,
    container_stop,
    image,
    sandbox_list,
    sandbox_port_forward,
    sandbox_remove,
    sandbox_run,
    sandbox_status,
    sandbox_stop,
    status,
)
from criserver.runtime import Runtime

FUNCTIONS: dict[str, Callable[[Runtime, Any], Awaitable[Any]]] = {
    "Version": status.version,
    "Status": status.status,
    "RuntimeConfig": status.runtime_config,
    "RunPodSandbox": sandbox_run.run_pod_sandbox,
    "StopPodSandbox": sandbox_stop.stop_pod_sandbox,
    "RemovePodSandbox": sandbox_remove.remove_pod_sandbox,
    "PodSandboxStatus": sandbox_status.pod_sandbox_status,
    "ListPodSandbox": sandbox_list.list_pod_sandbox,
    "CreateContainer": container_create.create_container,
    "StartContainer": container_start.start_container,
    "StopContainer": container_stop.stop_container,
    "RemoveContainer": container_remove.remove_container,
    "ContainerStatus": container_status.container_status,
    "ListContainers": container_list.list_containers,
    "ExecSync": container_exec_sync.exec_sync,
    "Exec": container_exec.exec_,
    "Attach": container_attach.attach,
    "PortForward": sandbox_port_forward.port_forward,
    "ReopenContainerLog": container_log.reopen_container_log,
    "PullImage": image.pull_image,
    "ListImages": image.list_images,
    "ImageStatus": image.image_status,
    "RemoveImage": image.remove_image,
    "ImageFsInfo": image.image_fs_info,
}


def handlers(runtime: Runtime) -> dict[str, Callable[[Any], Awaitable[Any]]]:
    """Return the handlers of one daemon by method name."""
    return {name: partial(function, runtime) for name, function in FUNCTIONS.items()}

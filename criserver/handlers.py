"""Which function answers which RPC. What is not named here answers UNIMPLEMENTED."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

from criserver import (
    checkpoints,
    container_attach,
    container_create,
    container_events,
    container_exec,
    container_exec_sync,
    container_list,
    container_log,
    container_remove,
    container_start,
    container_stats,
    container_status,
    container_stop,
    container_update,
    image,
    runtime_config_update,
    sandbox_list,
    sandbox_metrics,
    sandbox_port_forward,
    sandbox_remove,
    sandbox_run,
    sandbox_stats,
    sandbox_status,
    sandbox_stop,
    sandbox_update,
    status,
)
from criserver.runtime import Runtime

FUNCTIONS: dict[str, Callable[[Runtime, Any], Awaitable[Any]]] = {
    "Version": status.version,
    "Status": status.status,
    "RuntimeConfig": status.runtime_config,
    "UpdateRuntimeConfig": runtime_config_update.update_runtime_config,
    "RunPodSandbox": sandbox_run.run_pod_sandbox,
    "StopPodSandbox": sandbox_stop.stop_pod_sandbox,
    "RemovePodSandbox": sandbox_remove.remove_pod_sandbox,
    "PodSandboxStatus": sandbox_status.pod_sandbox_status,
    "ListPodSandbox": sandbox_list.list_pod_sandbox,
    "UpdatePodSandboxResources": sandbox_update.update_pod_sandbox_resources,
    "CreateContainer": container_create.create_container,
    "StartContainer": container_start.start_container,
    "StopContainer": container_stop.stop_container,
    "RemoveContainer": container_remove.remove_container,
    "ContainerStatus": container_status.container_status,
    "ListContainers": container_list.list_containers,
    "ExecSync": container_exec_sync.exec_sync,
    "UpdateContainerResources": container_update.update_container_resources,
    "ContainerStats": container_stats.container_stats,
    "ListContainerStats": container_stats.list_container_stats,
    "PodSandboxStats": sandbox_stats.pod_sandbox_stats,
    "ListPodSandboxStats": sandbox_stats.list_pod_sandbox_stats,
    "ListMetricDescriptors": sandbox_metrics.list_metric_descriptors,
    "ListPodSandboxMetrics": sandbox_metrics.list_pod_sandbox_metrics,
    "CheckpointContainer": checkpoints.checkpoint_container,
    "CheckpointPod": checkpoints.checkpoint_pod,
    "RestorePod": checkpoints.restore_pod,
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

# A client that gets UNIMPLEMENTED from one of a service's streams uses none of them.
STREAMS: dict[str, Callable[[Runtime, Any], AsyncIterator[Any]]] = {
    "StreamPodSandboxes": sandbox_list.stream_pod_sandboxes,
    "StreamContainers": container_list.stream_containers,
    "StreamContainerStats": container_stats.stream_container_stats,
    "StreamPodSandboxStats": sandbox_stats.stream_pod_sandbox_stats,
    "StreamPodSandboxMetrics": sandbox_metrics.stream_pod_sandbox_metrics,
    "StreamImages": image.stream_images,
    "GetContainerEvents": container_events.get_container_events,
}


def handlers(runtime: Runtime) -> dict[str, Callable[[Any], Any]]:
    """Return the handlers of one daemon by method name."""
    functions: dict[str, Callable[[Runtime, Any], Any]] = {**FUNCTIONS, **STREAMS}
    return {name: partial(function, runtime) for name, function in functions.items()}

"""Pods and containers of a daemon under test, in as few words as a test needs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import grpc
import pytest

from api.cri import api_pb2 as cri
from tests.integration import images, leaks
from tests.integration.daemon import RPC_SECONDS, Daemon, wait_for
from tests.integration.registry import Registry

IMAGE = "registry.test/cri/busybox:latest"

_number = itertools.count()


class Pods:
    """What a kubelet would do with the daemon; each call is one RPC, or says otherwise."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._made: set[str] = set()

    def pull(self, registry: Registry, repository: str = "cri/busybox", **config: Any) -> str:
        """Push a busybox image and pull it; returns its name."""
        images.push(registry.address, repository, images.busybox(**config))
        name = f"registry.test/{repository}:latest"
        request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
        self.daemon.images.PullImage(request, timeout=RPC_SECONDS)
        return name

    def config(self, name: str = "", **fields: Any) -> cri.PodSandboxConfig:
        """A pod's config on the host's network: the fastest one."""
        name = name or f"pod{next(_number)}"
        metadata = cri.PodSandboxMetadata(name=name, namespace="tests", uid=f"uid-{name}")
        options = cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER)
        context = cri.LinuxSandboxSecurityContext(namespace_options=options)
        values: dict[str, Any] = {
            "metadata": metadata,
            "log_directory": str(self.daemon.log_directory / name),
            "linux": cri.LinuxPodSandboxConfig(security_context=context),
        }
        return cri.PodSandboxConfig(**{**values, **fields})

    def run_pod(self, config: cri.PodSandboxConfig | None = None, handler: str = "") -> str:
        request = cri.RunPodSandboxRequest(config=config or self.config(), runtime_handler=handler)
        answer = self.daemon.runtime.RunPodSandbox(request, timeout=RPC_SECONDS)
        self._made.add(answer.pod_sandbox_id)
        return str(answer.pod_sandbox_id)

    def create(self, pod: str, *command: str, name: str = "", **fields: Any) -> str:
        """CreateContainer of a busybox that runs `command`."""
        name = name or f"ctr{next(_number)}"
        options = cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER)
        context = cri.LinuxContainerSecurityContext(namespace_options=options)
        values: dict[str, Any] = {
            "metadata": cri.ContainerMetadata(name=name),
            "image": cri.ImageSpec(image=IMAGE),
            "command": command,
            "log_path": f"{name}.log",
            "linux": cri.LinuxContainerConfig(security_context=context),
        }
        request = cri.CreateContainerRequest(
            pod_sandbox_id=pod, config=cri.ContainerConfig(**{**values, **fields})
        )
        return str(self.daemon.runtime.CreateContainer(request, timeout=RPC_SECONDS).container_id)

    def start(self, container: str) -> None:
        request = cri.StartContainerRequest(container_id=container)
        self.daemon.runtime.StartContainer(request, timeout=RPC_SECONDS)

    def run(self, pod: str, *command: str, **fields: Any) -> str:
        """CreateContainer and StartContainer."""
        container = self.create(pod, *command, **fields)
        self.start(container)
        return container

    def stop(self, container: str, timeout: int = 0) -> None:
        request = cri.StopContainerRequest(container_id=container, timeout=timeout)
        self.daemon.runtime.StopContainer(request, timeout=RPC_SECONDS)

    def remove(self, container: str) -> None:
        request = cri.RemoveContainerRequest(container_id=container)
        self.daemon.runtime.RemoveContainer(request, timeout=RPC_SECONDS)

    def stop_pod(self, pod: str) -> None:
        request = cri.StopPodSandboxRequest(pod_sandbox_id=pod)
        self.daemon.runtime.StopPodSandbox(request, timeout=RPC_SECONDS)

    def remove_pod(self, pod: str) -> None:
        request = cri.RemovePodSandboxRequest(pod_sandbox_id=pod)
        self.daemon.runtime.RemovePodSandbox(request, timeout=RPC_SECONDS)

    def status(self, container: str) -> cri.ContainerStatus:
        return self.verbose_status(container).status

    def verbose_status(self, container: str) -> cri.ContainerStatusResponse:
        request = cri.ContainerStatusRequest(container_id=container, verbose=True)
        return self.daemon.runtime.ContainerStatus(request, timeout=RPC_SECONDS)

    def pod_status(self, pod: str) -> cri.PodSandboxStatus:
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
        return self.daemon.runtime.PodSandboxStatus(request, timeout=RPC_SECONDS).status

    def containers(self, **wanted: Any) -> list[cri.Container]:
        request = cri.ListContainersRequest(filter=cri.ContainerFilter(**wanted))
        return list(self.daemon.runtime.ListContainers(request, timeout=RPC_SECONDS).containers)

    def pods(self, **wanted: Any) -> list[cri.PodSandbox]:
        request = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(**wanted))
        return list(self.daemon.runtime.ListPodSandbox(request, timeout=RPC_SECONDS).items)

    def exec(self, container: str, *command: str, timeout: int = 60) -> cri.ExecSyncResponse:
        request = cri.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout)
        return self.daemon.runtime.ExecSync(request, timeout=RPC_SECONDS)

    def exited(self, container: str) -> cri.ContainerStatus:
        """Wait until the container has exited; several RPCs."""
        wait_for(
            lambda: self.status(container).state == cri.CONTAINER_EXITED,
            f"the end of container {container}",
        )
        return self.status(container)

    def remains(self) -> list[str]:
        """Name all that this daemon's pods and containers have on the machine right now.

        Of this daemon alone, so that it holds while other sessions run; the session's own check
        at its end looks at everything.
        """
        daemon = self.daemon
        private = f"/{daemon.name}-"
        directories = (daemon.run_dir / "containers", daemon.run_dir / "sandboxes")
        cgroups = leaks.directories_below(leaks.CGROUPS)
        ports = Path("/sys/class/net", daemon.bridge, "brif")
        known = {daemon.pid, daemon.spawner_pid()} | leaks.standing_by()
        processes = leaks.named_processes(private) - known
        return [
            *leaks.files([*directories, daemon.root / "containers"]),
            *(mount for mount in leaks.mounts() if private in mount),
            *(f"{pid} {leaks.command(leaks.PROC / str(pid))}" for pid in processes),
            *(f"port {port.name}" for port in (ports.iterdir() if ports.exists() else ())),
            *(str(path) for path in cgroups if any(pod in path.name for pod in self._made)),
        ]

    def assert_remains(self, expected: list[str]) -> None:
        """Assert that no more is there than `remains` returned; the kernel is given time."""
        try:
            wait_for(lambda: set(self.remains()) <= set(expected), "what was removed to be gone")
        except AssertionError:
            left = sorted(set(self.remains()) - set(expected))
            assert left == [], f"left behind: {left}"

    def log(self, container: str) -> list[str]:
        """The lines of the container's log as CRI has them: time, stream, tag, text."""
        return Path(self.status(container).log_path).read_text().splitlines()

    def output(self, container: str) -> list[str]:
        """The text of the container's log lines."""
        return [line.split(" ", 3)[3] for line in self.log(container)]


def refused(code: str, call: Any, *arguments: Any, **fields: Any) -> str:
    """Assert that an RPC fails with a code; returns its message."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **fields)
    error: Any = caught.value
    assert error.code().name == code, error.details()
    assert "Traceback" not in error.details()
    return str(error.details())

"""The CRI client that every runtime is asked by: one method an RPC, nothing measured here.

Requests are as `crictl run` and `critest -benchmark` make them: busybox, no limits, and the shared
PID namespace that the CRI's zero value stands for. The pods' cgroup parent is given, as the kubelet
does it.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import grpc

from api.cri import api_pb2 as cri
from api.cri import api_pb2_grpc

RPC_SECONDS = 600.0
SLEEP = ("sleep", "1000000")

_OPTIONS = [("grpc.max_receive_message_length", 16 << 20)]  # the kubelet's
_number = itertools.count()

Timings = dict[str, dict[str, int]]  # operation -> stage -> ns


class Client:
    """Pods and containers of one runtime."""

    def __init__(
        self, socket: Path, logs: Path, cgroup_parent: str, pid: cri.NamespaceMode
    ) -> None:
        """`logs` is a directory for the containers' logs; `pid` the mode of the PID namespace."""
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self.runtime = api_pb2_grpc.RuntimeServiceStub(self._channel)
        self.images = api_pb2_grpc.ImageServiceStub(self._channel)
        self._logs = logs
        self._cgroup_parent = cgroup_parent
        self._options = cri.NamespaceOption(pid=pid)
        self._configs: dict[str, cri.PodSandboxConfig] = {}

    def close(self) -> None:
        self._channel.close()

    def version(self) -> cri.VersionResponse:
        return self.runtime.Version(cri.VersionRequest(), timeout=5.0)

    # -- pods ---------------------------------------------------------------------------------

    def pod_config(self) -> cri.PodSandboxConfig:
        """The configuration of a new pod; its directory of logs is there."""
        name = f"bench{next(_number)}"
        logs = self._logs / name
        logs.mkdir(parents=True)
        context = cri.LinuxSandboxSecurityContext(namespace_options=self._options)
        return cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, namespace="bench", uid=name),
            log_directory=str(logs),
            linux=cri.LinuxPodSandboxConfig(
                cgroup_parent=self._cgroup_parent, security_context=context
            ),
        )

    def run_pod(self, config: cri.PodSandboxConfig) -> str:
        request = cri.RunPodSandboxRequest(config=config)
        pod = str(self.runtime.RunPodSandbox(request, timeout=RPC_SECONDS).pod_sandbox_id)
        self._configs[pod] = config
        return pod

    def stop_pod(self, pod: str) -> None:
        request = cri.StopPodSandboxRequest(pod_sandbox_id=pod)
        self.runtime.StopPodSandbox(request, timeout=RPC_SECONDS)

    def remove_pod(self, pod: str) -> None:
        request = cri.RemovePodSandboxRequest(pod_sandbox_id=pod)
        self.runtime.RemovePodSandbox(request, timeout=RPC_SECONDS)
        self._configs.pop(pod, None)

    def take_away(self, pod: str) -> None:
        """StopPodSandbox and RemovePodSandbox."""
        self.stop_pod(pod)
        self.remove_pod(pod)

    def pod_status(self, pod: str, *, verbose: bool = False) -> cri.PodSandboxStatusResponse:
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=verbose)
        return self.runtime.PodSandboxStatus(request, timeout=RPC_SECONDS)

    def pods(self) -> list[cri.PodSandbox]:
        request = cri.ListPodSandboxRequest()
        return list(self.runtime.ListPodSandbox(request, timeout=RPC_SECONDS).items)

    # -- containers ---------------------------------------------------------------------------

    def create(self, pod: str, image: str, *command: str) -> str:
        name = f"ctr{next(_number)}"
        context = cri.LinuxContainerSecurityContext(namespace_options=self._options)
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name),
            image=cri.ImageSpec(image=image),
            command=command,
            log_path=f"{name}.log",
            linux=cri.LinuxContainerConfig(security_context=context),
        )
        request = cri.CreateContainerRequest(
            pod_sandbox_id=pod, config=config, sandbox_config=self._configs[pod]
        )
        return str(self.runtime.CreateContainer(request, timeout=RPC_SECONDS).container_id)

    def start(self, container: str) -> None:
        request = cri.StartContainerRequest(container_id=container)
        self.runtime.StartContainer(request, timeout=RPC_SECONDS)

    def run(self, image: str, *command: str) -> tuple[str, str]:
        """As `crictl run --no-pull`: a pod and a started container in it; returns their ids."""
        pod = self.run_pod(self.pod_config())
        container = self.create(pod, image, *command)
        self.start(container)
        return pod, container

    def stop(self, container: str) -> None:
        request = cri.StopContainerRequest(container_id=container, timeout=0)
        self.runtime.StopContainer(request, timeout=RPC_SECONDS)

    def remove(self, container: str) -> None:
        request = cri.RemoveContainerRequest(container_id=container)
        self.runtime.RemoveContainer(request, timeout=RPC_SECONDS)

    def exec_sync(self, container: str, *command: str) -> bytes:
        """Run a command to its end; returns its output. RuntimeError when it fails."""
        request = cri.ExecSyncRequest(container_id=container, cmd=command, timeout=60)
        answer = self.runtime.ExecSync(request, timeout=RPC_SECONDS)
        if answer.exit_code:
            raise RuntimeError(f"{command} exits {answer.exit_code}: {answer.stderr!r}")
        return bytes(answer.stdout)

    def exec_url(self, container: str, *command: str, stdin: bool) -> str:
        """The URL of a streaming exec. With output: containerd 1.6 ends one without at once."""
        request = cri.ExecRequest(container_id=container, cmd=command, stdin=stdin, stdout=True)
        return str(self.runtime.Exec(request, timeout=RPC_SECONDS).url)

    def forward_url(self, pod: str, port: int) -> str:
        """The URL of a port-forward."""
        request = cri.PortForwardRequest(pod_sandbox_id=pod, port=[port])
        return str(self.runtime.PortForward(request, timeout=RPC_SECONDS).url)

    def status(self, container: str, *, verbose: bool = False) -> cri.ContainerStatusResponse:
        request = cri.ContainerStatusRequest(container_id=container, verbose=verbose)
        return self.runtime.ContainerStatus(request, timeout=RPC_SECONDS)

    def containers(self) -> list[cri.Container]:
        request = cri.ListContainersRequest()
        return list(self.runtime.ListContainers(request, timeout=RPC_SECONDS).containers)

    def timings(self, pod: str, container: str) -> Timings:
        """What ours says of the stages of a pod's and a container's last operations."""
        answers = (self.pod_status(pod, verbose=True), self.status(container, verbose=True))
        found: Timings = {}
        for answer in answers:
            found |= json.loads(answer.info.get("timings", "{}"))
        return found

    # -- images -------------------------------------------------------------------------------

    def pull(self, name: str) -> None:
        request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
        self.images.PullImage(request, timeout=RPC_SECONDS)

    def image_status(self, name: str) -> None:
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name))
        self.images.ImageStatus(request, timeout=RPC_SECONDS)

    def list_images(self) -> None:
        self.images.ListImages(cri.ListImagesRequest(), timeout=RPC_SECONDS)

    def remove_image(self, name: str) -> None:
        request = cri.RemoveImageRequest(image=cri.ImageSpec(image=name))
        self.images.RemoveImage(request, timeout=RPC_SECONDS)

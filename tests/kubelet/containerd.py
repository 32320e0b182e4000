"""Debian's containerd in place of the daemon, to see what a kubelet does with it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import grpc

from api.cri import api_pb2 as cri
from api.cri import api_pb2_grpc
from tests.integration import images, leaks
from tests.integration.daemon import PLUGINS, RPC_SECONDS, wait_for
from tests.integration.registry import Registry

START_SECONDS = 60.0
STOP_SECONDS = 30.0
PAUSE = "registry.test/cri/pause:latest"

_number = itertools.count()


class Containerd:
    """What the tests use of `tests.integration.daemon.Daemon`, with containerd behind it."""

    def __init__(self, registry: Registry) -> None:
        number = next(_number)
        self.name = f"{leaks.SESSION}c{number}"
        self.run_dir = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir="/run"))
        self.home = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir="/var/lib"))
        self.log_directory = self.home / "pods"
        self.log = self.home / "containerd.log"
        self.bridge = f"ctd{os.getpid() % 10**7}n{number}"
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("pods", "certs.d/registry.test", "cni"):
            (self.home / name).mkdir(parents=True)
        address = f"http://{registry.address}"
        (self.home / "certs.d/registry.test/hosts.toml").write_text(
            f'server = "{address}"\n[host."{address}"]\ncapabilities = ["pull", "resolve"]\n'
        )
        wait = ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 3600 & wait; done"]
        images.push(registry.address, "cri/pause", images.busybox(entrypoint=wait, cmd=None))
        self._write_cni()
        self._write_config()

    @property
    def endpoint(self) -> str:
        return f"unix://{self.run_dir}/containerd.sock"

    def _write_config(self) -> None:
        (self.home / "config.toml").write_text(f"""
version = 2
root = "{self.home}/root"
state = "{self.run_dir}/state"
[grpc]
address = "{self.run_dir}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
stream_server_address = "127.0.0.1"
stream_server_port = "0"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGINS}"
conf_dir = "{self.home}/cni"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{self.home}/certs.d"
[plugins."io.containerd.internal.v1.opt"]
path = "{self.home}/opt"
""")

    def _write_cni(self) -> None:
        subnet = f"10.{os.getpid() % 128}.77.0/24"
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.home / "host-local"),
        }
        bridge = {
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": ipam,
        }
        plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
        config = {"cniVersion": "0.4.0", "name": self.name, "plugins": plugins}
        (self.home / "cni/10-bridge.conflist").write_text(json.dumps(config))

    def start(self) -> None:
        """Start it, and wait until its CRI answers."""
        assert self._process is None, "containerd runs already"
        command = ["containerd", "--config", str(self.home / "config.toml")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self._serves, f"containerd: see {self.log}", START_SECONDS)

    def _serves(self) -> bool:
        with contextlib.suppress(grpc.RpcError), self._channel() as channel:
            api_pb2_grpc.RuntimeServiceStub(channel).Version(cri.VersionRequest(), timeout=1.0)
            return True
        return False

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(f"unix:{self.run_dir}/containerd.sock")

    def kill9(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(STOP_SECONDS)
            self._process = None

    def close(self) -> None:
        """Remove the pods, end it, and delete what is private."""
        try:
            self._remove_pods()
        finally:
            self.stop()
            subprocess.run(["ip", "link", "delete", self.bridge], check=False, timeout=RPC_SECONDS)
            for directory in (self.run_dir, self.home):
                shutil.rmtree(directory)

    def _remove_pods(self) -> None:
        with self._channel() as channel:
            stub = api_pb2_grpc.RuntimeServiceStub(channel)
            for pod in stub.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=60).items:
                stop = cri.StopPodSandboxRequest(pod_sandbox_id=pod.id)
                stub.StopPodSandbox(stop, timeout=RPC_SECONDS)
                remove = cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id)
                stub.RemovePodSandbox(remove, timeout=RPC_SECONDS)

"""The peers: containerd and CRI-O as they are on PATH, with private directories and network."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from abc import abstractmethod
from pathlib import Path

import grpc

from api.cri import api_pb2 as cri
from tests.bench import processes
from tests.bench.client import Client
from tests.bench.parallel import AT_ONCE, at_once
from tests.bench.runtimes import HOST, WORKLOAD, Runtime, log_tail, subnet, until_serving
from tests.bench.shapes import Shelf
from tests.integration import harness, leaks
from tests.integration.daemon import PLUGINS, wait_for, write_conflist
from tests.integration.registry import Registry

STOP_SECONDS = 30.0

# Where libcni keeps what plugins have answered, whatever the runtime's own directories are.
CNI_RESULTS = Path("/var/lib/cni/results")

_CONTAINERD = """\
version = 2
root = "{home}/root"
state = "{run}/state"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{home}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true  # or no pod starts where CAP_SYS_RESOURCE is missing
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
  conf_dir = "{conf}"
  bin_dir = "{plugins}"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{certs}"
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "oci"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.oci]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.oci.options]
  BinaryName = "{oci}"
  Root = "{run}/oci"
"""

# crio.conf(5)
_CRIO = """\
[crio]
root = "{home}/root"
runroot = "{run}/root"
log_dir = "{home}/log"
version_file = "{run}/version"
version_file_persist = "{home}/version"
clean_shutdown_file = "{home}/clean.shutdown"
[crio.api]
listen = "{socket}"
stream_address = "127.0.0.1"
stream_port = "0"
[crio.image]
pause_image = "{pause}"
signature_policy = "{home}/policy.json"
[crio.network]
network_dir = "{conf}"
plugin_dirs = ["{plugins}"]
[crio.runtime]
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
default_runtime = "oci"
namespaces_dir = "{run}/namespaces"
container_exits_dir = "{run}/exits"
container_attach_socket_dir = "{run}/attach"
[crio.runtime.runtimes.oci]
runtime_path = "{oci}"
runtime_root = "{run}/oci"
"""

_REGISTRIES = """\
[[registry]]
prefix = "{host}"
location = "{address}"
insecure = true
"""


class Peer(Runtime):
    """A peer with its daemon, which is a child of ours."""

    def __init__(
        self, name: str, number: int, shelf: Shelf, pid: cri.NamespaceMode, run_parent: Path
    ) -> None:
        """`run_parent` is where its run directory is made."""
        self.name = name
        self._label = f"{leaks.SESSION}p{number}"
        self.run = Path(tempfile.mkdtemp(prefix=f"{self._label}-", dir=run_parent))
        self.home = Path(tempfile.mkdtemp(prefix=f"{self._label}-", dir="/var/lib"))
        self.socket = self.run / "cri.sock"
        self.log = self.home / "log.txt"
        self.bridge = f"cri{os.getpid() % 10**7}p{number}"
        self.conf, self.certs = self.home / "cni", self.home / "certs.d"
        (self.certs / HOST).mkdir(parents=True)
        self.conf.mkdir()
        self._cgroup = f"/{self._label}-bench"
        self.client = Client(self.socket, self.home / "pods", self._cgroup, pid)
        self._process: subprocess.Popen[bytes] | None = None
        self._served = False  # at any time
        leases = self.home / "host-local"
        addresses = subnet(16 + number, os.getpid())
        write_conflist(
            self.conf / "10-bridge.conflist", self._label, self.bridge, addresses, leases
        )
        self.configure(shelf.registry, shelf.pause)

    @abstractmethod
    def configure(self, registry: Registry, pause: str) -> None:
        """Write the configuration files; `pause` is the image of the pods' first process."""

    @abstractmethod
    def command(self) -> list[str]:
        """The daemon's command line."""

    def environment(self) -> dict[str, str]:
        """What is added to the daemon's environment."""
        return {}

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                env=os.environ | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us, who remove its pods first
            )
        process = self._process
        try:
            until_serving(self.client, lambda: process.poll() is None, self.name)
        except RuntimeError as err:
            raise RuntimeError(f"{err}\n{log_tail(self.log)}") from err
        self._served = True

    def kill9(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def daemon_pids(self) -> set[int]:
        assert self._process is not None
        return {self._process.pid}

    def pod_pids(self) -> set[int]:
        roots = self._shims()
        return processes.without(roots | processes.below(*roots), WORKLOAD)

    def _shims(self) -> set[int]:
        """The processes that the daemon leaves running for its pods."""
        own = {os.getpid()} | (self.daemon_pids() if self._process else set())
        return processes.named(f"/{self._label}-") - own

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove pods, daemon, shims, mounts, network, cgroups and files; all of it is tried."""
        with contextlib.ExitStack() as stack:
            for step in (
                self._delete,
                self._remove_cgroups,
                self._remove_bridge,
                self._unmount,
                self._kill_shims,
                self._stop,
                self._remove_pods,
            ):
                stack.callback(step)

    def _remove_pods(self) -> None:
        if not self._served:
            return  # so there are none
        if self._process is None:  # killed, and not started again
            self.start()
        try:
            at_once(AT_ONCE, self.client.take_away, [pod.id for pod in self.client.pods()])
        except grpc.RpcError as err:
            raise RuntimeError(f"{self.name}: a pod is left: {err}\n{log_tail(self.log)}") from err

    def _stop(self) -> None:
        self.client.close()
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill9()
        self._process = None

    def _kill_shims(self) -> None:
        """End what has outlived its pods: a shim takes a moment to end by itself."""
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not self._shims(), "the shims' end", 5.0)
        for pid in self._shims():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self._shims(), "the shims' end")

    def _unmount(self) -> None:
        for line in reversed(leaks.read(leaks.PROC / "self/mountinfo").splitlines()):
            target = line.split()[4]
            if f"/{self._label}-" in target:
                subprocess.run(["umount", "--lazy", target], check=True)

    def _remove_bridge(self) -> None:
        if Path("/sys/class/net", self.bridge).exists():
            subprocess.run(["ip", "link", "delete", self.bridge], check=True)

    def _remove_cgroups(self) -> None:
        for directory in harness.cgroup_dirs(self._cgroup):
            for parent, names, _ in os.walk(directory, topdown=False):
                for name in names:
                    Path(parent, name).rmdir()
            directory.rmdir()

    def _delete(self) -> None:
        shutil.rmtree(self.run)
        shutil.rmtree(self.home)

    def _values(self, pause: str, oci: str) -> dict[str, str]:
        paths = {"home": self.home, "run": self.run, "socket": self.socket, "conf": self.conf}
        paths |= {"certs": self.certs, "plugins": PLUGINS}
        return {name: str(path) for name, path in paths.items()} | {"pause": pause, "oci": oci}


class Containerd(Peer):
    """containerd with an OCI runtime, its CRI plugin and the overlayfs snapshotter."""

    def __init__(
        self, oci: str, number: int, shelf: Shelf, pid: cri.NamespaceMode, run_parent: Path
    ) -> None:
        self._oci = oci
        self._sockets = Path("/run/containerd/s")  # a path that containerd's shims have built in
        shared = (self._sockets, self._sockets.parent, CNI_RESULTS, CNI_RESULTS.parent)
        self._made = [path for path in shared if not path.exists()]
        name = f"containerd {version('containerd', 2)} + {oci} {version(oci, 2)}"
        super().__init__(name, number, shelf, pid, run_parent)

    def configure(self, registry: Registry, pause: str) -> None:
        (self.certs / HOST / "hosts.toml").write_text(
            f'[host."http://{registry.address}"]\ncapabilities = ["pull", "resolve"]\n'
        )
        path = shutil.which(self._oci)
        assert path is not None
        (self.home / "config.toml").write_text(_CONTAINERD.format(**self._values(pause, path)))

    def command(self) -> list[str]:
        return ["containerd", "--config", str(self.home / "config.toml")]

    def shim_pid(self, pod: str, container: str) -> int:
        """The pod's shim: it looks after all its containers."""
        (pid,) = processes.named(f"-id\0{pod}\0")
        return pid

    def _delete(self) -> None:
        super()._delete()
        for directory in self._made:
            with contextlib.suppress(OSError):  # others use it by now, or it never came to be
                directory.rmdir()


class CRIO(Peer):
    """CRI-O with conmon and an OCI runtime."""

    def __init__(
        self, oci: str, number: int, shelf: Shelf, pid: cri.NamespaceMode, run_parent: Path
    ) -> None:
        self._oci = oci
        name = f"CRI-O {version('crio', 2)} + {oci} {version(oci, 2)}"
        super().__init__(name, number, shelf, pid, run_parent)

    def configure(self, registry: Registry, pause: str) -> None:
        path = shutil.which(self._oci)
        assert path is not None
        (self.home / "crio.conf").write_text(_CRIO.format(**self._values(pause, path)))
        (self.home / "registries.conf").write_text(
            _REGISTRIES.format(host=HOST, address=registry.address)
        )
        (self.home / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def environment(self) -> dict[str, str]:
        return {"CONTAINERS_REGISTRIES_CONF": str(self.home / "registries.conf")}

    def command(self) -> list[str]:
        config, drop_ins = self.home / "crio.conf", self.home / "crio.conf.d"
        return ["crio", "--config", str(config), "--config-dir", str(drop_ins)]

    def shim_pid(self, pod: str, container: str) -> int:
        """The container's conmon."""
        (pid,) = processes.named(f"-c\0{container}\0")
        return pid


def version(program: str, word: int) -> str:
    """The version in a word of the first line of `program --version`."""
    said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
    words = said.stdout.split("\n")[0].split()
    return words[min(word, len(words) - 1)].partition("~")[0].partition("+")[0]

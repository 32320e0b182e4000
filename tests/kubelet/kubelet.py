"""A real kubelet in standalone mode: static pods from a directory, and its own HTTPS API.

There is no API server, so what a test asks for is a manifest's file, and what became of it is what
the kubelet says at /pods. All that the kubelet keeps is private, but for what it has constants for:
`/var/lib/kubelet/device-plugins`, `/var/log/containers` and the kernel's settings of `SYSCTLS`.
Those are put back by `close`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import grpc

from api.cri import api_pb2 as cri
from api.cri import api_pb2_grpc
from runtimeshim.linux import systemd
from tests.integration import harness
from tests.integration.daemon import PATIENCE, wait_for

NODE = "node"
START_SECONDS = 60.0
STOP_SECONDS = 30.0 * PATIENCE
POD_SECONDS = 90.0  # from a changed file to the pod's new state
API_SECONDS = 60.0 * PATIENCE
# What the kubelet sets on every start, as `sysctl` names it (kubelet: setupKernelTunables).
SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
CGROUPS = Path("/sys/fs/cgroup")
PROC_SYS = Path("/proc/sys")
MOUNTS = Path("/proc/self/mountinfo")
FIXED_DIRECTORIES = (Path("/var/lib/kubelet"), Path("/var/log/containers"))

Pod = dict[str, Any]


class Runtime(Protocol):
    """What a kubelet has to know of the runtime below it, and what tests do with that."""

    name: str
    home: Path  # a private directory
    log: Path
    log_directory: Path  # for the logs of pods

    @property
    def endpoint(self) -> str: ...
    def start(self) -> object: ...
    def stop(self) -> None: ...
    def kill9(self) -> None: ...
    def close(self) -> None: ...


class Kubelet:
    """A kubelet of its own for the tests. `start` is called by the maker."""

    def __init__(self, program: Path, runtime: Runtime, gates: Collection[str] = ()) -> None:
        self.program = program
        self.gates = ("KubeletCrashLoopBackOffMax", *gates)  # on at every start
        self.runtime = runtime
        self.home = runtime.home / "kubelet"
        self.manifests = self.home / "manifests"
        self.manifests.mkdir(parents=True)
        self.log = runtime.home / "kubelet.log"
        self.port = _free_port()
        self.uids: dict[str, str] = {}  # of every pod that was seen, by name
        self._process: subprocess.Popen[bytes] | None = None
        self._sysctls = {name: (PROC_SYS / name).read_text() for name in SYSCTLS}
        self._had = {path for path in FIXED_DIRECTORIES if path.exists()}
        self.cgroups = _cgroups(runtime.name)
        self.cgroups.make()

    def settings(self) -> dict[str, Any]:
        """The KubeletConfiguration that `start` changes: as usual, but for the pace of tests."""
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": self.runtime.endpoint,
            "staticPodPath": str(self.manifests),
            "podLogsDir": str(self.runtime.log_directory),
            "address": "127.0.0.1",
            "port": self.port,
            "readOnlyPort": 0,
            "healthzPort": 0,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "enableServer": True,
            "enableDebuggingHandlers": True,
            "failCgroupV1": False,
            "cgroupDriver": harness.CGROUP_DRIVER,
            "cgroupRoot": self.cgroups.root,
            "cgroupsPerQOS": True,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": 0,  # less needs CAP_SYS_RESOURCE
            "evictionHard": dict.fromkeys(
                ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available",
                 "imagefs.inodesFree"), "0%"
            ),
            "imageGCHighThresholdPercent": 100,
            "fileCheckFrequency": "1s",
            "syncFrequency": "5s",
            "volumeStatsAggPeriod": "5s",
            "shutdownGracePeriod": "0s",
            "registerNode": False,
            "resolvConf": "/etc/resolv.conf",
            "crashLoopBackOff": {"maxContainerRestartPeriod": "4s"},
            "featureGates": dict.fromkeys(self.gates, True),
            "logging": {"verbosity": 2},
        }  # fmt: skip

    def start(self, **changes: Any) -> None:
        """Start it with `changes` to its settings, and wait until its API answers.

        With a `kubeconfig` it is not standalone, but also takes the pods of that API server.
        Raises AssertionError with the end of its log when it exits or does not answer.
        """
        assert self._process is None, "the kubelet runs already"
        config = self.home / "config.json"  # which is YAML
        kubeconfig = changes.pop("kubeconfig", None)
        settings = self.settings()
        gates = {**settings["featureGates"], **changes.pop("featureGates", {})}
        config.write_text(json.dumps({**settings, **changes, "featureGates": gates}))
        command = [
            str(self.program),
            "--config", str(config),
            "--root-dir", str(self.home),
            "--cert-dir", str(self.home / "pki"),
            "--hostname-override", NODE,
        ]  # fmt: skip
        if kubeconfig is not None:
            path = self.home / "kubeconfig"
            path.write_text(json.dumps(kubeconfig))
            command += ["--kubeconfig", str(path), "--kube-api-content-type", "application/json"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            wait_for(self._serves, "the kubelet's API", START_SECONDS)
        except AssertionError as err:
            self.kill9()
            raise AssertionError(f"the kubelet does not serve:\n{self.log_tail()}") from err

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the kubelet exited {self._process.returncode}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.request("/healthz")[0] == http.client.OK
        return False

    def log_tail(self, lines: int = 60) -> str:
        """The end of the kubelet's log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """SIGTERM it, as systemd does; pods stay. Repeatable."""
        self._end(signal.SIGTERM)

    def kill9(self) -> None:
        """SIGKILL it. Repeatable."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(STOP_SECONDS)
            self._process = None

    def restart(self, **changes: Any) -> None:
        """Start it again with `changes` to its settings (and none of those before)."""
        self.stop()
        self.start(**changes)

    @property
    def url(self) -> str:
        """Where its API is."""
        return f"https://127.0.0.1:{self.port}"

    def request(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        """Ask its API; returns status and body."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=API_SECONDS, context=_unverified()
        )
        with contextlib.closing(connection):
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def get(self, path: str) -> bytes:
        """The body at `path`, which must be answered with 200."""
        status, body = self.request(path)
        assert status == http.client.OK, f"{path}: {status}: {body!r}"
        return body

    def run(self, name: str, command: str) -> str:
        """Run a command, split at its spaces, in a pod's container `main`; both its outputs."""
        path = f"/run/tests/{name}/main?cmd={quote(command)}"
        status, body = self.request(path, "POST")
        assert status == http.client.OK, f"{path}: {status}: {body!r}"
        return body.decode()

    def put(self, pod: Pod) -> str:
        """Write the manifest of a static pod, new or changed; returns the pod's name."""
        name = str(pod["metadata"]["name"])
        written = self.home / "manifest.new"
        written.write_text(json.dumps(pod))
        written.rename(self.manifests / f"{name}.json")
        return f"{name}-{NODE}"

    def remove(self, name: str) -> None:
        """Remove the manifest of the pod of this name, which begins its graceful end."""
        (self.manifests / f"{name.removesuffix(f'-{NODE}')}.json").unlink()

    def pods(self) -> dict[str, Pod]:
        """What the kubelet says of its pods, by name."""
        items = json.loads(self.get("/pods"))["items"] or []
        self.uids.update({item["metadata"]["name"]: item["metadata"]["uid"] for item in items})
        return {item["metadata"]["name"]: item for item in items}

    def until(
        self, name: str, condition: Callable[[Pod], Any], what: str, seconds: float = POD_SECONDS
    ) -> Pod:
        """Wait until `condition` is true of the pod; returns it as it is then."""
        seconds *= PATIENCE
        deadline = time.monotonic() + seconds
        while True:
            pod = self.pods().get(name)
            if pod is not None and condition(pod):
                return pod
            if time.monotonic() > deadline:
                status = json.dumps(pod and pod["status"], indent=1)
                raise AssertionError(f"waited {seconds} s for {what} of {name}: {status}")
            time.sleep(0.1)

    def until_gone(self, name: str, seconds: float = POD_SECONDS) -> None:
        """Wait until nothing of the pod runs, and the kubelet has removed its directory."""
        uid = self.uids[name]
        wait_for(
            lambda: not (self.home / "pods" / uid).exists() and name not in self.running(),
            f"the end of {name}",
            seconds,
        )

    def running(self) -> dict[str, Pod]:
        """The pods of which the runtime has something running, by name; without a status."""
        items = json.loads(self.get("/runningpods/"))["items"] or []
        return {item["metadata"]["name"]: item for item in items}

    def runtime_pods(self) -> list[cri.PodSandbox]:
        """The sandboxes that the runtime itself lists."""
        with self._channel() as channel:
            stub = api_pb2_grpc.RuntimeServiceStub(channel)
            answer = stub.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=API_SECONDS)
            return list(answer.items)

    def runtime_images(self) -> list[cri.Image]:
        """The images that the runtime itself lists."""
        with self._channel() as channel:
            stub = api_pb2_grpc.ImageServiceStub(channel)
            return list(stub.ListImages(cri.ListImagesRequest(), timeout=API_SECONDS).images)

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.runtime.endpoint.replace("unix://", "unix:"))

    def close(self) -> None:
        """End every pod and the kubelet, and put back what it changed outside its directory."""
        print(f"{self.log}:\n{self.log_tail(300)}")  # pytest shows it when the test has failed
        try:
            self._end_pods()
        finally:
            self.stop()
            # The kubelet binds its directory to itself, to share what is mounted there, if it must.
            if any(line.split()[4] == str(self.home) for line in MOUNTS.read_text().splitlines()):
                unmount = ["umount", "--recursive", self.home]
                subprocess.run(unmount, check=True, timeout=STOP_SECONDS)
            for name, value in self._sysctls.items():
                (PROC_SYS / name).write_text(value)
            self.cgroups.remove()
            self._remove_fixed()

    def _end_pods(self) -> None:
        if self._process is None:
            return
        for manifest in self.manifests.iterdir():
            manifest.unlink()
        pods = self.home / "pods"
        wait_for(
            lambda: not self.running() and not (pods.exists() and any(pods.iterdir())),
            "the end of all pods",
            POD_SECONDS,
        )

    def _remove_fixed(self) -> None:
        """Remove links to our logs, and the directories that were not there before."""
        for link in Path("/var/log/containers").glob("*.log"):
            if link.readlink().is_relative_to(self.runtime.log_directory):
                link.unlink()
        for path in FIXED_DIRECTORIES:
            if path.exists() and path not in self._had:
                shutil.rmtree(path)


def _unverified() -> ssl.SSLContext:
    """The kubelet makes its own certificate, and only processes of this machine reach it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Directories:
    """The cgroup that a kubelet with cgroupfs has for the tests, in every hierarchy."""

    def __init__(self, name: str) -> None:
        self.root = f"/{name}"
        tops = [path for path in sorted(CGROUPS.iterdir()) if path.is_dir()]
        if (CGROUPS / "cgroup.controllers").exists():
            tops = [CGROUPS]
        self._directories = [top / name for top in tops if not top.is_symlink()]

    def make(self) -> None:
        for directory in self._directories:
            directory.mkdir()

    def remove(self) -> None:
        for directory in self._directories:
            _remove_cgroup(directory)


class _Slices:
    """The slices that a kubelet with systemd makes: those of a node, so there is none beside it."""

    root = "/"
    _slice = "kubepods.slice"

    def make(self) -> None:
        directory = CGROUPS / self._slice
        assert not directory.exists(), f"{directory} is another kubelet's: stop that first"

    def remove(self) -> None:
        systemd.stop(self._slice)  # and so all in it


def _cgroups(name: str) -> _Directories | _Slices:
    return _Slices() if harness.CGROUP_DRIVER == "systemd" else _Directories(name)


def _remove_cgroup(top: Path) -> None:
    if top.exists():
        for child in [path for path in top.iterdir() if path.is_dir()]:
            _remove_cgroup(child)
        top.rmdir()


def containers(pod: Pod, kind: str = "containerStatuses") -> Mapping[str, dict[str, Any]]:
    """The container statuses of a pod by name; `kind` is the list's name in the pod's status."""
    return {status["name"]: status for status in pod["status"].get(kind, ())}


def is_running(pod: Pod) -> bool:
    """Whether the pod's phase is Running."""
    return bool(pod["status"]["phase"] == "Running")


def is_ready(pod: Pod) -> bool:
    """Whether the pod's condition Ready is true."""
    conditions = pod["status"].get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def has_ended(pod: Pod) -> bool:
    """Whether all its containers have ended for good."""
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def waits_for(reason: str, name: str = "main") -> Callable[[Pod], bool]:
    """A condition: the container waits, for this reason."""

    def holds(pod: Pod) -> bool:
        state = containers(pod).get(name, {}).get("state", {})
        return bool(state.get("waiting", {}).get("reason") == reason)

    return holds


def has_restarted(times: int, name: str = "main") -> Callable[[Pod], bool]:
    """A condition: the container runs, after so many restarts at least."""

    def holds(pod: Pod) -> bool:
        status = containers(pod).get(name, {})
        return status.get("restartCount", 0) >= times and "running" in status["state"]

    return holds

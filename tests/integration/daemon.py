"""A criserver of its own for a test: private directories, network and processes.

The daemon is started as a person starts it, by its command line. Everything private holds the
session's name, so that what outlives the daemon can be found and, at the end, is removed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from api.cri import api_pb2, api_pb2_grpc
from tests.integration import harness, leaks

PROGRAM = Path(sys.executable).with_name("criserver")
PLUGINS = Path("/usr/lib/cni")

# What is waited for comes so many times later on some machines; hack/vm sets it when it emulates.
PATIENCE = float(os.environ.get("CRISERVER_TEST_PATIENCE", "1"))
START_SECONDS = 60.0 * PATIENCE
STOP_SECONDS = 30.0 * PATIENCE
RPC_SECONDS = 120.0  # the kubelet's own limit for most RPCs

_number = itertools.count()


class Daemon:
    """One criserver with its root, run directory and network. `start` is called by the maker."""

    def __init__(self, run_parent: Path = Path("/run")) -> None:
        """`run_parent` is where its run directory is made."""
        number = next(_number)
        self.name = f"{leaks.SESSION}{number}"
        # As short as it gets: a socket's path has at most 107 bytes (man 7 unix).
        self.run_dir = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=run_parent))
        # Not in /tmp, which may be a tmpfs: images are unpacked where they are in production.
        self.home = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir="/var/lib"))
        self.root = self.home / "root"
        self.certs_dir = self.home / "certs.d"
        self.cni_conf_dir = self.home / "cni"
        self.cni_bin_dir = PLUGINS
        self.log_directory = self.home / "pods"  # for the tests' sandbox configurations
        for path in (self.certs_dir, self.cni_conf_dir, self.log_directory):
            path.mkdir()
        self.bridge = f"cri{os.getpid() % 10**7}n{number}"
        # Within 10.128.0.0/9: others for each daemon of this session, mostly for each session.
        subnets = [f"10.{128 + os.getpid() % 128}.{2 * number % 256 + n}.0/24" for n in (0, 1)]
        self.subnet, self.cni_subnet = subnets
        self.config = self.home / "config.toml"
        self.config.write_text(
            f'[network]\nbridge = "{self.bridge}"\nsubnets = ["{self.subnet}"]\n'
        )
        if harness.CGROUP_DRIVER != "cgroupfs":
            (self.home / "config.d").mkdir()
            dropin = self.home / "config.d/cgroups.toml"
            dropin.write_text(f'cgroup_driver = "{harness.CGROUP_DRIVER}"\n')
        self.socket = self.run_dir / "criserver.sock"
        self.log = self.home / "criserver.log"
        self._served = False  # at any time
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    @property
    def endpoint(self) -> str:
        """The CRI endpoint as clients take it."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """The daemon's process id while it runs."""
        assert self._process is not None, "the daemon does not run"
        return self._process.pid

    @property
    def runtime(self) -> api_pb2_grpc.RuntimeServiceStub:
        """The RuntimeService of the daemon that runs now; not to be kept over a restart."""
        return api_pb2_grpc.RuntimeServiceStub(self._connected())

    @property
    def images(self) -> api_pb2_grpc.ImageServiceStub:
        """The ImageService of the daemon that runs now; not to be kept over a restart."""
        return api_pb2_grpc.ImageServiceStub(self._connected())

    def _connected(self) -> grpc.Channel:
        if self._channel is None:
            self._channel = grpc.insecure_channel(f"unix:{self.socket}")
        return self._channel

    def command(self) -> list[str]:
        """The command line that serves with this daemon's directories."""
        return [
            str(PROGRAM), "serve",
            "--config", str(self.config),
            "--listen", self.endpoint,
            "--root", str(self.root),
            "--run-dir", str(self.run_dir),
            "--certs-dir", str(self.certs_dir),
            "--cni-conf-dir", str(self.cni_conf_dir),
            "--cni-bin-dir", str(self.cni_bin_dir),
            "--log-level", "debug",
        ]  # fmt: skip

    def start(self) -> str:
        """Start the daemon and return the line that it prints when it serves.

        Raises AssertionError with its standard error when it exits or says nothing.
        """
        assert self._process is None, "the daemon runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us, who remove its pods first
            )
        assert self._process.stdout is not None
        line = _read_line(self._process.stdout.fileno(), START_SECONDS)
        if not line.endswith("\n"):
            raise AssertionError(f"criserver {self._end()}; its standard error:\n{self.log_tail()}")
        self._served = True
        return line.rstrip("\n")

    def _end(self) -> str:
        """End a daemon that does not serve; what it was doing instead."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"exited with {self._reap(seconds=1.0)}"
        self.kill9()
        return f"does not serve within {START_SECONDS} s"

    def log_tail(self, lines: int = 60) -> str:
        """The end of the daemon's standard error."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill9(self) -> None:
        """SIGKILL the daemon alone, as the kernel's OOM killer would, and reap it. Repeatable."""
        if self._process is not None:
            self._process.kill()
            self._reap(STOP_SECONDS)

    def stop(self) -> None:
        """SIGTERM the daemon; it must exit 0 and leave the containers running. Repeatable."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._reap(STOP_SECONDS)
        except subprocess.TimeoutExpired as err:
            self.kill9()
            raise AssertionError(
                f"criserver ignores SIGTERM for {STOP_SECONDS} s:\n{self.log_tail()}"
            ) from err
        assert code == 0, f"criserver exits {code} on SIGTERM:\n{self.log_tail()}"

    def restart(self) -> str:
        """Start the daemon again, after a stop if it runs; returns as `start`."""
        self.stop()
        return self.start()

    def _reap(self, seconds: float) -> int:
        assert self._process is not None
        code = self._process.wait(seconds)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        return code

    def spawner_pid(self) -> int:
        """The spawner's process id, from the file that it writes."""
        return int((self.run_dir / "spawner.pid").read_text())

    def remove_pods(self) -> None:
        """Stop and remove every pod of the daemon, which must run."""
        listed = self.runtime.ListPodSandbox(api_pb2.ListPodSandboxRequest(), timeout=RPC_SECONDS)
        for pod in listed.items:
            self.runtime.StopPodSandbox(
                api_pb2.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=RPC_SECONDS
            )
            self.runtime.RemovePodSandbox(
                api_pb2.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=RPC_SECONDS
            )

    def use_registry(self, host: str, address: str) -> None:
        """Have the daemon pull images of `host` from the plain HTTP registry at HOST:PORT."""
        directory = self.certs_dir / host
        directory.mkdir(exist_ok=True)
        (directory / "hosts.toml").write_text(
            f'[host."http://{address}"]\ncapabilities = ["pull", "resolve"]\n'
        )

    def use_cni(self) -> Path:
        """Have new pods use the real bridge and portmap plugins; returns the configuration."""
        return write_conflist(
            self.cni_conf_dir / "10-bridge.conflist",
            self.name,
            f"{self.bridge}c",
            self.cni_subnet,
            self.home / "host-local",
        )

    def snapshot(self) -> leaks.Snapshot:
        """What there is now on the machine, for `assert_nothing_left`."""
        return leaks.snapshot(self._state_directories())

    def assert_nothing_left(self, before: leaks.Snapshot) -> None:
        """Assert that of the pods made since `before` nothing is left.

        What belongs to no pod may be there: the daemon, when it was started anew, and the network
        that all pods share. Raises AssertionError with a line for each entry that is left.
        """
        leaks.assert_nothing_left(before, self._state_directories(), kept=self._is_shared)

    def _is_shared(self, line: str) -> bool:
        kind, _, entry = line.partition(": ")
        table = f"inet {self.bridge}: "
        return (
            (kind == "processes" and self._process is not None and entry.startswith(f"{self.pid} "))
            or (kind == "links" and entry.startswith((f"{self.bridge} ", f"{self.bridge}c ")))
            or (kind == "nftables" and entry.startswith(table) and f"{table}element" not in entry)
        )

    def _state_directories(self) -> list[Path]:
        """Where something lies for each pod and container and nothing else."""
        return [
            self.run_dir / "containers",
            self.run_dir / "sandboxes",
            self.root / "containers",
        ]

    def cni_leases(self) -> list[str]:
        """The addresses that the host-local plugin holds for pods."""
        found = (self.home / "host-local" / self.name).glob("[0-9]*.*")
        return sorted(path.name for path in found)

    def close(self) -> None:
        """Remove the pods, end the daemon and its spawner, delete everything private.

        Each step is tried whatever became of the others. Raises ExceptionGroup of what failed.
        """
        print(f"{self.log}:\n{self.log_tail(200)}")  # pytest shows it when the test has failed
        faults: list[Exception] = []
        for step in (
            self._close_pods,
            self.stop,
            self._end_spawner,
            self._remove_network,
            self._unmount,
            self._no_crash,
            self._delete,
        ):
            try:
                step()
            except Exception as err:  # noqa: BLE001 - the steps after it must not be left out
                faults.append(err)
        if faults:
            raise ExceptionGroup(f"closing the daemon of {self.run_dir}", faults)

    def _close_pods(self) -> None:
        if not self._served:
            return  # so there are no pods
        if self._process is None:
            self.start()
        self.remove_pods()

    def _end_spawner(self) -> None:
        """End the spawner by its pid, and whatever of the shims and containers is left."""
        left: set[int] = set()
        if (self.run_dir / "spawner.pid").exists():
            spawner = self.spawner_pid()
            with contextlib.suppress(AssertionError):  # named below
                wait_for(lambda: not leaks.descendants(spawner), "the shims", leaks.SETTLE_SECONDS)
            left.update(leaks.descendants(spawner))
            _end_process(spawner, signal.SIGTERM, signal.SIGKILL)
        named = f"/{self.name}-"
        with contextlib.suppress(AssertionError):  # named below
            wait_for(lambda: not leaks.named_processes(named) & leaks.standing_by(), "their end")
        left.update(leaks.named_processes(named) - {os.getpid()})
        names = [leaks.command(leaks.PROC / str(pid)) for pid in sorted(left)]
        for pid in left:
            _end_process(pid, signal.SIGKILL)
        assert not left, f"processes outlived their pods: {names}"

    def _remove_network(self) -> None:
        """Remove what pods share and neither network takes away with the last: bridges, a table."""
        for name in (self.bridge, f"{self.bridge}c"):
            if Path("/sys/class/net", name).exists():
                subprocess.run(["ip", "link", "delete", name], check=True, timeout=RPC_SECONDS)
        table = f"add table inet {self.bridge}; delete table inet {self.bridge}"
        subprocess.run(["nft", table], check=True, timeout=RPC_SECONDS)

    def _unmount(self) -> None:
        """Take away what is mounted below the private directories, before they are deleted."""
        left = [
            line.split()[4]
            for line in leaks.read(leaks.PROC / "self/mountinfo").splitlines()
            if f"/{self.name}-" in line.split()[4]
        ]
        for target in reversed(left):
            subprocess.run(["umount", "--lazy", target], check=True, timeout=RPC_SECONDS)
        assert not left, f"mounts outlived their pods: {left}"

    def _no_crash(self) -> None:
        harness.assert_no_crash(self.run_dir)

    def _delete(self) -> None:
        for directory in (self.run_dir, self.home):
            shutil.rmtree(directory)


def write_conflist(path: Path, name: str, bridge: str, subnet: str, leases: Path) -> Path:
    """Write a CNI configuration of Debian's bridge, host-local and portmap; returns its path.

    It appears at once and whole. `leases` is the directory where host-local keeps them.
    """
    plugins = [
        {
            "type": "bridge",
            "bridge": bridge,
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": subnet}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": str(leases),
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    written = path.with_suffix(".new")
    written.write_text(json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": plugins}))
    return written.rename(path)


def _read_line(descriptor: int, seconds: float) -> str:
    """Read to the end of a line, of the stream, or of the time."""
    deadline = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready or not (byte := os.read(descriptor, 1)):
            break
        line += byte
    return line.decode()


def _end_process(pid: int, *signals: signal.Signals) -> None:
    """End a process that is not our child with the first of `signals` that does it in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(descriptor):
        for number in signals:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if select.select([descriptor], [], [], STOP_SECONDS)[0]:
                return
    raise AssertionError(f"process {pid} survives {signals}")


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Wait until `condition` holds; AssertionError naming `what` after PATIENCE times `seconds`."""
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)

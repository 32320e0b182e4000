"""The runtimes that are measured: each in directories, a network and cgroups of its own.

`Runtime` is what a measurement sees of one. All of them use the same image names, which a
registry of ours answers, and where they use CNI, the same plugins with the same configuration.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import grpc

from api.cri import api_pb2 as cri
from tests.bench import processes
from tests.bench.client import Client
from tests.integration import harness, leaks
from tests.integration.daemon import Daemon
from tests.integration.registry import Registry

HOST = "registry.test"
WORKLOAD = "sleep"  # comm of the containers' own processes
READY_SECONDS = 60.0
PODS_PREFIX = 21  # of the pods' subnets: room for 2,000 addresses


class Runtime(ABC):
    """A CRI runtime that serves. `kind` is the network of ours, "" for a peer."""

    name: str
    kind: str = ""
    client: Client

    @property
    def is_ours(self) -> bool:
        return bool(self.kind)

    @abstractmethod
    def start(self) -> None:
        """Start the daemon (again) and wait until it serves. Raises when it does not."""

    @abstractmethod
    def kill9(self) -> None:
        """SIGKILL the daemon alone."""

    @abstractmethod
    def daemon_pids(self) -> set[int]:
        """The processes that are there without any pod."""

    @abstractmethod
    def pod_pids(self) -> set[int]:
        """What there is for the pods, but for the containers' own processes."""

    @abstractmethod
    def shim_pid(self, pod: str, container: str) -> int:
        """The process that looks after a container."""

    @abstractmethod
    def close(self) -> None:
        """Take everything away that it has made."""


def subnet(number: int, pid: int) -> str:
    """A subnet for the pods of runtime `number` of the process `pid`; up to 31 of them."""
    return f"10.{128 + pid % 128}.{number % 32 * 8}.0/{PODS_PREFIX}"


def until_serving(client: Client, is_alive: Callable[[], bool], what: str) -> None:
    """Wait for the CRI's Version; RuntimeError with `what` when it does not come."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            client.version()
            return
        except grpc.RpcError as err:
            if not is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"{what} does not serve: {err}") from err
            time.sleep(0.1)


class _Daemon(Daemon):
    """A daemon that logs as it does by default."""

    def command(self) -> list[str]:
        return ["info" if word == "debug" else word for word in super().command()]


class Criserver(Runtime):
    """Ours; `kind` is "built-in" or "CNI"."""

    def __init__(
        self, kind: str, registry: Registry, pid: cri.NamespaceMode, run_parent: Path = Path("/run")
    ) -> None:
        self.kind = kind
        self.name = f"criserver, {kind}"
        self.daemon = _Daemon(run_parent)
        number, process = map(int, re.findall(r"\d+", self.daemon.name)[::-1])
        self.daemon.subnet = self.daemon.cni_subnet = subnet(number, process)
        self.daemon.config.write_text(
            f'[network]\nbridge = "{self.daemon.bridge}"\nsubnets = ["{self.daemon.subnet}"]\n'
        )
        if kind == "CNI":
            self.daemon.use_cni()
        self.daemon.use_registry(HOST, registry.address)
        self._cgroup = f"/{self.daemon.name}bench"
        self.client = Client(self.daemon.socket, self.daemon.log_directory, self._cgroup, pid)

    def start(self) -> None:
        self.daemon.start()
        until_serving(self.client, lambda: True, self.name)

    def kill9(self) -> None:
        self.daemon.kill9()

    def _spawner(self) -> int:
        return self.daemon.spawner_pid()

    def daemon_pids(self) -> set[int]:
        return {self.daemon.pid, self._spawner()} | (self._below() & leaks.standing_by())

    def pod_pids(self) -> set[int]:
        return processes.without(self._below(), WORKLOAD) - self.daemon_pids()

    def _below(self) -> set[int]:
        return processes.below(self._spawner())

    def shim_pid(self, pod: str, container: str) -> int:
        """The shim: it calls itself after the container (runtimeshim.shim.supervisor)."""
        name = f"shim {container[:10]}"
        (pid,) = (pid for pid in self._below() if processes.comm(pid) == name)
        return pid

    def close(self) -> None:
        self.client.close()
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                self.daemon.close()
        except BaseException:
            print(said.getvalue(), file=sys.stderr)
            raise
        harness.remove_cgroups(self._cgroup)


def log_tail(log: Path) -> str:
    """The end of a daemon's log."""
    return log.read_text(errors="replace")[-4000:] if log.exists() else ""

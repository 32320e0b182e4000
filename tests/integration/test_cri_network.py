"""The pods' network through crashes, a reboot and a reset of the whole daemon."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import grpc
import pytest

from api.cri import api_pb2 as cri
from api.cri import api_pb2_grpc
from tests.integration import leaks
from tests.integration.daemon import PATIENCE, PROGRAM, RPC_SECONDS, Daemon, wait_for
from tests.integration.pods import Pods, refused
from tests.integration.registry import Registry
from tests.integration.sandboxes import run

WORKERS = 8
UNAVAILABLE_SECONDS = 120.0 * PATIENCE


@pytest.fixture
def pods(daemon: Daemon) -> Pods:
    return Pods(daemon)


def networked(
    pods: Pods, name: str = "", pid: int = cri.CONTAINER, *, mapped: bool = False, **fields
) -> cri.PodSandboxConfig:
    """A pod with a network of its own, and with a user namespace if it is `mapped`."""
    options = cri.NamespaceOption(pid=pid)
    if mapped:
        line = cri.IDMapping(host_id=1_000_000, length=65536)
        user = cri.UserNamespace(mode=cri.POD, uids=[line], gids=[line])
        options.userns_options.CopyFrom(user)
    context = cri.LinuxSandboxSecurityContext(namespace_options=options)
    linux = cri.LinuxPodSandboxConfig(security_context=context)
    return pods.config(name, linux=linux, **fields)


def rows(daemon: Daemon, query: str) -> list[tuple]:
    with closing(sqlite3.connect(daemon.root / "criserver.db")) as database:
        return database.execute(query).fetchall()


def leased(daemon: Daemon) -> list[tuple]:
    return rows(daemon, "SELECT address, sandbox_id FROM leases WHERE sandbox_id IS NOT NULL")


def host_ports(daemon: Daemon) -> list[object]:
    """The elements of the host port maps in the kernel."""
    listed = json.loads(run("nft", "--json", "list", "table", "inet", daemon.bridge))
    maps = [entry["map"] for entry in listed["nftables"] if "map" in entry]
    return [element for one in maps for element in one.get("elem", [])]


# 500 operations with 20 crashes.


class Churn:
    """Runs, stops and removes pods at random, and holds that no address is used twice at once."""

    def __init__(self, pods: Pods, operations: int) -> None:
        self._pods = pods
        self._left = operations
        self._lock = threading.Lock()
        self._in_use: dict[str, str] = {}
        self._number = 0
        self.ids: set[str] = set()
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50)]
        self._channel = grpc.insecure_channel(f"unix:{pods.daemon.socket}", options=options)
        self._runtime = api_pb2_grpc.RuntimeServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def work(self, seed: int) -> None:
        """One client: at most three pods, one operation after another, then all removed."""
        chance = random.Random(seed)
        running: list[str] = []
        stopped: list[str] = []
        while self._take():
            choices = [self._run] * 3 if len(running) + len(stopped) < 3 else []
            choices += [self._stop] * 2 * bool(running) + [self._remove] * bool(running + stopped)
            chance.choice(choices)(chance, running, stopped)
        while running or stopped:
            self._remove(chance, running, stopped)

    def _take(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def _run(self, chance: random.Random, running: list[str], stopped: list[str]) -> None:
        with self._lock:
            self._number += 1
            number = self._number
        mapping = cri.PortMapping(container_port=80, host_port=20000 + number)
        config = networked(
            self._pods,
            f"churn{number}",
            chance.choice((cri.POD, cri.CONTAINER)),
            mapped=chance.random() < 0.3,
            port_mappings=[mapping] * (number % 2),
        )
        pod = self._run_pod(config)
        status = cri.PodSandboxStatusRequest(pod_sandbox_id=pod)
        ip = self._call(self._runtime.PodSandboxStatus, status).status.network.ip
        with self._lock:
            self.ids.add(pod)
            assert ip and ip not in self._in_use, f"{ip} is {self._in_use.get(ip)}'s and {pod}'s"
            self._in_use[ip] = pod
        running.append(pod)

    def _run_pod(self, config: cri.PodSandboxConfig) -> str:
        """Run a pod. When a crash took no more than the answer it is in the list, by its name."""
        request = cri.RunPodSandboxRequest(config=config)
        try:
            return str(self._call(self._runtime.RunPodSandbox, request).pod_sandbox_id)
        except grpc.RpcError as err:
            assert err.code() is grpc.StatusCode.ALREADY_EXISTS, err
        listed = self._call(self._runtime.ListPodSandbox, cri.ListPodSandboxRequest()).items
        (pod,) = (pod for pod in listed if pod.metadata == config.metadata)
        assert pod.state == cri.SANDBOX_READY
        return str(pod.id)

    def _stop(self, chance: random.Random, running: list[str], stopped: list[str]) -> None:
        pod = running.pop(chance.randrange(len(running)))
        self._release(pod)
        self._call(self._runtime.StopPodSandbox, cri.StopPodSandboxRequest(pod_sandbox_id=pod))
        stopped.append(pod)

    def _remove(self, chance: random.Random, running: list[str], stopped: list[str]) -> None:
        pods = chance.choice([some for some in (running, stopped) if some])
        pod = pods.pop(chance.randrange(len(pods)))
        self._release(pod)
        self._call(self._runtime.RemovePodSandbox, cri.RemovePodSandboxRequest(pod_sandbox_id=pod))

    def _release(self, pod: str) -> None:
        with self._lock:
            self._in_use = {ip: one for ip, one in self._in_use.items() if one != pod}

    def _call(self, method: Callable, request: object):
        """Call until the daemon is there, as the kubelet does."""
        deadline = time.monotonic() + UNAVAILABLE_SECONDS
        while True:
            try:
                return method(request, timeout=RPC_SECONDS)
            except grpc.RpcError as err:
                away = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                if err.code() not in away or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


@pytest.mark.parametrize(
    ("provider", "operations", "crashes"), [("builtin", 500, 20), ("cni", 100, 5)]
)
def test_random_operations_and_crashes_use_no_address_twice_and_leave_nothing(
    pods: Pods, provider: str, operations: int, crashes: int
) -> None:
    daemon = pods.daemon
    if provider == "cni":
        daemon.use_cni()
    pods.remove_pod(pods.run_pod(networked(pods)))  # what all pods share is there
    before = pods.remains()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # pytest shows it when the test has failed
    churn = Churn(pods, operations)
    with closing(churn), ThreadPoolExecutor(WORKERS) as executor:
        works = [executor.submit(churn.work, seed + n) for n in range(WORKERS)]
        chance = random.Random(seed)
        for _ in range(crashes):
            time.sleep(chance.uniform(0.0, 1.0))
            daemon.kill9()
            daemon.start()
        for work in works:
            work.result()
    pods._made |= churn.ids
    pods.assert_remains(before)
    assert pods.pods() == []
    assert leased(daemon) == rows(daemon, "SELECT * FROM host_ports") == []
    wait_for(lambda: rows(daemon, "SELECT * FROM cni_attachments") == [], "the last DELs")
    assert daemon.cni_leases() == []
    ports = {f"cri{pod[:12]}" for pod in churn.ids}
    wait_for(lambda: not ports & set(os.listdir("/sys/class/net")), "the pods' links to go")
    if provider == "builtin":
        assert host_ports(daemon) == []


# A reboot.


def reboot(pods: Pods) -> None:
    """What a reboot leaves: the disk. Processes, namespaces, mounts, links and rules are gone."""
    daemon = pods.daemon
    daemon.stop()
    for pid in leaks.named_processes(f"/{daemon.name}-"):
        with suppress(ProcessLookupError):  # it ended with another one
            os.kill(pid, signal.SIGKILL)
    for pod in pods._made:
        init = daemon.run_dir / "sandboxes" / pod / "init.json"
        if init.exists():
            os.kill(json.loads(init.read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: not leaks.named_processes(f"/{daemon.name}-"), "all processes to end")
    mounts = [line.split(" ")[0] for line in leaks.mounts() if f"/{daemon.name}-" in line]
    for mount in reversed(mounts):
        run("umount", "--lazy", mount)
    for path in daemon.run_dir.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for link in (daemon.bridge, f"{daemon.bridge}c"):
        if Path("/sys/class/net", link).exists():
            run("ip", "link", "delete", link)
    subprocess.run(["nft", "delete", "table", "inet", daemon.bridge], capture_output=True)
    forget_masquerading(daemon.name)
    for directory in leaks.directories_below(leaks.CGROUPS):
        if any(pod in directory.name for pod in pods._made):
            subprocess.run(["rmdir", directory], capture_output=True)
    with closing(sqlite3.connect(daemon.root / "criserver.db")) as database, database:
        database.execute("UPDATE meta SET value = 'an earlier boot' WHERE key = 'boot_id'")


def forget_masquerading(network: str) -> None:
    """Take away what the bridge plugin has made for pods of a CNI network."""
    for line in run("iptables", "--table", "nat", "--list-rules", "POSTROUTING").splitlines():
        if f'name: \\"{network}\\"' in line:
            rule = shlex.split(line.replace("-A", "-D", 1))
            run("iptables", "--table", "nat", *rule)
            for command in ("--flush", "--delete-chain"):
                run("iptables", "--table", "nat", command, rule[-1])


@pytest.mark.parametrize("provider", ["builtin", "cni"])
def test_after_a_reboot_old_pods_are_not_ready_and_hold_nothing(
    pods: Pods, registry: Registry, provider: str
) -> None:
    daemon = pods.daemon
    if provider == "cni":
        daemon.use_cni()
    pods.pull(registry)
    mapping = cri.PortMapping(container_port=80, host_port=20001)
    old = pods.run_pod(networked(pods, pid=cri.POD, port_mappings=[mapping]))
    other = pods.run_pod(networked(pods))
    container = pods.run(
        old, "sleep", "3600", linux=cri.LinuxContainerConfig(
            security_context=cri.LinuxContainerSecurityContext(
                namespace_options=cri.NamespaceOption(pid=cri.POD)
            )
        ),
    )  # fmt: skip
    if provider == "cni":
        assert len(daemon.cni_leases()) == 2
    else:
        assert len(leased(daemon)) == 2
    reboot(pods)
    daemon.start()
    assert {pod.state for pod in pods.pods()} == {cri.SANDBOX_NOTREADY}
    assert pods.pod_status(old).network.ip == ""
    status = pods.status(container)
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 255, "Unknown")
    assert leased(daemon) == rows(daemon, "SELECT * FROM host_ports") == []
    wait_for(lambda: rows(daemon, "SELECT * FROM cni_attachments") == [], "the DELs to be sent")
    assert daemon.cni_leases() == []
    # The kubelet makes new ones, and cleans up the old ones in its own time.
    again = pods.run_pod(networked(pods, port_mappings=[mapping]))
    assert pods.pod_status(again).network.ip
    for pod in (old, other, again):
        pods.stop_pod(pod)
        pods.remove_pod(pod)
    assert pods.pods() == []
    assert leased(daemon) == []


# criserver network reset.


def reset(daemon: Daemon, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, "network", "reset", "--config", daemon.config, "--root", daemon.root, *flags],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_built_in_network_is_reset_without_a_trace(pods: Pods) -> None:
    daemon = pods.daemon
    before = set(leaks.links()), set(leaks.nftables())
    pod = pods.run_pod(networked(pods))
    done = reset(daemon)
    assert (done.returncode, "stop it first" in done.stderr) == (1, True)
    daemon.stop()
    done = reset(daemon)
    assert done.returncode == 1
    assert "1 pods hold addresses" in done.stderr and "--force" in done.stderr
    assert Path("/sys/class/net", daemon.bridge).exists()
    done = reset(daemon, "--force")
    assert (done.returncode, done.stdout) == (0, f"removed {daemon.bridge}\n")
    mine = [
        entry
        for now, then in zip((leaks.links(), leaks.nftables()), before, strict=True)
        for entry in set(now) - then
        if daemon.bridge in entry or pod[:12] in entry
    ]
    assert mine == []
    done = reset(daemon)
    assert (done.returncode, done.stdout) == (0, "there is no built-in network to remove\n")
    daemon.start()
    pods.remove_pod(pod)
    assert pods.pod_status(pods.run_pod(networked(pods))).network.ip


# UpdateRuntimeConfig.


def test_the_kubelets_pod_cidr_is_where_pods_get_their_addresses_from(daemon: Daemon) -> None:
    pods = Pods(daemon)
    daemon.stop()
    daemon.config.write_text(f'[network]\nbridge = "{daemon.bridge}"\n')
    daemon.start()
    network = cri.NetworkConfig(pod_cidr=daemon.subnet)
    request = cri.UpdateRuntimeConfigRequest(
        runtime_config=cri.RuntimeConfig(network_config=network)
    )
    daemon.runtime.UpdateRuntimeConfig(request, timeout=RPC_SECONDS)
    daemon.kill9()
    daemon.start()  # the kubelet does not tell it again
    ip = pods.pod_status(pods.run_pod(networked(pods))).network.ip
    assert ip == daemon.subnet.replace(".0/24", ".2")
    bad = cri.UpdateRuntimeConfigRequest(
        runtime_config=cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr="nonsense"))
    )
    refused("INVALID_ARGUMENT", daemon.runtime.UpdateRuntimeConfig, bad, timeout=RPC_SECONDS)

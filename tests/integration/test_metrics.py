"""A daemon's metrics: what happens on the node is what is counted; the dashboard answers."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.cri import api_pb2 as cri
from tests.integration import tiny_elf
from tests.integration.adoption import shim_of
from tests.integration.daemon import RPC_SECONDS, Daemon, wait_for
from tests.integration.pods import Pods
from tests.integration.prometheus import Prometheus
from tests.integration.registry import Registry
from tests.unit.test_observability_docs import panel_queries

LISTENING = re.compile(r"metrics on http://(127\.0\.0\.1:\d+)/metrics")
SLEEP = ("sleep", "3600")


@pytest.fixture
def daemon(make_daemon: Callable[[], Daemon]) -> Daemon:
    """A daemon with its metrics on a port and its pods' network by the CNI plugins."""
    made = make_daemon()
    with made.config.open("a") as config:
        config.write('[metrics]\nlisten = "127.0.0.1:0"\n[audit]\ninterval_seconds = 0.5\n')
    made.use_cni()
    made.start()
    return made


@pytest.fixture
def pods(daemon: Daemon, registry: Registry) -> Pods:
    made = Pods(daemon)
    made.pull(registry)
    return made


@pytest.fixture
def prometheus(daemon: Daemon, tmp_path: Path) -> Iterator[Prometheus]:
    running = Prometheus(tmp_path, address_of(daemon))
    yield running
    running.stop()


def address_of(daemon: Daemon) -> str:
    """Where the daemon that was started last says that its metrics are."""
    return LISTENING.findall(daemon.log.read_text())[-1]


class Scrape:
    """What a daemon exposes at one moment."""

    def __init__(self, daemon: Daemon) -> None:
        with urllib.request.urlopen(f"http://{address_of(daemon)}/metrics") as answer:
            self.text = answer.read()
        families = text_string_to_metric_families(self.text.decode())
        self._samples = [sample for family in families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float | None:
        """The value of one series, None if there is none."""
        return next((s.value for s in self._samples if (s.name, s.labels) == (name, labels)), None)


def cgroup_limited(mebibytes: int) -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(
        resources=cri.LinuxContainerResources(memory_limit_in_bytes=mebibytes << 20),
        security_context=cri.LinuxContainerSecurityContext(
            namespace_options=cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER)
        ),
    )


def failing_pull(daemon: Daemon) -> None:
    image = cri.ImageSpec(image="registry.test/there/is/none:1")
    with pytest.raises(grpc.RpcError):
        daemon.images.PullImage(cri.PullImageRequest(image=image), timeout=RPC_SECONDS)


def failing_start(pods: Pods, pod: str) -> None:
    with pytest.raises(grpc.RpcError):
        pods.run(pod, "/there/is/none")


def failing_network(pods: Pods) -> None:
    """A pod that the bridge plugin cannot attach, since its address is not one."""
    path = pods.daemon.cni_conf_dir / "10-bridge.conflist"
    good = path.read_text()
    broken = json.loads(good)
    broken["plugins"][0]["ipam"]["ranges"] = [[{"subnet": "nonsense"}]]
    path.write_text(json.dumps(broken))
    with pytest.raises(grpc.RpcError):
        pods.run_pod(pods.config(linux=cri.LinuxPodSandboxConfig()))
    path.write_text(good)


def test_what_happens_is_counted(pods: Pods, daemon: Daemon) -> None:
    pod = pods.run_pod()
    pods.run(pod, *SLEEP)
    pods.exited(pods.run(pod, "true"))
    pods.exited(pods.run(pod, "tail", "/dev/zero", linux=cgroup_limited(16)))
    failing_start(pods, pod)
    failing_pull(daemon)
    value = Scrape(daemon).value
    rpcs = functools.partial(value, "criserver_rpcs_total", service="RuntimeService")
    assert rpcs(method="RunPodSandbox", code="OK") == 1
    assert rpcs(method="StartContainer", code="OK") == 3
    assert rpcs(method="StartContainer", code="INVALID_ARGUMENT") == 1
    creation = {"operation": "CreateContainer"}
    assert value("criserver_operations_total", **creation, code="OK") == 4
    durations = "criserver_stage_duration_seconds_count"
    assert value(durations, **creation, stage="create.pivot") == 4
    start = {"operation": "StartContainer", "stage": "start"}
    assert value("criserver_stage_failures_total", **start) == 1
    assert value("criserver_sandboxes", state="ready") == 1
    assert value("criserver_containers", state="running") == 1
    assert value("criserver_containers", state="exited") == 3
    for reason in ("Completed", "OOMKilled", "StartError"):
        assert value("criserver_container_exits_total", reason=reason) == 1
    assert (value("criserver_oom_events_total") or 0) >= 1
    registry = {"registry": "registry.test"}
    assert value("criserver_pulls_total", **registry) == 2
    # Its mirror does not have the image, and the registry itself has no address.
    reason = "registry_unavailable"
    assert value("criserver_pull_failures_total", **registry, reason=reason) == 1
    assert (value("criserver_pull_bytes_total", **registry) or 0) > 1000
    assert value("criserver_spawner_up") == 1
    assert value("criserver_spawner_starts_total") == 1
    assert value("criserver_shims") == 1
    assert (value("process_resident_memory_bytes") or 0) > 1 << 20


def test_runs_of_the_cni_plugins_are_counted(pods: Pods, daemon: Daemon) -> None:
    pod = pods.run_pod(pods.config(linux=cri.LinuxPodSandboxConfig()))
    pods.stop_pod(pod)
    failing_network(pods)
    value = Scrape(daemon).value
    runs = "criserver_cni_duration_seconds_count"
    assert value(runs, plugin="bridge", command="ADD") == 2
    assert value("criserver_cni_failures_total", plugin="bridge", command="ADD") == 1
    assert (value(runs, plugin="portmap", command="DEL") or 0) >= 2
    network = {"operation": "RunPodSandbox", "stage": "network"}
    assert value("criserver_stage_failures_total", **network) == 1


def test_a_process_that_no_signal_reaches_is_seen(pods: Pods, daemon: Daemon) -> None:
    program = daemon.home / "stuck"
    program.write_bytes(tiny_elf.vfork_and_wait())
    program.chmod(0o755)
    mount = cri.Mount(container_path="/stuck", host_path=str(program))
    pods.run(pods.run_pod(), "/stuck", mounts=[mount])
    wait_for(
        lambda: Scrape(daemon).value("criserver_processes_uninterruptible") == 1,
        "the process in state D",
    )


def test_shims_and_spawners_that_die_are_counted(pods: Pods, daemon: Daemon) -> None:
    container = pods.run(pods.run_pod(), *SLEEP)
    info = json.loads(pods.verbose_status(container).info["info"])
    os.kill(shim_of(info["pid"]), signal.SIGKILL)
    wait_for(lambda: Scrape(daemon).value("criserver_shim_successions_total") == 1, "the successor")
    os.kill(daemon.spawner_pid(), signal.SIGKILL)
    wait_for(lambda: Scrape(daemon).value("criserver_spawner_starts_total") == 2, "the new spawner")
    wait_for(lambda: Scrape(daemon).value("criserver_spawner_up") == 1, "the new spawner's answer")
    assert Scrape(daemon).value("criserver_shims") == 1


def test_the_names_and_texts_are_as_prometheus_wants_them(daemon: Daemon) -> None:
    lint = subprocess.run(
        ["promtool", "check", "metrics"], input=Scrape(daemon).text, capture_output=True, timeout=60
    )
    assert (lint.returncode, lint.stderr) == (0, b"")


def test_the_dashboard_answers_in_prometheus(
    pods: Pods, daemon: Daemon, prometheus: Prometheus
) -> None:
    """Every query is evaluated by the real Prometheus, on series that it has scraped."""
    for _ in range(2):  # a rate takes two samples, and what is counted between them
        pod = pods.run_pod(pods.config(linux=cri.LinuxPodSandboxConfig()))
        failing_start(pods, pod)
        pods.remove_pod(pod)
        failing_pull(daemon)
        failing_network(pods)
        scraped(prometheus)
    assert [query for query in panel_queries() if not prometheus.query(query)] == []


def scraped(prometheus: Prometheus) -> None:
    """Wait until all has been scraped that has happened by now, and an audit after it."""
    now = time.time()
    newest = "criserver_audit_timestamp_seconds"

    def is_there() -> bool:
        found = prometheus.query(newest)
        return bool(found) and float(found[0]["value"][1]) > now

    wait_for(is_there, "a scrape")


def test_metrics_are_off_by_default(make_daemon: Callable[[], Daemon]) -> None:
    made = make_daemon()
    made.start()
    assert not LISTENING.search(made.log.read_text())
    assert not (made.run_dir / "metrics.sock").exists()


def test_a_unix_socket_goes_with_the_daemon(make_daemon: Callable[[], Daemon]) -> None:
    made = make_daemon()
    socket = made.run_dir / "metrics.sock"
    with made.config.open("a") as config:
        config.write(f'[metrics]\nlisten = "unix://{socket}"\n')
    made.start()
    assert socket.is_socket()
    made.kill9()
    assert socket.is_socket()
    made.start()
    assert socket.is_socket()
    made.stop()
    assert not socket.exists()

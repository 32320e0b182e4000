"""How long the RPCs take that a kubelet asks all the time, and what an idle daemon costs.

    .venv/bin/python -m tests.bench.rpcs [--pods 100] [--containers 5] [--idle 60]

Run as root, on a machine that does nothing else. Prints a table of ms beside the aims of the
project; nothing is asserted: figures are for the eye.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from api.cri import api_pb2 as cri
from api.cri import api_pb2_grpc
from tests.integration.daemon import Daemon
from tests.integration.pods import Pods
from tests.integration.registry import Registry

SLEEP = ("sleep", "1000000")
EXECS_AT_ONCE = 60
FEW = 10  # objects, when single ones are asked about


@dataclass(frozen=True)
class Row:
    """One line of the table; all in ms. `cpu` is the daemon's, for one call."""

    name: str
    times: list[float]
    cpu: float
    aim: str

    def line(self) -> str:
        median = statistics.median(self.times)
        worst = sorted(self.times)[int(len(self.times) * 0.95)]
        return (
            f"| {self.name:<36} | {median:8.2f} | {worst:8.2f} | {self.cpu:8.2f} | {self.aim:>5} |"
        )


class QuietDaemon(Daemon):
    """A daemon that logs as it does in production."""

    def command(self) -> list[str]:
        return ["warning" if word == "debug" else word for word in super().command()]


@contextmanager
def daemon() -> Iterator[Daemon]:
    made = QuietDaemon()
    try:
        # With a subnet that has room for the pods.
        made.config.write_text(f'[network]\nbridge = "{made.bridge}"\n')
        made.start()
        yield made
    finally:
        with redirect_stdout(sys.stderr):
            made.close()


def cpu_ms(pid: int) -> float:
    """CPU time of all threads of a process (kernel, scheduler/sched-stats.rst)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


class Meter:
    """Measures calls of one daemon."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def row(self, name: str, call: Callable[[], Any], rounds: int, aim: str = "") -> Row:
        call()  # the first one fills caches on both sides
        times = []
        before = cpu_ms(self._pid)
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1000)
        return Row(name, times, (cpu_ms(self._pid) - before) / rounds, aim)


def few(meter: Meter, pods: Pods, pod: str, container: str) -> list[Row]:
    """What is asked about single objects, with ten there."""
    runtime = pods.daemon.runtime
    status = cri.ContainerStatusRequest(container_id=container)
    pod_status = cri.PodSandboxStatusRequest(pod_sandbox_id=pod)
    listed, pods_listed = cri.ListContainersRequest(), cri.ListPodSandboxRequest()
    return [
        meter.row("ContainerStatus", lambda: runtime.ContainerStatus(status), 500, "1"),
        meter.row("PodSandboxStatus", lambda: runtime.PodSandboxStatus(pod_status), 500, "1"),
        meter.row("ListContainers, 10", lambda: runtime.ListContainers(listed), 500, "1"),
        meter.row("ListPodSandbox, 10", lambda: runtime.ListPodSandbox(pods_listed), 500, "1"),
        meter.row("ExecSync true", lambda: pods.exec(container, "true"), 50, "15"),
        execs_at_once(meter, pods, container),
    ]


def execs_at_once(meter: Meter, pods: Pods, container: str) -> Row:
    """60 execs of one container at the same moment; a failure ends the benchmark."""
    times: list[float] = []
    faults: list[BaseException] = []

    def one() -> None:
        start = time.perf_counter()
        try:
            assert pods.exec(container, "true").exit_code == 0
        except (grpc.RpcError, AssertionError) as err:
            faults.append(err)
        times.append((time.perf_counter() - start) * 1000)

    def all_of_them() -> None:
        threads = [threading.Thread(target=one) for _ in range(EXECS_AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    row = meter.row(f"{EXECS_AT_ONCE} x ExecSync true at once, each", all_of_them, 1)
    if faults:
        raise SystemExit(f"{len(faults)} of {len(times)} execs failed: {faults[0]}")
    return Row(row.name, times, row.cpu / EXECS_AT_ONCE, "")


def many(meter: Meter, endpoint: str, count: int) -> list[Row]:
    """What is asked about everything, with hundreds of containers there."""
    options = [("grpc.max_receive_message_length", 16 << 20)]
    with grpc.insecure_channel(endpoint, options=options) as channel:
        runtime = api_pb2_grpc.RuntimeServiceStub(channel)
        listed, stats = cri.ListContainersRequest(), cri.ListContainerStatsRequest()
        pod_stats, metrics = cri.ListPodSandboxStatsRequest(), cri.ListPodSandboxMetricsRequest()
        streamed = cri.StreamContainersRequest()
        return [
            meter.row(f"ListContainers, {count}", lambda: runtime.ListContainers(listed), 20, "30"),
            meter.row(
                f"StreamContainers, {count}", lambda: list(runtime.StreamContainers(streamed)), 20
            ),
            meter.row(
                f"ListContainerStats, {count}", lambda: runtime.ListContainerStats(stats), 10
            ),
            meter.row(
                f"ListPodSandboxStats, {count}",
                lambda: runtime.ListPodSandboxStats(pod_stats),
                10,
                "150",
            ),
            meter.row(
                f"ListPodSandboxMetrics, {count}",
                lambda: runtime.ListPodSandboxMetrics(metrics),
                10,
                "250",
            ),
        ]


def idle(pid: int, seconds: float) -> float:
    """The share of a core, in percent, that a daemon takes when nobody asks anything."""
    time.sleep(5)
    before = cpu_ms(pid)
    time.sleep(seconds)
    return (cpu_ms(pid) - before) / (seconds * 1000) * 100


def run(made: Daemon, registry: Registry, options: argparse.Namespace) -> None:
    made.use_registry("registry.test", registry.address)
    pods = Pods(made)
    pods.pull(registry)
    meter = Meter(made.pid)
    rows: list[Row] = []
    for number in range(options.pods):
        pod = pods.run_pod(pods.config(linux=cri.LinuxPodSandboxConfig()))
        for _ in range(options.containers):
            container = pods.run(pod, *SLEEP, labels={"app": "bench", "tier": "x"})
        if not rows and (number + 1) * options.containers >= FEW:
            rows = few(meter, pods, pod, container)
    rows += many(meter, made.endpoint, options.pods * options.containers)
    print(f"| {'RPC':<36} | {'median':>8} | {'95 %':>8} | {'CPU':>8} | {'aim':>5} |")
    print(f"|{'-' * 38}|{'-' * 10}|{'-' * 10}|{'-' * 10}|{'-' * 7}|")
    for row in rows:
        print(row.line())
    share = idle(made.pid, options.idle)
    print(f"\nidle with {options.pods} pods: {share:.2f} % of a core (aim 0.3)")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure criserver's RPCs.")
    parser.add_argument("--pods", type=int, default=100)
    parser.add_argument("--containers", type=int, default=5, help="in each pod")
    parser.add_argument("--idle", type=float, default=60.0, metavar="SECONDS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="criserver-bench-") as directory:
        registry = Registry(Path(directory))
        try:
            with daemon() as made:
                run(made, registry, options)
        finally:
            registry.stop()


if __name__ == "__main__":
    sys.exit(main())

"""What metrics and traces cost: memory, start, and the processor time of RPCs, off and on.

    .venv/bin/python -m tests.bench.observability [--rounds 3] [--calls 1000] [--pods 20]

Run as root. Each daemon is started alone for its memory; then all run side by side and are asked in
turns, so that what else runs on the machine meets all of them. Prints a table; nothing is asserted:
figures are for the eye.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from api.cri import api_pb2 as cri
from tests.bench import processes
from tests.integration import test_metrics
from tests.integration.collector import Collector
from tests.integration.daemon import RPC_SECONDS, Daemon
from tests.integration.pods import Pods
from tests.integration.registry import Registry

SETTLE_SECONDS = 3.0
SCRAPES = 20


class QuietDaemon(Daemon):
    """A daemon that logs as it does in production."""

    def command(self) -> list[str]:
        return ["info" if word == "debug" else word for word in super().command()]


@dataclass
class Variant:
    """One way to configure the daemon, and what was measured of it, in ms and MB."""

    name: str
    config: str
    sampled: bool = False
    daemon: Daemon = field(default_factory=QuietDaemon)
    start: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    version: list[float] = field(default_factory=list)
    pod: list[float] = field(default_factory=list)
    threads: int = 0

    def line(self) -> str:
        medians = [
            statistics.median(each) for each in (self.start, self.memory, self.version, self.pod)
        ]
        cells = [f"{medians[0]:6.0f}", f"{medians[1]:6.2f}", str(self.threads)]
        cells += [f"{medians[2] * 1000:6.0f}", f"{medians[3]:6.2f}"]
        return f"| {self.name:<28} | " + " | ".join(cells) + " |"

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """A caller's trace context, as the kubelet's."""
        flags = "01" if self.sampled else "00"
        return (("traceparent", f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{flags}"),)


def measured(variant: Variant, work: Callable[[], None], calls: int) -> float:
    """The daemon's processor time for one of `calls` calls that `work` makes, in ms."""
    before = processes.cpu_seconds([variant.daemon.pid])
    work()
    return (processes.cpu_seconds([variant.daemon.pid]) - before) * 1000 / calls


def ask_versions(variant: Variant, calls: int) -> None:
    runtime = variant.daemon.runtime
    for _ in range(calls):
        runtime.Version(cri.VersionRequest(), metadata=variant.metadata())


def start_and_remove(variant: Variant, pods: int) -> None:
    """Pods on the host's network with one container each, as they come and go."""
    runtime, maker = variant.daemon.runtime, Pods(variant.daemon)
    for _ in range(pods):
        metadata = variant.metadata()
        run = cri.RunPodSandboxRequest(config=maker.config())
        pod = runtime.RunPodSandbox(run, timeout=RPC_SECONDS, metadata=metadata).pod_sandbox_id
        create = cri.CreateContainerRequest(
            pod_sandbox_id=pod,
            config=cri.ContainerConfig(
                metadata=cri.ContainerMetadata(name="app"),
                image=cri.ImageSpec(image="registry.test/cri/busybox:latest"),
                command=("true",),
            ),
        )
        made = runtime.CreateContainer(create, timeout=RPC_SECONDS, metadata=metadata)
        start = cri.StartContainerRequest(container_id=made.container_id)
        runtime.StartContainer(start, timeout=RPC_SECONDS, metadata=metadata)
        maker.remove_pod(pod)


def measure_start(variant: Variant) -> None:
    """What a start takes, and the memory of a daemon that is alone: nothing is shared with one."""
    began = time.monotonic()
    variant.daemon.start()
    variant.start.append((time.monotonic() - began) * 1000)
    ask_versions(variant, 20)
    time.sleep(SETTLE_SECONDS)
    variant.memory.append(processes.pss([variant.daemon.pid]) / (1 << 20))
    variant.threads = len(list(Path(f"/proc/{variant.daemon.pid}/task").iterdir()))
    variant.daemon.stop()


def measure_work(variants: list[Variant], options: argparse.Namespace) -> None:
    """What RPCs take, of all daemons in turns."""
    calls, pods = options.calls, options.pods
    for variant in variants:
        variant.daemon.start()
        start_and_remove(variant, 2)
    for _ in range(options.rounds):
        for variant in variants:
            asked = measured(variant, lambda v=variant: ask_versions(v, calls), calls)
            variant.version.append(asked)
        for variant in variants:
            made = measured(variant, lambda v=variant: start_and_remove(v, pods), pods)
            variant.pod.append(made)


def measure_scrapes(variant: Variant, options: argparse.Namespace) -> str:
    """What Prometheus costs, with so many containers that run."""
    pods = Pods(variant.daemon)
    for _ in range(options.pods):
        pods.run(pods.run_pod(), "sleep", "1000000")
    sizes: list[int] = []

    def scrape() -> None:
        for _ in range(SCRAPES):
            url = f"http://{test_metrics.address_of(variant.daemon)}/metrics"
            with urllib.request.urlopen(url) as answer:
                sizes.append(len(answer.read()))

    cpu = measured(variant, scrape, SCRAPES)
    return (
        f"A scrape with {options.pods} containers: {cpu:.1f} ms of CPU, {sizes[-1] / 1024:.0f} KiB."
    )


def measure(variants: list[Variant], registry: Registry, options: argparse.Namespace) -> str:
    """Measure all; returns what there is to say of scrapes."""
    for variant in variants:
        with variant.daemon.config.open("a") as config:
            config.write(variant.config)
        variant.daemon.use_registry("registry.test", registry.address)
        variant.daemon.start()
        Pods(variant.daemon).pull(registry)
        variant.daemon.stop()
    for _ in range(options.rounds):
        for variant in variants:
            measure_start(variant)
    measure_work(variants, options)
    return measure_scrapes(variants[1], options)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=20)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # all is taken away
    collector = Collector()
    tracing = f'[tracing]\nendpoint = "{collector.endpoint}"\n'
    metrics = '[metrics]\nlisten = "127.0.0.1:0"\n'
    variants = [
        Variant("off", ""),
        Variant("metrics", metrics),
        Variant("traces, not sampled", tracing),
        Variant("traces, sampled", tracing, sampled=True),
        Variant("metrics and traces, sampled", metrics + tracing, sampled=True),
    ]
    with ExitStack() as stack:
        stack.enter_context(
            redirect_stdout(sys.stderr)
        )  # the daemons' logs, until the last has gone
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        registry = Registry(Path(directory))
        stack.callback(registry.stop)
        for variant in variants:
            stack.callback(variant.daemon.close)
        scrapes = measure(variants, registry, options)
    collector.stop()
    print("| | start, ms | PSS idle, MB | threads | CPU per Version, us | CPU per pod, ms |")
    print("|---|---|---|---|---|---|")
    for variant in variants:
        print(variant.line())
    print(scrapes)


if __name__ == "__main__":
    main()

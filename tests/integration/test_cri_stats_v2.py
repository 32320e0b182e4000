"""Stats on cgroup v2: what the CRI reports is what the kernel's files of that version say."""

from __future__ import annotations

import json
from pathlib import Path

from api.cri import api_pb2 as cri
from tests.integration.daemon import RPC_SECONDS, wait_for
from tests.integration.pods import Pods
from tests.integration.test_cri_stats import limited, metrics, pod_stats, stats_of, values

MIB = 1 << 20
NS_PER_US = 1000


def directory(pods: Pods, container: str) -> Path:
    """The container's cgroup, by the kernel's own word."""
    pid = json.loads(pods.verbose_status(container).info["info"])["pid"]
    line = Path(f"/proc/{pid}/cgroup").read_text().strip()
    assert line.startswith("0::/"), "one hierarchy, of version 2"
    return Path("/sys/fs/cgroup" + line.removeprefix("0::"))


def counter(file: Path, key: str) -> int:
    """A value of a flat-keyed file, like cpu.stat."""
    return int(dict(line.split() for line in file.read_text().splitlines())[key])


def stalled(file: Path) -> int:
    """Nanoseconds for which some task has waited, of a pressure file."""
    (line,) = (each for each in file.read_text().splitlines() if each.startswith("some "))
    return int(line.rpartition("total=")[2]) * NS_PER_US


def test_cpu_time_and_its_pressure_are_the_files(pods: Pods, pod: str) -> None:
    script = "(while :; do :; done) & while :; do :; done"
    container = pods.run(pod, "sh", "-c", script, linux=limited(cpuset_cpus="0"))
    own = directory(pods, container)
    wait_for(lambda: stalled(own / "cpu.pressure") > 0, "two loops to wait for one CPU")

    def read() -> tuple[int, int, int]:
        usage = (counter(path / "cpu.stat", "usage_usec") for path in (own, own.parent))
        return (*(each * NS_PER_US for each in usage), stalled(own / "cpu.pressure"))  # type: ignore[return-value]

    before = read()
    stats, of_pod = stats_of(pods, container), pod_stats(pods, pod)
    after = read()
    reported = (
        stats.cpu.usage_core_nano_seconds.value,
        of_pod.linux.cpu.usage_core_nano_seconds.value,
        stats.cpu.psi.Some.Total,
    )
    for low, found, high in zip(before, reported, after, strict=True):
        assert 0 < low <= found <= high


def test_memory_and_swap_are_the_files(pods: Pods, pod: str) -> None:
    script = "head -c 8388608 /dev/zero > /dev/shm/held; exec sleep 3600"
    container = pods.run(pod, "sh", "-c", script, linux=limited(memory_limit_in_bytes=64 * MIB))
    own = directory(pods, container)
    wait_for(lambda: counter(own / "memory.stat", "shmem") >= 8 * MIB, "the file")

    def same() -> bool:
        stats = stats_of(pods, container)
        return (
            stats.memory.usage_bytes.value,
            stats.memory.rss_bytes.value,
            stats.memory.page_faults.value,
            stats.swap.swap_usage_bytes.value,
        ) == (
            int((own / "memory.current").read_text()),
            counter(own / "memory.stat", "anon"),
            counter(own / "memory.stat", "pgfault"),
            int((own / "memory.swap.current").read_text()),
        )

    wait_for(same, "figures of a container that rests")
    stats = stats_of(pods, container)
    assert stats.memory.available_bytes.value == 64 * MIB - stats.memory.working_set_bytes.value
    assert stats.memory.HasField("psi") and stats.io.HasField("psi")


def test_an_oom_kill_is_counted_from_memory_events(pods: Pods, pod: str) -> None:
    wanted = limited(memory_limit_in_bytes=32 * MIB, memory_swap_limit_in_bytes=32 * MIB)
    container = pods.run(pod, "sleep", "3600", linux=wanted)
    own = directory(pods, container)
    assert pods.exec(container, "tail", "/dev/zero").exit_code == 137
    kills = counter(own / "memory.events", "oom_kill")
    assert kills > 0
    (found,) = (each for each in metrics(pods, pod).container_metrics)
    assert values(found.metrics)[("oom_events_total",)] == kills


def test_an_oom_killed_container_says_so(pods: Pods, pod: str) -> None:
    wanted = limited(memory_limit_in_bytes=32 * MIB, memory_swap_limit_in_bytes=32 * MIB)
    container = pods.run(pod, "tail", "/dev/zero", linux=wanted)
    status = pods.exited(container)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


def test_tasks_are_counted_and_limited_by_pids(pods: Pods, pod: str) -> None:
    wanted = limited()
    wanted.resources.unified["pids.max"] = "20"
    container = pods.run(pod, "sh", "-c", "sleep 3600 & sleep 3600 & exec sleep 3600", linux=wanted)
    own = directory(pods, container)
    assert (own / "pids.max").read_text() == "20\n"
    wait_for(lambda: (own / "pids.current").read_text() == "3\n", "its processes")
    request = cri.PodSandboxStatsRequest(pod_sandbox_id=pod)
    stats = pods.daemon.runtime.PodSandboxStats(request, timeout=RPC_SECONDS).stats
    assert stats.linux.process.process_count.value == int((own.parent / "pids.current").read_text())

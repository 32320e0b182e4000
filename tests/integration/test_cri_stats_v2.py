"""Stats on cgroup v2: what the CRI reports is what the kernel's files of that version say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from api.cri import api_pb2 as cri
from tests.integration.daemon import RPC_SECONDS, wait_for
from tests.integration.pods import Pods
from tests.integration.test_cri_stats import limited, metrics, pod_stats, stats_of, values

MIB = 1 << 20
NS_PER_US = 1000
# The metrics of block I/O (without "container_"), and the fields of io.stat that they tell.
BLOCK_IO = "blkio_device_usage_total"
WRITES = {"wbytes": "fs_writes_bytes_total", "wios": "fs_writes_total"}


def directory(pods: Pods, container: str) -> Path:
    """The container's cgroup, by the kernel's own word."""
    pid = json.loads(pods.verbose_status(container).info["info"])["pid"]
    line = Path(f"/proc/{pid}/cgroup").read_text().strip()
    assert line.startswith("0::/"), "one hierarchy, of version 2"
    return Path("/sys/fs/cgroup" + line.removeprefix("0::"))


def counter(file: Path, key: str) -> int:
    """A value of a flat-keyed file, like cpu.stat."""
    return int(dict(line.split() for line in file.read_text().splitlines())[key])


def stalled(file: Path, kind: str = "some") -> int:
    """Nanoseconds for which tasks have waited, of a pressure file."""
    (line,) = (each for each in file.read_text().splitlines() if each.split()[0] == kind)
    return int(line.rpartition("total=")[2]) * NS_PER_US


def assert_reads(reported: Callable[[], list[int]], of_the_kernel: Callable[[], list[int]]) -> None:
    """Assert that what is reported of counters lies between the kernel's before and after."""
    before = of_the_kernel()
    found = reported()
    for low, value, high in zip(before, found, of_the_kernel(), strict=True):
        assert 0 < low <= value <= high


def test_cpu_time_is_of_the_files(pods: Pods, pod: str) -> None:
    container = pods.run(pod, "sh", "-c", "while :; do :; done")
    own = directory(pods, container)

    def reported() -> list[int]:
        both = (stats_of(pods, container).cpu, pod_stats(pods, pod).linux.cpu)
        return [cpu.usage_core_nano_seconds.value for cpu in both]

    def of_the_kernel() -> list[int]:
        files = (own / "cpu.stat", own.parent / "cpu.stat")
        return [counter(file, "usage_usec") * NS_PER_US for file in files]

    assert_reads(reported, of_the_kernel)


# What makes tasks of a container wait, with its limits.
WAITS = {
    "cpu": ("(while :; do :; done) & while :; do :; done", {"cpuset_cpus": "0"}),
    # No task may use more than memory.high at full speed, and nothing of a tmpfs can be reclaimed.
    "memory": (
        "head -c 50331648 /dev/zero > /dev/shm/held",
        {"unified": {"memory.high": str(32 * MIB)}},
    ),
    "io": ("while :; do dd if=/dev/zero of=/written bs=64k count=16 conv=fsync; done", {}),
}


@pytest.mark.parametrize("resource", WAITS)
def test_pressure_is_of_the_files(pods: Pods, pod: str, resource: str) -> None:
    script, limits = WAITS[resource]
    container = pods.run(pod, "sh", "-c", script, linux=limited(**limits))
    own = directory(pods, container)
    files = [path / f"{resource}.pressure" for path in (own, own.parent)]
    kinds = ("some",) if resource == "cpu" else ("some", "full")

    def of_the_kernel() -> list[int]:
        return [stalled(file, kind) for file in files for kind in kinds]

    def reported() -> list[int]:
        both = (stats_of(pods, container), pod_stats(pods, pod).linux)
        pressures = (getattr(stats, resource).psi for stats in both)
        stalls = (getattr(psi, kind.title()) for psi in pressures for kind in kinds)
        return [stall.Total for stall in stalls]

    wait_for(lambda: all(of_the_kernel()), f"tasks that wait for {resource}")
    assert_reads(reported, of_the_kernel)


def test_what_is_written_is_counted_from_io_stat(pods: Pods, pod: str) -> None:
    script = "dd if=/dev/zero of=/written bs=1M count=4 conv=fsync; exec sleep 3600"
    container = pods.run(pod, "sh", "-c", script)
    file = directory(pods, container) / "io.stat"

    def of_the_kernel() -> dict[tuple[str, str], int]:
        devices = (line.split() for line in file.read_text().splitlines())
        figures = {device: dict(each.split("=") for each in rest) for device, *rest in devices}
        return {
            (device, name): int(values[name])
            for device, values in figures.items()
            for name in ("wbytes", "wios")
            if values
        }

    def reported() -> dict[tuple[str, str], int]:
        (of_container,) = metrics(pods, pod).container_metrics
        found = values(of_container.metrics)
        numbers = {key[1]: f"{key[2]}:{key[3]}" for key in found if key[0] == BLOCK_IO}
        return {
            (number, figure): found[(name, device)]
            for device, number in numbers.items()
            for figure, name in WRITES.items()
        }

    def is_written() -> bool:
        return any(
            each >= 4 * MIB for (_, name), each in of_the_kernel().items() if name == "wbytes"
        )

    wait_for(is_written, "the file to be on the disk")
    wait_for(lambda: reported() == of_the_kernel(), "figures of a container that rests")


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

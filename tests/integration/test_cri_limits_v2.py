"""Limits on cgroup v2, as the CRI sets and changes them: what the kernel's files say, and does.

The daemon's driver is that of CRISERVER_TEST_CGROUP_DRIVER, and the promises are the same for both.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from api.cri import api_pb2 as cri
from runtimeshim.linux.cgroups import device_filter, devices
from tests.integration.pods import Pods
from tests.integration.test_cri_stats import limited
from tests.integration.test_cri_stats_v2 import counter, directory
from tests.integration.test_cri_update import resize_pod, update

SLEEP = ("sleep", "3600")
MIB = 1 << 20
SYSTEMD = Path("/run/systemd/system")  # there while systemd is init (man 3 sd_booted)
WAIT = "until [ -e /go ]; do sleep 0.1; done;"


def reload() -> None:
    """Have systemd write all that it has been told to the cgroups that it knows of."""
    if SYSTEMD.exists():
        subprocess.run(["systemctl", "daemon-reload"], check=True)


def go(pods: Pods, container: str) -> None:
    """End the container's WAIT."""
    assert pods.exec(container, "touch", "/go").exit_code == 0


def files(own: Path, *names: str) -> dict[str, str]:
    return {name: (own / name).read_text().strip() for name in names}


def test_limits_and_a_resize_are_in_the_files_and_a_reload_leaves_them(
    pods: Pods, pod: str
) -> None:
    wanted = limited(
        cpu_shares=512, cpu_quota=20_000, cpu_period=50_000, cpuset_cpus="0", cpuset_mems="0",
        memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=96 * MIB,
        hugepage_limits=[cri.HugepageLimit(page_size="2MB", limit=4 * MIB)],
        unified={"memory.low": str(8 * MIB), "pids.max": "44"},
    )  # fmt: skip
    container = pods.run(pod, *SLEEP, linux=wanted)
    own = directory(pods, container)
    expected = {
        "cpu.weight": "59",
        "cpu.max": "20000 50000",
        "cpuset.cpus": "0",
        "cpuset.mems": "0",
        "memory.max": str(64 * MIB),
        "memory.swap.max": str(32 * MIB),
        "memory.low": str(8 * MIB),
        "hugetlb.2MB.max": str(4 * MIB),
        "pids.max": "44",
    }
    reload()
    assert files(own, *expected) == expected
    update(
        pods, container,
        cpu_shares=1024, cpu_quota=30_000, cpuset_cpus="1",
        memory_limit_in_bytes=128 * MIB, memory_swap_limit_in_bytes=128 * MIB,
        hugepage_limits=[cri.HugepageLimit(page_size="2MB", limit=6 * MIB)],
        unified={"memory.high": str(96 * MIB), "pids.max": "33"},
    )  # fmt: skip
    expected |= {
        "cpu.weight": "100",
        "cpu.max": "30000 50000",
        "cpuset.cpus": "1",
        "memory.max": str(128 * MIB),
        "memory.swap.max": "0",
        "memory.high": str(96 * MIB),
        "hugetlb.2MB.max": str(6 * MIB),
        "pids.max": "33",
    }
    assert files(own, *expected) == expected
    reload()
    assert files(own, *expected) == expected
    update(pods, container, cpu_quota=-1)
    reload()
    # The period limits nothing now; systemd writes its default one then (src/core/cgroup.c).
    assert files(own, "cpu.max")["cpu.max"].split()[0] == "max"


def test_a_resized_pod_keeps_its_limits_over_a_reload(pods: Pods, pod: str) -> None:
    own = directory(pods, pods.run(pod, *SLEEP)).parent
    resize_pod(pods, pod, cpu_shares=1024, memory_limit_in_bytes=256 * MIB)
    expected = {"cpu.weight": "100", "memory.max": str(256 * MIB)}
    assert files(own, *expected) == expected
    reload()
    assert files(own, *expected) == expected


def test_memory_that_a_resize_gives_can_be_used(pods: Pods, pod: str) -> None:
    wanted = limited(memory_limit_in_bytes=32 * MIB, memory_swap_limit_in_bytes=32 * MIB)
    container = pods.run(pod, *SLEEP, linux=wanted)
    own = directory(pods, container)
    fill = ("sh", "-c", "head -c 50331648 /dev/zero > /dev/shm/held")
    assert pods.exec(container, *fill).exit_code == 137
    kills = counter(own / "memory.events", "oom_kill")
    assert kills > 0
    update(pods, container, memory_limit_in_bytes=96 * MIB)
    assert pods.exec(container, *fill).exit_code == 0
    assert counter(own / "memory.events", "oom_kill") == kills
    assert counter(own / "memory.stat", "shmem") >= 48 * MIB


@pytest.mark.parametrize("together", ["0", "1"])
def test_an_oom_kill_is_that_of_memory_events(pods: Pods, pod: str, together: str) -> None:
    """`memory.oom.group`, which the kubelet sets, has the whole container killed."""
    limits = limited(memory_limit_in_bytes=32 * MIB, memory_swap_limit_in_bytes=32 * MIB)
    limits.resources.unified["memory.oom.group"] = together
    container = pods.run(pod, "sh", "-c", f"{WAIT} tail /dev/zero; exit 3", linux=limits)
    own = directory(pods, container)
    of_pod = own.parent / "memory.events"  # it counts what is below, too, and outlives it
    assert files(own, "memory.oom.group") == {"memory.oom.group": together}
    assert counter(of_pod, "oom_kill") == 0
    go(pods, container)
    status = pods.exited(container)
    # Of whichever process was killed the reason tells, as with the peers; the code is the init's.
    assert (status.exit_code, status.reason) == (137 if together == "1" else 3, "OOMKilled")
    assert counter(of_pod, "oom_kill") >= 1 + int(together)
    assert counter(of_pod, "oom_group_kill") == int(together)


def test_an_oom_killed_container_says_so(pods: Pods, pod: str) -> None:
    limits = limited(memory_limit_in_bytes=32 * MIB, memory_swap_limit_in_bytes=32 * MIB)
    container = pods.run(pod, "sh", "-c", f"{WAIT} exec tail /dev/zero", linux=limits)
    of_pod = directory(pods, container).parent / "memory.events"
    go(pods, container)
    status = pods.exited(container)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    assert counter(of_pod, "oom_kill") == 1


def test_devices_are_filtered_by_the_program_at_the_containers_cgroup(pods: Pods, pod: str) -> None:
    device = cri.Device(host_path="/dev/vda", container_path="/dev/disk", permissions="r")
    container = pods.run(pod, *SLEEP, devices=[device])
    own = directory(pods, container)

    def opens(mode: str) -> bool:
        answer = pods.exec(container, "sh", "-c", f": {mode} /dev/disk")
        assert answer.exit_code == 0 or b"Operation not permitted" in answer.stderr
        return bool(answer.exit_code == 0)

    def assert_read_only() -> None:
        assert (opens("<"), opens(">>")) == (True, False)

    assert_read_only()
    update(pods, container, cpu_shares=300)
    assert_read_only()
    reload()
    assert_read_only()
    pods.daemon.restart()
    assert_read_only()
    # Nothing else stands in the way: with another program there, it opens.
    everything = devices.allowlist([{"allow": True, "type": "a", "access": "rwm"}])
    device_filter.attach(str(own), device_filter.program(everything))
    assert opens(">>")

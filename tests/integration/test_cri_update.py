"""New limits for containers and pods that run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api.cri import api_pb2 as cri
from runtimeshim.linux import cgroups
from tests.integration import harness
from tests.integration.daemon import RPC_SECONDS, Daemon
from tests.integration.pods import Pods, refused

SLEEP = ("sleep", "3600")
MIB = 1 << 20
CGROUPS = Path("/sys/fs/cgroup")
V1 = cgroups.manager().version == 1


def linux(**fields: object) -> cri.LinuxContainerConfig:
    options = cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER)
    return cri.LinuxContainerConfig(
        resources=cri.LinuxContainerResources(**fields),  # type: ignore[arg-type]
        security_context=cri.LinuxContainerSecurityContext(namespace_options=options),
    )


def update(pods: Pods, container: str, **fields: object) -> None:
    resources = cri.LinuxContainerResources(**fields)  # type: ignore[arg-type]
    request = cri.UpdateContainerResourcesRequest(container_id=container, linux=resources)
    pods.daemon.runtime.UpdateContainerResources(request, timeout=RPC_SECONDS)


# cpu.shares as cpu.weight (runc 1.4 and newer: log10(weight) = (l² + 125 l)/612 - 7/34, l = log2)
WEIGHTS = {300: 39, 333: 42, 400: 49, 700: 75}


def cgroup(pod: str, container: str, file: str) -> str:
    """A control file's value; `file` is of version 1 as CONTROLLER/FILE, of version 2 as FILE."""
    controller, _, name = file.rpartition("/")
    if harness.CGROUP_DRIVER == "systemd":
        own = f"criserver{pod}.slice/" + (f"cri-criserver-{container}.scope" if container else "")
    else:
        own = f"criserver-{pod}/{container}"
    return (CGROUPS / controller / own / name).read_text().strip()


def shares(pod: str, container: str = "") -> str:
    if V1:
        return cgroup(pod, container, "cpu/cpu.shares")
    weight = int(cgroup(pod, container, "cpu.weight"))
    return str({weight: number for number, weight in WEIGHTS.items()}.get(weight, "other"))


def limits(pod: str, container: str) -> tuple[str, ...]:
    """Shares, quota, period, CPUs, memory, memory with swap: the kernel's, in version 1's terms."""
    if V1:
        files = (
            "cpu/cpu.cfs_quota_us",
            "cpu/cpu.cfs_period_us",
            "cpuset/cpuset.cpus",
            "memory/memory.limit_in_bytes",
            "memory/memory.memsw.limit_in_bytes",
        )
        return shares(pod, container), *(cgroup(pod, container, file) for file in files)
    quota, period = cgroup(pod, container, "cpu.max").replace("max", "-1").split()
    cpus = cgroup(pod, container, "cpuset.cpus")
    memory, swap = (cgroup(pod, container, f"memory.{file}") for file in ("max", "swap.max"))
    total = "max" if "max" in (memory, swap) else str(int(memory) + int(swap))
    return shares(pod, container), quota, period, cpus, memory, total


def test_limits_reach_the_kernel_and_the_status(pods: Pods, pod: str) -> None:
    container = pods.run(pod, *SLEEP, linux=linux(memory_limit_in_bytes=64 * MIB))
    update(
        pods,
        container,
        cpu_shares=300,
        cpu_quota=20_000,
        cpu_period=50_000,
        cpuset_cpus="0",
        memory_limit_in_bytes=128 * MIB,
    )
    expected = ("300", "20000", "50000", "0", str(128 * MIB), str(128 * MIB))
    assert limits(pod, container) == expected
    resources = pods.status(container).resources.linux
    assert (resources.cpu_shares, resources.cpu_quota, resources.cpu_period) == (
        300,
        20_000,
        50_000,
    )
    assert (resources.cpuset_cpus, resources.memory_limit_in_bytes) == ("0", 128 * MIB)


def test_what_is_left_out_stays(pods: Pods, pod: str) -> None:
    wanted = linux(cpu_shares=300, cpu_quota=20_000, cpu_period=50_000)
    container = pods.run(pod, *SLEEP, linux=wanted)
    update(pods, container, cpu_shares=400)
    assert limits(pod, container)[:3] == ("400", "20000", "50000")
    update(pods, container, cpu_quota=-1)
    assert limits(pod, container)[:3] == ("400", "-1", "50000")
    resources = pods.status(container).resources.linux
    assert (resources.cpu_shares, resources.cpu_quota) == (400, -1)


def test_memory_goes_up_and_down(pods: Pods, pod: str) -> None:
    wanted = linux(memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=64 * MIB)
    container = pods.run(pod, *SLEEP, linux=wanted)
    for size in (256 * MIB, 32 * MIB, 64 * MIB):
        update(pods, container, memory_limit_in_bytes=size)
        assert limits(pod, container)[4:] == (str(size), str(size))
    update(pods, container, memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=96 * MIB)
    assert limits(pod, container)[4:] == (str(64 * MIB), str(96 * MIB))


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"cpu_shares": 500, "cpuset_cpus": "7000"}, "INVALID_ARGUMENT"),
        ({"cpu_shares": 500, "cpuset_mems": "nonsense"}, "INVALID_ARGUMENT"),
        ({"cpu_shares": 500, "cpu_quota": 1}, "INVALID_ARGUMENT"),
        ({"cpu_shares": 500, "cpu_quota": -7}, "INVALID_ARGUMENT"),
        ({"cpu_shares": -1}, "INVALID_ARGUMENT"),
        ({"cpu_shares": 500, "memory_limit_in_bytes": 64 * MIB,
          "memory_swap_limit_in_bytes": 32 * MIB}, "INVALID_ARGUMENT"),
        ({"cpu_shares": 500, "oom_score_adj": 1001}, "INVALID_ARGUMENT"),
        ({"cpu_shares": 500, "cpuset_cpus": "0\0"}, "INVALID_ARGUMENT"),
        ({"cpu_shares": 500, "unified": {"../memory.high": "1"}}, "INVALID_ARGUMENT"),
        ({"cpu_quota": 10_000, "memory_limit_in_bytes": 1 << 20,
          "memory_swap_limit_in_bytes": 1 << 20}, "FAILED_PRECONDITION"),
    ],
)  # fmt: skip
def test_a_refused_update_changes_nothing(
    pods: Pods, pod: str, wrong: dict[str, object], code: str
) -> None:
    wanted = linux(cpu_shares=300, cpu_quota=20_000, cpu_period=50_000, cpuset_cpus="0-1")
    # Memory that cannot be reclaimed: a tmpfs without swap.
    script = "head -c 8388608 /dev/zero > /dev/shm/held; exec sleep 3600"
    container = pods.run(pod, "sh", "-c", script, linux=wanted)
    pods.exec(container, "sh", "-c", "until [ $(wc -c < /dev/shm/held) = 8388608 ]; do :; done")
    before, status = limits(pod, container), pods.status(container)
    spec = pods.verbose_status(container).info["info"]
    refused(code, update, pods, container, **wrong)
    assert limits(pod, container) == before
    assert pods.status(container) == status
    assert pods.verbose_status(container).info["info"] == spec


def test_a_created_container_starts_with_the_new_limits(pods: Pods, pod: str) -> None:
    container = pods.create(pod, *SLEEP)
    update(pods, container, cpu_shares=333)
    pods.start(container)
    assert limits(pod, container)[0] == "333"


def test_an_exited_container_only_remembers(pods: Pods, pod: str) -> None:
    container = pods.run(pod, "true")
    pods.exited(container)
    update(pods, container, cpu_shares=333)
    assert pods.status(container).resources.linux.cpu_shares == 333


def test_the_oom_score_of_its_processes(pods: Pods, pod: str) -> None:
    container = pods.run(pod, *SLEEP)
    update(pods, container, oom_score_adj=555)
    assert pods.exec(container, "cat", "/proc/1/oom_score_adj").stdout == b"555\n"
    assert pods.exec(container, "cat", "/proc/self/oom_score_adj").stdout == b"555\n"


def test_new_limits_outlive_the_daemon(pods: Pods, pod: str) -> None:
    container = pods.run(pod, *SLEEP)
    update(pods, container, cpu_shares=333)
    pods.daemon.restart()
    assert pods.status(container).resources.linux.cpu_shares == 333
    update(pods, container, cpu_quota=20_000)
    assert limits(pod, container)[:2] == ("333", "20000")


def test_bad_requests(pods: Pods, pod: str) -> None:
    refused("NOT_FOUND", update, pods, "0" * 64, cpu_shares=5)
    container = pods.create(pod, *SLEEP)
    request = cri.UpdateContainerResourcesRequest(container_id=container)
    call = pods.daemon.runtime.UpdateContainerResources
    assert "linux" in refused("INVALID_ARGUMENT", call, request, timeout=RPC_SECONDS)


def resize_pod(pods: Pods, pod: str, **fields: object) -> None:
    resources = cri.LinuxContainerResources(**fields)  # type: ignore[arg-type]
    request = cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=resources)
    pods.daemon.runtime.UpdatePodSandboxResources(request, timeout=RPC_SECONDS)


def test_a_pod_with_a_cgroup_of_its_own_is_resized(pods: Pods, pod: str) -> None:
    resize_pod(pods, pod, cpu_shares=700)
    assert shares(pod) == "700"
    refused("INVALID_ARGUMENT", resize_pod, pods, pod, cpu_shares=800, cpuset_cpus="7000")
    assert shares(pod) == "700"


def test_the_overhead_is_recorded(pods: Pods) -> None:
    config = pods.config()
    config.linux.overhead.memory_limit_in_bytes = 5 * MIB
    pod = pods.run_pod(config)

    def recorded() -> dict[str, str]:
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
        answer = pods.daemon.runtime.PodSandboxStatus(request, timeout=RPC_SECONDS)
        overhead: dict[str, str] = json.loads(answer.info["info"])["config"]["linux"]["overhead"]
        return overhead

    assert recorded() == {"memory_limit_in_bytes": str(5 * MIB)}
    overhead = cri.LinuxContainerResources(cpu_shares=7)
    request = cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, overhead=overhead)
    pods.daemon.runtime.UpdatePodSandboxResources(request, timeout=RPC_SECONDS)
    assert recorded() == {"memory_limit_in_bytes": str(5 * MIB), "cpu_shares": "7"}
    pods.remove_pod(pod)


def test_the_cgroup_of_the_kubelet_is_left_alone(pods: Pods) -> None:
    parent = harness.cgroup_parent(f"{pods.daemon.name}-kubelet")
    context = pods.config().linux.security_context
    pod = pods.run_pod(
        pods.config(linux=cri.LinuxPodSandboxConfig(cgroup_parent=parent, security_context=context))
    )
    try:
        name = "cpu.shares" if V1 else "cpu.weight"
        (file,) = {
            (directory / name).resolve()
            for directory in harness.cgroup_dirs(parent)
            if (directory / name).exists()
        }
        file.write_text("600")
        resize_pod(pods, pod, cpu_shares=700)
        assert file.read_text() == "600\n"
    finally:
        pods.remove_pod(pod)
        harness.remove_cgroups(parent)


def test_bad_requests_for_pods(pods: Pods, pod: str) -> None:
    refused("NOT_FOUND", resize_pod, pods, "0" * 64, cpu_shares=5)
    request = cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod)
    call = pods.daemon.runtime.UpdatePodSandboxResources
    refused("INVALID_ARGUMENT", call, request, timeout=RPC_SECONDS)


def test_the_nodes_pod_cidr_is_for_the_built_in_network(daemon: Daemon) -> None:
    daemon.config.write_text(f'[network]\nbridge = "{daemon.bridge}"\n')
    daemon.restart()
    pods = Pods(daemon)
    for cidr in ("", daemon.subnet):
        network = cri.NetworkConfig(pod_cidr=cidr)
        request = cri.UpdateRuntimeConfigRequest(
            runtime_config=cri.RuntimeConfig(network_config=network)
        )
        daemon.runtime.UpdateRuntimeConfig(request, timeout=RPC_SECONDS)
    pod = pods.run_pod(pods.config(linux=cri.LinuxPodSandboxConfig()))
    assert pods.pod_status(pod).network.ip.startswith(daemon.subnet.rsplit(".", 1)[0])
    pods.remove_pod(pod)

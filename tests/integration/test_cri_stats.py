"""Stats and metrics of real containers: what they use is what is reported."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from api.cri import api_pb2 as cri
from tests.integration.daemon import RPC_SECONDS, wait_for
from tests.integration.pods import Pods, refused

SLEEP = ("sleep", "3600")
MIB = 1 << 20


@pytest.fixture
def pod_with_network(pods: Pods) -> Iterator[str]:
    made = pods.run_pod(pods.config(linux=cri.LinuxPodSandboxConfig()))
    yield made
    pods.remove_pod(made)


def limited(**fields: Any) -> cri.LinuxContainerConfig:
    options = cri.NamespaceOption(pid=cri.CONTAINER)
    return cri.LinuxContainerConfig(
        resources=cri.LinuxContainerResources(**fields),
        security_context=cri.LinuxContainerSecurityContext(namespace_options=options),
    )


def stats_of(pods: Pods, container: str) -> cri.ContainerStats:
    request = cri.ContainerStatsRequest(container_id=container)
    return pods.daemon.runtime.ContainerStats(request, timeout=RPC_SECONDS).stats


def list_stats(pods: Pods, **wanted: Any) -> list[cri.ContainerStats]:
    request = cri.ListContainerStatsRequest(filter=cri.ContainerStatsFilter(**wanted))
    return list(pods.daemon.runtime.ListContainerStats(request, timeout=RPC_SECONDS).stats)


def pod_stats(pods: Pods, pod: str) -> cri.PodSandboxStats:
    request = cri.PodSandboxStatsRequest(pod_sandbox_id=pod)
    return pods.daemon.runtime.PodSandboxStats(request, timeout=RPC_SECONDS).stats


def metrics(pods: Pods, pod: str) -> cri.PodSandboxMetrics:
    answer = pods.daemon.runtime.ListPodSandboxMetrics(
        cri.ListPodSandboxMetricsRequest(), timeout=RPC_SECONDS
    )
    (found,) = (each for each in answer.pod_metrics if each.pod_sandbox_id == pod)
    return found


def values(found: Any) -> dict[tuple[str, ...], int]:
    """{(name without "container_", own labels…): value}"""
    return {
        (metric.name.removeprefix("container_"), *metric.label_values[5:]): metric.value.value
        for metric in found
    }


def test_what_a_container_uses(pods: Pods, pod: str) -> None:
    before = time.time_ns()
    script = (
        "head -c 20971520 /dev/zero > /written; sync; i=0; "
        "while [ $i -lt 30000 ]; do i=$((i+1)); done; touch /ready; exec sleep 3600"
    )
    container = pods.run(
        pod,
        *("sh", "-c", script),
        labels={"app": "web"},
        annotations={"note": "x"},
        linux=limited(memory_limit_in_bytes=256 * MIB),
    )
    wait_for(lambda: pods.exec(container, "test", "-e", "/ready").exit_code == 0, "the work")
    stats = stats_of(pods, container)
    assert stats.attributes.id == container
    assert stats.attributes.metadata == pods.status(container).metadata
    assert dict(stats.attributes.labels) == {"app": "web"}
    assert dict(stats.attributes.annotations) == {"note": "x"}
    assert before < stats.cpu.timestamp <= time.time_ns()
    assert stats.cpu.usage_core_nano_seconds.value > 10**6
    memory = stats.memory
    assert memory.timestamp == stats.cpu.timestamp
    assert 0 < memory.rss_bytes.value <= memory.usage_bytes.value
    assert 0 < memory.working_set_bytes.value <= memory.usage_bytes.value
    assert memory.available_bytes.value == 256 * MIB - memory.working_set_bytes.value
    assert memory.page_faults.value > 0
    assert memory.HasField("major_page_faults")

    def written() -> int:
        return int(stats_of(pods, container).writable_layer.used_bytes.value)

    wait_for(lambda: 20 * MIB <= written() < 21 * MIB, "the writable layer to be measured anew")
    layer = stats_of(pods, container).writable_layer
    assert layer.fs_id.mountpoint == str(pods.daemon.root)
    assert layer.inodes_used.value >= 2


def test_cpu_that_is_used_between_two_requests_is_a_rate(pods: Pods, pod: str) -> None:
    container = pods.run(pod, "sh", "-c", "while :; do :; done")
    assert not stats_of(pods, container).cpu.HasField("usage_nano_cores")
    time.sleep(0.5)
    rate = stats_of(pods, container).cpu.usage_nano_cores.value
    assert rate > 10**7, "a loop takes more than a hundredth of a CPU"
    idle = pods.run(pod, *SLEEP)
    stats_of(pods, idle)
    time.sleep(0.5)
    assert stats_of(pods, idle).cpu.usage_nano_cores.value < rate


def test_a_created_and_an_exited_container(pods: Pods, pod: str) -> None:
    created = pods.create(pod, *SLEEP)
    assert stats_of(pods, created).memory.usage_bytes.value > 0
    exited = pods.run(pod, "true")
    pods.exited(exited)
    stats = stats_of(pods, exited)
    assert stats.attributes.id == exited
    assert not (stats.HasField("cpu") or stats.HasField("memory"))
    assert stats.HasField("writable_layer")


def test_lists_are_filtered(pods: Pods, pod: str) -> None:
    first = pods.run(pod, *SLEEP, labels={"app": "a", "tier": "x"})
    second = pods.run(pod, *SLEEP, labels={"app": "b", "tier": "x"})
    other = pods.run_pod()
    third = pods.run(other, *SLEEP, labels={"app": "a"})
    everything = {stats.attributes.id for stats in list_stats(pods)}
    assert everything >= {first, second, third}
    rows: list[tuple[dict[str, Any], set[str]]] = [
        ({"id": first}, {first}),
        ({"id": first[:20]}, {first}),
        ({"id": "0" * 64}, set()),
        ({"pod_sandbox_id": pod}, {first, second}),
        ({"pod_sandbox_id": other[:20]}, {third}),
        ({"pod_sandbox_id": pod, "label_selector": {"app": "a"}}, {first}),
        ({"pod_sandbox_id": pod, "label_selector": {"app": "a", "tier": "y"}}, set()),
        ({"pod_sandbox_id": other, "id": first}, set()),
    ]
    for wanted, expected in rows:
        assert {stats.attributes.id for stats in list_stats(pods, **wanted)} == expected, wanted
        request = cri.StreamContainerStatsRequest(filter=cri.ContainerStatsFilter(**wanted))
        stream = pods.daemon.runtime.StreamContainerStats(request, timeout=RPC_SECONDS)
        pages = [page.container_stats for page in stream]
        assert all(pages), "no message is empty"
        assert {each.attributes.id for page in pages for each in page} == expected
    pods.remove_pod(other)


def test_what_a_pod_uses(pods: Pods, pod_with_network: str) -> None:
    pod = pod_with_network
    address = pods.pod_status(pod).network.ip
    gateway = f"{address.rsplit('.', 1)[0]}.1"
    first, second = pods.run(pod, *SLEEP), pods.run(pod, *SLEEP)
    assert pods.exec(first, "ping", "-c", "3", gateway).exit_code == 0
    stats = pod_stats(pods, pod)
    assert stats.attributes.id == pod
    linux = stats.linux
    assert {each.attributes.id for each in linux.containers} == {first, second}
    assert linux.cpu.usage_core_nano_seconds.value >= sum(
        each.cpu.usage_core_nano_seconds.value for each in linux.containers
    )
    assert linux.memory.usage_bytes.value > 0
    assert linux.process.process_count.value >= 2
    network = linux.network
    assert network.default_interface.name == "eth0"
    assert network.default_interface.rx_bytes.value >= 3 * 84
    assert network.default_interface.tx_bytes.value >= 3 * 84
    assert network.default_interface.HasField("rx_errors")
    assert list(network.interfaces) == []
    assert before_and_after(pods, pod, first, gateway)


def before_and_after(pods: Pods, pod: str, container: str, gateway: str) -> bool:
    before = pod_stats(pods, pod).linux.network.default_interface.rx_bytes.value
    pods.exec(container, "ping", "-c", "1", gateway)
    return bool(pod_stats(pods, pod).linux.network.default_interface.rx_bytes.value > before)


def test_a_pod_on_the_hosts_network_has_no_network_stats(pods: Pods, pod: str) -> None:
    pods.run(pod, *SLEEP)
    linux = pod_stats(pods, pod).linux
    assert not linux.HasField("network")
    assert linux.cpu.usage_core_nano_seconds.value > 0


def test_pods_that_are_stopped_are_not_listed(pods: Pods) -> None:
    config = pods.config(labels={"only": "these"})
    pod = pods.run_pod(config)

    def listed(**wanted: Any) -> list[str]:
        request = cri.ListPodSandboxStatsRequest(filter=cri.PodSandboxStatsFilter(**wanted))
        answer = pods.daemon.runtime.ListPodSandboxStats(request, timeout=RPC_SECONDS)
        stream = pods.daemon.runtime.StreamPodSandboxStats(
            cri.StreamPodSandboxStatsRequest(filter=request.filter), timeout=RPC_SECONDS
        )
        ids = [each.attributes.id for each in answer.stats]
        assert ids == [each.attributes.id for page in stream for each in page.pod_sandbox_stats]
        return ids

    assert listed(label_selector={"only": "these"}) == [pod]
    assert listed(id=pod[:20]) == [pod]
    assert listed(label_selector={"only": "those"}) == []
    pods.stop_pod(pod)
    assert listed(id=pod) == []
    stats = pod_stats(pods, pod)
    assert stats.attributes.metadata == config.metadata
    assert not stats.HasField("linux")
    pods.remove_pod(pod)


def test_unknown_ids(pods: Pods) -> None:
    refused("NOT_FOUND", stats_of, pods, "0" * 64)
    refused("NOT_FOUND", pod_stats, pods, "0" * 64)
    refused("INVALID_ARGUMENT", stats_of, pods, "")


def test_metrics_are_declared_and_labelled(pods: Pods, pod_with_network: str) -> None:
    container = pods.run(pod_with_network, *SLEEP, name="web")
    declared = {
        each.name: list(each.label_keys)
        for each in pods.daemon.runtime.ListMetricDescriptors(
            cri.ListMetricDescriptorsRequest(), timeout=RPC_SECONDS
        ).descriptors
    }
    found = metrics(pods, pod_with_network)
    (of_container,) = found.container_metrics
    assert of_container.container_id == container
    for metric in [*found.metrics, *of_container.metrics]:
        assert len(metric.label_values) == len(declared[metric.name]), metric.name
    labels = dict(
        zip(
            declared["container_memory_working_set_bytes"],
            next(
                m.label_values
                for m in of_container.metrics
                if m.name == "container_memory_working_set_bytes"
            ),
            strict=True,
        )
    )
    assert labels["id"] == container
    assert (labels["namespace"], labels["container"]) == ("tests", "web")
    assert labels["image"] == pods.status(container).image.image


def test_metrics_tell_what_containers_do(pods: Pods, pod_with_network: str) -> None:
    script = "sleep 3600 & sleep 3600 & nc -l -p 8000 & exec 7</dev/null; wait"
    container = pods.run(
        pod_with_network,
        *("sh", "-c", script),
        linux=limited(
            cpu_period=100_000,
            cpu_quota=50_000,
            cpu_shares=512,
            memory_limit_in_bytes=64 * MIB,
            memory_swap_limit_in_bytes=64 * MIB,
        ),
    )
    wait_for(
        lambda: (
            values(metrics(pods, pod_with_network).container_metrics[0].metrics)[("sockets",)] >= 1
        ),
        "the listening socket",
    )
    found = metrics(pods, pod_with_network)
    told = values(found.container_metrics[0].metrics)
    assert told[("processes",)] == told[("threads",)] == 4
    assert told[("file_descriptors",)] >= 13
    assert told[("ulimits_soft", "max_open_files")] > 0
    assert told[("spec_cpu_period",)] == 100_000
    assert told[("spec_cpu_quota",)] == 50_000
    assert told[("spec_cpu_shares",)] == 512
    assert told[("spec_memory_limit_bytes",)] == 64 * MIB
    assert told[("spec_memory_swap_limit_bytes",)] == 64 * MIB
    assert 0 < told[("memory_working_set_bytes",)] < 64 * MIB
    assert told[("memory_max_usage_bytes",)] >= told[("memory_usage_bytes",)] > 0
    assert told[("memory_failures_total", "pgfault", "container")] > 0
    assert told[("oom_events_total",)] == 0
    started = pods.status(container).started_at // 10**9
    assert abs(told[("start_time_seconds",)] - started) <= 1
    assert told[("last_seen",)] >= started
    (device,) = (labels[1] for labels in told if labels[0] == "fs_limit_bytes")
    assert told[("fs_limit_bytes", device)] > told[("fs_usage_bytes", device)]
    assert told[("fs_inodes_total", device)] >= told[("fs_inodes_free", device)]
    of_pod = values(found.metrics)
    assert of_pod[("network_receive_packets_total", "eth0")] >= 0
    assert of_pod[("memory_working_set_bytes",)] >= told[("memory_working_set_bytes",)]


def test_an_oom_kill_is_counted(pods: Pods, pod: str) -> None:
    container = pods.run(
        pod,
        *("sh", "-c", "tail /dev/zero; exec sleep 3600"),
        linux=limited(memory_limit_in_bytes=16 * MIB),
    )
    wait_for(
        lambda: values(metrics(pods, pod).container_metrics[0].metrics)[("oom_events_total",)] == 1,
        "the OOM killer",
    )
    assert pods.status(container).state == cri.CONTAINER_RUNNING


def test_metrics_in_pieces_are_the_same(pods: Pods, pod: str) -> None:
    pods.run(pod, *SLEEP)
    stream = pods.daemon.runtime.StreamPodSandboxMetrics(
        cri.StreamPodSandboxMetricsRequest(), timeout=RPC_SECONDS
    )
    pages = [page.pod_sandbox_metrics for page in stream]
    assert all(pages)
    (found,) = (each for page in pages for each in page if each.pod_sandbox_id == pod)
    listed = metrics(pods, pod)
    assert [m.name for m in found.metrics] == [m.name for m in listed.metrics]
    assert len(found.container_metrics) == 1


def test_containers_that_come_and_go_disturb_no_list(pods: Pods, pod: str) -> None:
    for _ in range(5):
        container = pods.run(pod, "true")
        list_stats(pods)
        metrics(pods, pod)
        pod_stats(pods, pod)
        pods.remove(container)

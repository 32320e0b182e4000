"""/stats/summary and /metrics/cadvisor, by the CRI's figures and by the kubelet's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.daemon import wait_for
from tests.kubelet.kubelet import Kubelet, is_running
from tests.kubelet.manifests import pod, shell

BUSY = """
head -c 300000 /dev/zero >/file
head -c 20000000 /dev/zero >/memory/file
while true; do :; done"""


def busy_pod() -> dict[str, Any]:
    main = shell(
        BUSY,
        resources={"limits": {"cpu": "200m", "memory": "64Mi"}},
        volumeMounts=[{"name": "memory", "mountPath": "/memory"}],
    )
    return pod(main, volumes=[{"name": "memory", "emptyDir": {"medium": "Memory"}}])


def summary(kubelet: Kubelet, name: str) -> dict[str, Any]:
    """What /stats/summary says of the pod; empty before it does."""
    pods: list[dict[str, Any]] = json.loads(kubelet.get("/stats/summary"))["pods"]
    return next((one for one in pods if one["podRef"]["name"] == name), {})


def main_of(stats: dict[str, Any]) -> dict[str, Any]:
    return next((one for one in stats.get("containers", ()) if one["name"] == "main"), {})


def is_complete(stats: dict[str, Any]) -> bool:
    main = main_of(stats)
    return bool(
        main.get("cpu", {}).get("usageNanoCores")
        and main.get("memory", {}).get("workingSetBytes", 0) > 20_000_000
        and main.get("rootfs", {}).get("usedBytes", 0) > 300_000
        and any(one.get("usedBytes", 0) >= 20_000_000 for one in stats.get("volume", ()))
    )


@pytest.fixture
def by_cri(kubelet: Kubelet) -> Iterator[Kubelet]:
    kubelet.restart(featureGates={"PodAndContainerStatsFromCRI": True})
    yield kubelet
    kubelet.restart()


def check(kubelet: Kubelet, name: str) -> dict[str, Any]:
    """Wait for the pod's figures and judge them; returns them."""
    kubelet.until(name, is_running, "its start")
    found: dict[str, Any] = {}

    def complete() -> bool:
        found.update(summary(kubelet, name))
        return is_complete(found)

    wait_for(complete, "the pod's figures", 120.0)
    main = main_of(found)
    assert 0 < main["cpu"]["usageNanoCores"] < 400e6  # of 200e6 that it may have
    assert main["cpu"]["usageCoreNanoSeconds"] > 0
    assert 20_000_000 < main["memory"]["workingSetBytes"] < 64 << 20
    assert main["memory"]["availableBytes"] + main["memory"]["workingSetBytes"] == 64 << 20
    assert 300_000 < main["rootfs"]["usedBytes"] < 1_000_000
    assert main["rootfs"]["inodesUsed"] > 0
    (memory,) = [one for one in found["volume"] if one["name"] == "memory"]
    assert memory["usedBytes"] >= 20_000_000
    assert found["ephemeral-storage"]["usedBytes"] > 300_000
    for line in ("container_cpu_usage_seconds_total", "container_memory_working_set_bytes"):
        labels = f'container="main",namespace="tests",pod="{name}"'
        assert f"{line}{{{labels}}}" in kubelet.get("/metrics/resource").decode()
    return found


def test_the_summary_of_a_usual_kubelet(kubelet: Kubelet) -> None:
    """CPU and memory are from its own reading of the cgroups, or the CRI; the disk from the CRI."""
    check(kubelet, kubelet.put(busy_pod()))


def test_the_summary_by_the_cri(by_cri: Kubelet) -> None:
    found = check(by_cri, by_cri.put(busy_pod()))
    assert found["cpu"]["usageNanoCores"] > 0
    assert found["memory"]["workingSetBytes"] > 20_000_000
    network = found["network"]
    assert network["name"] == "eth0"
    assert network["rxBytes"] + network["txBytes"] > 0
    assert found["process_stats"]["process_count"] >= 1


def test_the_image_filesystem(kubelet: Kubelet) -> None:
    runtime = json.loads(kubelet.get("/stats/summary"))["node"]["runtime"]
    assert runtime["imageFs"]["usedBytes"] > 1_000_000  # busybox alone
    assert runtime["imageFs"]["inodesUsed"] > 0
    assert 0 < runtime["imageFs"]["availableBytes"] < runtime["imageFs"]["capacityBytes"]


def metrics(kubelet: Kubelet, name: str) -> dict[str, dict[str, str]]:
    """Metrics of the pod's container `main`, or of the pod where that is empty: name -> value."""
    found: dict[str, dict[str, str]] = {"main": {}, "": {}}
    for line in kubelet.get("/metrics/cadvisor").decode().splitlines():
        match = re.fullmatch(r"(\w+)\{(.*)\} (\S+)( \d+)?", line)
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2])) if match else {}
        if match and labels.get("pod") == name and labels.get("container", "") in found:
            found[labels.get("container", "")][match[1]] = match[3]
    return found


def test_the_metrics_by_the_cri(by_cri: Kubelet) -> None:
    name = by_cri.put(busy_pod())
    by_cri.until(name, is_running, "its start")
    wanted = {
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_memory_usage_bytes",
        "container_memory_rss",
        "container_memory_cache",
        "container_spec_cpu_quota",
        "container_spec_memory_limit_bytes",
        "container_processes",
        "container_threads",
        "container_fs_usage_bytes",
        "container_start_time_seconds",
        "container_oom_events_total",
    }
    wait_for(lambda: wanted <= set(metrics(by_cri, name)["main"]), "the metrics", 30.0)
    of_pod = metrics(by_cri, name)[""]
    assert {
        "container_network_receive_bytes_total",
        "container_network_transmit_bytes_total",
    } <= set(of_pod)

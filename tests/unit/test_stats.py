"""Readings as messages and metrics; rates; what is measured in the background."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from typing import Any

import pytest

from api.cri import api_pb2 as cri
from api.errors import InternalError
from criserver.stats import writable_layers
from criserver.stats.messages import fill_container, fill_sandbox
from criserver.stats.metric_families import BASE_LABELS, FAMILIES
from criserver.stats.metric_messages import MetricMessages
from criserver.stats.metrics import Filesystem, fill_container_metrics, fill_sandbox_metrics
from criserver.stats.rates import CpuRates
from criserver.stats.readings import ContainerTarget, Reading, SandboxTarget
from criserver.stats.writable_layers import WritableLayers
from criserver.store.containers import Container
from criserver.store.sandboxes import Sandbox
from imageservice.snapshots import Usage
from runtimeshim.linux.cgroups.stats import (
    CgroupDetails,
    CgroupStats,
    Cpu,
    DeviceIO,
    HugePages,
    Memory,
    Pressure,
    Stall,
)
from runtimeshim.linux.network_counters import InterfaceCounters

CONFIG = cri.ContainerConfig(
    metadata=cri.ContainerMetadata(name="web", attempt=2),
    image=cri.ImageSpec(image="sha256:1", user_specified_image="registry.test/web:1"),
    labels={"app": "web"},
    annotations={"a": "b"},
)
CONFIG.linux.resources.cpu_shares = 512
CONFIG.linux.resources.memory_limit_in_bytes = 1 << 20
POD = cri.PodSandboxConfig(
    metadata=cri.PodSandboxMetadata(name="pod", namespace="ns", uid="u"), labels={"x": "y"}
)
CONTAINER = Container(
    "c1", "n", "s1", CONFIG.SerializeToString(), created_at=1, started_at=5 * 10**9, pid=0
)
SANDBOX = Sandbox("s1", "n", POD.SerializeToString(), "", '{"cgroup_parent": "/p"}', 1, 0)
STALL = Stall(1.0, 2.0, 3.0, 4_000_000_000)
MEMORY = Memory(1000, 700, 500, 400, 60, 300, 100, 9, 2, 5, 1, limit=2000)
STATS = CgroupStats(
    Cpu(7 * 10**9, 2 * 10**9, 10**9, 10, 4, 3 * 10**9),
    MEMORY._replace(peak=1500, failures=3, kernel=30, swap=200, swap_limit=500),
    7,
    {name: Pressure(STALL, STALL) for name in ("cpu", "memory", "io")},
)
DETAILS = CgroupDetails(
    100,
    (DeviceIO(8, 0, {"Read": 1, "Write": 2}, {"Read": 3, "Write": 4}),),
    (HugePages("2MB", 5, 6),),
    2,
)
READING = Reading(123, STATS, 250_000_000, DETAILS)
NOTHING = Reading(123, CgroupStats())
TARGET = ContainerTarget(CONTAINER, "/p/c1", Usage(4096, 3, 99))
POD_TARGET = SandboxTarget(SANDBOX, [TARGET])
INTERFACES = [
    InterfaceCounters("net1", 1, 2, 3, 4, 5, 6, 7, 8),
    InterfaceCounters("eth0", 11, 12, 13, 14, 15, 16, 17, 18),
]
FILESYSTEM = Filesystem("/dev/vda1", 1 << 30, 1000, 900)


def container_stats(target: ContainerTarget, reading: Reading) -> cri.ContainerStats:
    stats = cri.ContainerStats()
    fill_container(stats, target, reading, "/root")
    return stats


def test_a_container_with_all_figures() -> None:
    stats = container_stats(TARGET, READING)
    attributes = stats.attributes
    assert (attributes.id, attributes.metadata.name, attributes.metadata.attempt) == (
        "c1",
        "web",
        2,
    )
    assert (dict(attributes.labels), dict(attributes.annotations)) == ({"app": "web"}, {"a": "b"})
    assert stats.cpu.timestamp == 123
    assert stats.cpu.usage_core_nano_seconds.value == 7 * 10**9
    assert stats.cpu.usage_nano_cores.value == 250_000_000
    assert stats.memory.working_set_bytes.value == 700
    assert stats.memory.available_bytes.value == 1300
    assert (stats.memory.usage_bytes.value, stats.memory.rss_bytes.value) == (1000, 500)
    assert (stats.memory.page_faults.value, stats.memory.major_page_faults.value) == (9, 2)
    assert (stats.swap.swap_usage_bytes.value, stats.swap.swap_available_bytes.value) == (200, 300)
    assert stats.writable_layer.fs_id.mountpoint == "/root"
    layer = stats.writable_layer
    assert (layer.timestamp, layer.used_bytes.value, layer.inodes_used.value) == (99, 4096, 3)
    for psi in (stats.cpu.psi, stats.memory.psi, stats.io.psi):
        assert psi.Full.Total == psi.Some.Total == 4_000_000_000
        assert (psi.Some.Avg10, psi.Some.Avg60, psi.Some.Avg300) == (1.0, 2.0, 3.0)


def test_what_was_not_measured_is_absent_and_not_zero() -> None:
    stats = container_stats(ContainerTarget(CONTAINER, "", None), NOTHING)
    assert [field.name for field, _ in stats.ListFields()] == ["attributes"]


def test_memory_without_a_limit_has_nothing_available_to_tell() -> None:
    unlimited = Reading(1, CgroupStats(memory=MEMORY._replace(limit=None, swap=0)))
    stats = container_stats(TARGET, unlimited)
    assert not stats.memory.HasField("available_bytes")
    assert stats.swap.HasField("swap_usage_bytes")
    assert not stats.swap.HasField("swap_available_bytes")


def test_a_zero_that_was_measured_is_there() -> None:
    stats = container_stats(TARGET, Reading(1, CgroupStats(Cpu(0)), 0))
    assert stats.cpu.HasField("usage_core_nano_seconds")
    assert stats.cpu.HasField("usage_nano_cores")


def test_a_pod_with_its_network() -> None:
    stats = cri.PodSandboxStats()
    fill_sandbox(stats, POD_TARGET, READING, INTERFACES)
    assert (stats.attributes.id, stats.attributes.metadata.uid) == ("s1", "u")
    assert dict(stats.attributes.labels) == {"x": "y"}
    network = stats.linux.network
    assert network.default_interface.name == "eth0"
    assert network.default_interface.rx_bytes.value == 11
    assert network.default_interface.tx_errors.value == 17
    assert [each.name for each in network.interfaces] == ["net1"], "without the default one"
    assert stats.linux.process.process_count.value == 7
    assert stats.linux.memory.working_set_bytes.value == 700
    assert stats.linux.io.psi.Some.Total == 4_000_000_000


def test_a_pod_on_the_hosts_network_has_none_of_its_own() -> None:
    stats = cri.PodSandboxStats()
    fill_sandbox(stats, POD_TARGET, READING, [])
    assert not stats.linux.HasField("network")


def metrics_of(reading: Reading, messages: MetricMessages | None = None) -> list[cri.Metric]:
    made = cri.ContainerMetrics()
    pids = [os.getpid(), 1 << 22]
    fill_container_metrics(
        made, TARGET, POD_TARGET, reading, pids, FILESYSTEM, messages or MetricMessages()
    )
    return list(made.metrics)


def test_every_family_has_a_value_when_everything_is_measured() -> None:
    pod = cri.PodSandboxMetrics()
    fill_sandbox_metrics(pod, POD_TARGET, READING, INTERFACES, MetricMessages())
    names = {metric.name for metric in [*metrics_of(READING), *pod.metrics]}
    # These two are of a quota, and of a living process.
    missing = {"container_spec_cpu_quota", "container_ulimits_soft"}
    assert {family.name for family in FAMILIES} - names == missing


def test_label_values_match_the_keys_in_number_and_order() -> None:
    descriptors = {family.name: family.descriptor() for family in FAMILIES}
    base = {
        "id": "c1",
        "image": "registry.test/web:1",
        "namespace": "ns",
        "pod": "pod",
        "container": "web",
    }
    for metric in metrics_of(READING):
        keys = list(descriptors[metric.name].label_keys)
        labels = dict(zip(keys, metric.label_values, strict=True))
        assert {key: labels[key] for key in BASE_LABELS} == base
        assert metric.metric_type == next(f.type for f in FAMILIES if f.name == metric.name)


def test_names_are_declared_once_with_help() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert all(family.help for family in FAMILIES)


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("cpu_usage_seconds_total", ("total",), 7),
        ("cpu_cfs_throttled_seconds_total", (), 3),
        ("memory_working_set_bytes", (), 700),
        ("memory_max_usage_bytes", (), 1500),
        ("memory_failures_total", ("pgfault", "container"), 5),
        ("memory_failures_total", ("pgfault", "hierarchy"), 9),
        ("oom_events_total", (), 2),
        ("processes", (), 2),
        ("threads", (), 7),
        ("threads_max", (), 100),
        ("start_time_seconds", (), 5),
        ("hugetlb_max_usage_bytes", ("2MB",), 6),
        ("pressure_cpu_waiting_seconds_total", (), 4),
        ("fs_usage_bytes", ("/dev/vda1",), 4096),
        ("fs_inodes_free", ("/dev/vda1",), 900),
        ("spec_cpu_shares", (), 512),
        ("spec_cpu_period", (), 100_000),
        ("spec_memory_limit_bytes", (), 1 << 20),
        ("spec_memory_swap_limit_bytes", (), 0),
    ],
)
def test_values(name: str, labels: tuple[str, ...], value: int) -> None:
    found = [
        metric.value.value
        for metric in metrics_of(READING)
        if metric.name == f"container_{name}"
        and tuple(metric.label_values[len(BASE_LABELS) :]) == labels
    ]
    assert found == [value]


def test_a_pod_metric_names_no_container() -> None:
    pod = cri.PodSandboxMetrics()
    fill_sandbox_metrics(pod, POD_TARGET, READING, INTERFACES, MetricMessages())
    assert {tuple(metric.label_values[:5]) for metric in pod.metrics} == {
        ("s1", "", "ns", "pod", "")
    }


def test_kept_messages_are_as_new_ones() -> None:
    kept = MetricMessages()
    fewer = Reading(5, CgroupStats(tasks=1))
    for reading in (READING, READING, fewer, READING, dataclasses.replace(READING, timestamp=9)):
        assert metrics_of(reading, kept) == metrics_of(reading)
    kept.keep([])
    assert metrics_of(READING, kept) == metrics_of(READING)


def test_what_was_handed_out_does_not_change_later() -> None:
    kept = MetricMessages()
    first = metrics_of(READING, kept)
    copied = [cri.Metric.FromString(each.SerializeToString()) for each in first]
    metrics_of(Reading(5, CgroupStats(Cpu(1)), details=DETAILS), kept)
    metrics_of(dataclasses.replace(READING, timestamp=9), kept)
    assert first == copied


def test_a_rate_needs_two_readings() -> None:
    rates = CpuRates()
    assert rates.update("a", 0, 100) is None
    assert rates.update("a", 2 * 10**9, 100 + 10**9) == 5 * 10**8
    assert rates.update("b", 2 * 10**9, 0) is None


def test_readings_that_are_close_together_share_a_rate() -> None:
    rates = CpuRates()
    rates.update("a", 0, 0)
    rate = rates.update("a", 10**9, 10**9)
    assert rates.update("a", 10**9 + 1, 2 * 10**9) == rate == 10**9
    assert rates.update("a", 2 * 10**9, 2 * 10**9) == 10**9


def test_a_counter_that_began_again_has_no_rate() -> None:
    rates = CpuRates()
    rates.update("a", 0, 1000)
    assert rates.update("a", 10**9, 10) is None
    assert rates.update("a", 2 * 10**9, 10) == 0


def test_the_removed_are_forgotten() -> None:
    rates = CpuRates()
    rates.update("a", 0, 0)
    rates.keep(["b"])
    assert rates.update("a", 10**9, 10) is None


async def test_layers_are_measured_off_the_path_and_kept() -> None:
    measured: list[str] = []

    async def measure(container_id: str) -> Usage:
        measured.append(container_id)
        return Usage(1, 2, time.time_ns())

    layers = WritableLayers(measure)
    assert set(await layers.get(["a", "b"])) == {"a", "b"}
    await layers.get(["a"])
    assert measured == ["a", "b"], "once each: the figures are fresh"
    layers.keep(["b"])
    await layers.get(["a"])
    assert measured == ["a", "b", "a"]
    await layers.close()


async def test_a_slow_measurement_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writable_layers, "WAIT_SECONDS", 0.01)
    gate = asyncio.Event()

    async def measure(container_id: str) -> Usage:
        await gate.wait()
        return Usage(1, 2, time.time_ns())

    layers = WritableLayers(measure)
    assert await layers.get(["a"]) == {}
    gate.set()
    await asyncio.sleep(0)
    assert set(await layers.get(["a"])) == {"a"}
    await layers.close()


async def test_an_old_figure_is_better_than_none() -> None:
    calls = 0

    async def measure(_container_id: str) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise InternalError("the disk is away")
        return Usage(1, 2, 0)

    layers = WritableLayers(measure)
    await layers.get(["a"])
    assert (await layers.get(["a"]))["a"].used_bytes == 1
    assert (await layers.get(["a"]))["a"].used_bytes == 1
    await layers.close()

"""Units of systemd: names as systemd.slice(5) nests them, and limits as properties."""

from __future__ import annotations

import pytest

from runtimeshim.linux.cgroups import CgroupError, unit_properties, units

SLICE = "kubepods-burstable-pod1_2.slice"
EXPANDED = "/kubepods.slice/kubepods-burstable.slice/" + SLICE


@pytest.mark.parametrize(
    ("path", "name", "directory"),
    [
        (SLICE, SLICE, EXPANDED),
        (f"{SLICE}:cri-criserver:abc", "cri-criserver-abc.scope",
         f"{EXPANDED}/cri-criserver-abc.scope"),
        ("system.slice:runc:x", "runc-x.scope", "/system.slice/runc-x.scope"),
        (":runc:x", "runc-x.scope", "/system.slice/runc-x.scope"),
        ("a.slice::x", "x.scope", "/a.slice/x.scope"),
        ("-.slice:p:x", "p-x.scope", "/p-x.scope"),
        ("a.slice:p:a-b.slice", "a-b.slice", "/a.slice/a-b.slice"),
    ],
)  # fmt: skip
def test_a_path_names_a_unit_and_a_directory(path: str, name: str, directory: str) -> None:
    unit = units.parse(path)
    assert (unit.name, unit.path()) == (name, directory)
    assert units.directory(path) == directory


@pytest.mark.parametrize(
    "path",
    ["", "kubepods", "a.slice:b", "a:b:c", "a.slice:b:", "a.slice:b:c/d", "a--b.slice", "-a.slice",
     "a-.slice", "../x.slice", "a.slice:b:" + "c" * 256, "a.slice:b:c:d"],
)  # fmt: skip
def test_what_names_no_unit_is_refused(path: str) -> None:
    with pytest.raises(CgroupError, match="names no unit of systemd"):
        units.parse(path)


def test_a_container_is_a_child_of_its_pods_cgroup_of_either_kind() -> None:
    assert units.child("/kubepods/pod1", "abc") == "/kubepods/pod1/abc"
    assert units.child(SLICE, "abc") == f"{SLICE}:cri-criserver:abc"


def test_limits_as_properties() -> None:
    resources = {
        "memory": {"limit": 100, "swap": 150, "reservation": 50},
        "cpu": {"shares": 1024, "quota": 25000, "period": 50000, "cpus": "0-1,9", "mems": "0"},
        "pids": {"limit": 0},
        "blockIO": {"weight": 1000},
        "unified": {"memory.high": "max", "memory.oom.group": "1"},
    }
    found = {
        name: (value.signature, value.value)
        for name, value in unit_properties.properties(resources)
    }
    assert found == {
        "MemoryMax": ("t", 100),
        "MemoryLow": ("t", 50),
        "MemorySwapMax": ("t", 50),
        "MemoryHigh": ("t", unit_properties.INFINITY),
        "CPUWeight": ("t", 100),
        "CPUQuotaPeriodUSec": ("t", 50000),
        "CPUQuotaPerSecUSec": ("t", 500000),
        "AllowedCPUs": ("ay", b"\x03\x02"),
        "AllowedMemoryNodes": ("ay", b"\x01"),
        "TasksMax": ("t", 1),
        "IOWeight": ("t", 10000),
    }


def test_what_was_before_an_update_takes_its_cpus_back() -> None:
    before = {"unified": {"cpuset.cpus": "", "cpuset.mems": "0-1"}}
    found = {name: value.value for name, value in unit_properties.properties(before)}
    assert found == {"AllowedCPUs": b"", "AllowedMemoryNodes": b"\x03"}


@pytest.mark.parametrize("numbers", ["2-1", "-1", "8192", "0-4000000000"])
def test_a_list_of_more_cpus_than_there_can_be_is_refused(numbers: str) -> None:
    with pytest.raises(CgroupError, match="no list"):
        unit_properties.bitmap(numbers)


def test_without_limits_there_is_no_property() -> None:
    assert unit_properties.properties({"devices": [], "memory": {"limit": 0}}) == []


@pytest.mark.parametrize(
    ("quota", "period", "wanted"),
    [(50000, 100000, 500000), (1000, 300000, 10000), (-1, 100000, -1), (33333, 100000, 340000)],
)
def test_a_quota_is_rounded_up_to_what_systemd_can_tell(
    quota: int, period: int, wanted: int
) -> None:
    assert unit_properties.quota_per_second(quota, period) == wanted


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"cpu": {"quota": (1 << 63) - 1}}, "cpu: the quota"),
        ({"cpu": {"quota": 1 << 44, "period": 1000}}, "cpu: the quota"),
        ({"cpu": {"period": 999}}, "cpu: the period"),
        ({"cpu": {"period": 1_000_001}}, "cpu: the period"),
        ({"unified": {"cpu.max": f"{1 << 44} 1000"}}, "unified: cpu.max: the quota"),
        ({"unified": {"cpu.max": "max 999"}}, "unified: cpu.max: the period"),
        ({"unified": {"memory.max": str(1 << 64)}}, "18446744073709551616 does not fit"),
    ],
)
def test_what_the_kernel_would_refuse_is_refused_and_not_left_to_systemd(
    resources: dict[str, object], field: str
) -> None:
    with pytest.raises(CgroupError, match=field) as caught:
        unit_properties.properties(resources)
    assert caught.value.is_unacceptable


def test_a_wrong_value_names_its_field() -> None:
    with pytest.raises(CgroupError, match=r"linux\.resources\.cpu"):
        unit_properties.properties({"cpu": {"cpus": "x"}})
    with pytest.raises(CgroupError, match=r"unified: pids\.max"):
        unit_properties.properties({"unified": {"pids.max": "many"}})

"""Limits in place: all of them or those before."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from runtimeshim.linux.cgroups import CgroupError
from runtimeshim.linux.cgroups.update import current, update
from runtimeshim.linux.cgroups.v1 import Hierarchy, V1Manager
from runtimeshim.linux.cgroups.v2 import V2Manager

V1 = {
    "cpu": {"cpu.shares": "1024", "cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
    "cpuset": {"cpuset.cpus": "0-1", "cpuset.mems": "0"},
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.memsw.limit_in_bytes": "9223372036854771712",
    },
    "hugetlb": {"hugetlb.2MB.limit_in_bytes": "0"},
}
V2 = {
    "cpu.weight": "100",
    "cpu.max": "max 100000",
    "cpuset.cpus": "",
    "memory.max": "max",
    "memory.high": "max",
    "memory.swap.max": "0",
    "memory.current": "4096",
    "hugetlb.2MB.max": "max",
}


@pytest.fixture
def v1(tmp_path: Path) -> V1Manager:
    for controller, files in V1.items():
        directory = tmp_path / controller / "a"
        directory.mkdir(parents=True)
        for name, content in files.items():
            (directory / name).write_text(content)
    return V1Manager([Hierarchy(name, str(tmp_path / name)) for name in V1])


@pytest.fixture
def v2(tmp_path: Path) -> V2Manager:
    (tmp_path / "cgroup.controllers").write_text("cpu cpuset memory hugetlb")
    (tmp_path / "a").mkdir()
    for name, content in V2.items():
        (tmp_path / "a" / name).write_text(content)
    return V2Manager(str(tmp_path))


def contents(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}


def test_current_is_what_the_update_would_change(v1: V1Manager) -> None:
    wanted = {"cpu": {"shares": 2, "cpus": "0"}, "memory": {"limit": 1 << 20}}
    assert current(v1, "/a", wanted) == {
        "cpu": {"shares": 1024, "cpus": "0-1"},
        "memory": {"limit": -1},
    }


def test_current_on_v2_is_the_files_content(v2: V2Manager) -> None:
    wanted = {
        "cpu": {"quota": 5, "period": 10},
        "memory": {"limit": 1},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "unified": {"memory.high": "5", "no.such": "1"},
    }
    files = ("cpu.max", "memory.max", "hugetlb.2MB.max", "memory.high")
    assert current(v2, "/a", wanted) == {"unified": {name: V2[name] for name in files}}


def test_an_update_returns_what_was_before(v1: V1Manager, tmp_path: Path) -> None:
    before = update(v1, "/a", {"cpu": {"shares": 2}})
    assert before == {"cpu": {"shares": 1024}}
    assert (tmp_path / "cpu/a/cpu.shares").read_text().startswith("2")


class Refusing:
    """A manager of which the n-th apply fails, after it has done its work."""

    def __init__(self, manager: Any, refuse: tuple[int, ...]) -> None:
        self._manager = manager
        self._refuse = refuse
        self.applied: list[Any] = []
        self.version = manager.version

    def directories(self, path: str) -> Any:
        return self._manager.directories(path)

    def apply(self, path: str, resources: Any) -> None:
        self.applied.append(resources)
        if len(self.applied) in self._refuse:
            raise CgroupError(errno.EINVAL, f"refused {len(self.applied)}", path)


def test_a_failure_restores_what_was_before(v1: V1Manager) -> None:
    manager: Any = Refusing(v1, refuse=(1,))
    wanted = {"cpu": {"shares": 2, "quota": 5}, "memory": {"limit": 1, "swap": 1}}
    with pytest.raises(CgroupError, match="refused 1"):
        update(manager, "/a", wanted)
    assert manager.applied[1:] == [
        {"cpu": {"shares": 1024, "quota": -1}, "memory": {"limit": -1, "swap": -1}}
    ]


def test_a_failure_of_the_restoration_is_in_the_error(v2: V2Manager) -> None:
    manager: Any = Refusing(v2, refuse=(1, 2))
    with pytest.raises(CgroupError, match="refused 1") as caught:
        update(manager, "/a", {"memory": {"limit": 1}})
    assert "refused 2" in caught.value.__notes__[0]


def test_a_limit_below_the_usage_is_refused_on_v2(v2: V2Manager, tmp_path: Path) -> None:
    before = contents(tmp_path)
    wanted = {"memory": {"limit": 100, "swap": 100, "checkBeforeUpdate": True}}
    with pytest.raises(CgroupError, match="in use") as caught:
        update(v2, "/a", wanted)
    assert caught.value.errno == errno.EBUSY
    assert contents(tmp_path) == before

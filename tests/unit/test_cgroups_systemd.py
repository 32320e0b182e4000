"""The systemd driver's order of things, with a systemd that only makes directories."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtimeshim.linux import systemd
from runtimeshim.linux.cgroups import CgroupError, units
from runtimeshim.linux.cgroups.systemd import UnitManager
from runtimeshim.linux.cgroups.v2 import V2Manager
from runtimeshim.linux.systemd import Property

PATH = "a.slice:crtest:x"
LIMITS = {"memory": {"limit": 1 << 20}}


class Started:
    """What was asked of systemd: unit -> properties."""

    def __init__(self, root: Path) -> None:
        self.units: dict[str, dict[str, object]] = {}
        self._root = root

    def start(self, unit: str, properties: Sequence[Property]) -> None:
        self.units[unit] = {name: variant.value for name, variant in properties}
        scope = units.Unit("a.slice", unit if unit.endswith(units.SCOPE) else "")
        directory = self._root / scope.path().lstrip("/")
        directory.mkdir()
        for name in ("memory.max", "memory.swap.max", "cgroup.procs", "cgroup.subtree_control"):
            (directory / name).touch()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").write_text("memory")
    (tmp_path / "cgroup.subtree_control").touch()
    return tmp_path


@pytest.fixture
def started(root: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    made = Started(root)
    monkeypatch.setattr(systemd, "start", made.start)
    return made


@pytest.fixture
def manager(root: Path, started: Started) -> UnitManager:
    return UnitManager(V2Manager(str(root)))


def test_a_scope_begins_with_its_limits_though_the_init_was_forked_before_them(
    manager: UnitManager, started: Started, root: Path
) -> None:
    of_init = copy.deepcopy(manager)  # a fork's
    manager.create(PATH)
    manager.apply(PATH, LIMITS)
    manager.begin(PATH, 4711)
    scope = started.units["crtest-x.scope"]
    assert (scope["PIDs"], scope["MemoryMax"]) == ([4711], 1 << 20)
    of_init.join(PATH, 0)
    directory = root / "a.slice/crtest-x.scope"
    assert (directory / "memory.max").read_text() == str(1 << 20)
    assert (directory / "cgroup.procs").read_text() == "0"


def test_no_scope_begins_without_limits(manager: UnitManager, started: Started) -> None:
    manager.create(PATH)
    with pytest.raises(CgroupError, match=r"crtest-x\.scope does not exist"):
        copy.deepcopy(manager).join(PATH, os.getpid())
    assert "crtest-x.scope" not in started.units


def test_a_directory_begins_without_a_process(manager: UnitManager, started: Started) -> None:
    manager.begin("/none", os.getpid())
    assert started.units == {}

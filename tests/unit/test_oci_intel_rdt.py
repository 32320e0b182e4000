"""linux.intelRdt on a directory that looks like resctrl: this machine's kernel has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtimeshim.oci import intel_rdt
from runtimeshim.oci.errors import SpecError


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / "schemata").write_text("L3:0=ff\nMB:0=100\n")
    return str(tmp_path)


def given(root: str, name: str, schemata: str = "L3:0=ff\nMB:0=100\n") -> Path:
    directory = Path(root, name)
    directory.mkdir()
    (directory / "schemata").write_text(schemata)
    return directory


def test_without_resctrl_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no resctrl filesystem is mounted"):
        intel_rdt.prepare({"closID": "a"}, "c", str(tmp_path))


def test_a_class_without_schemata_has_to_be_there(root: str) -> None:
    with pytest.raises(SpecError, match="there is no class 'a'"):
        intel_rdt.prepare({"closID": "a"}, "c", root)
    there = given(root, "a")
    assert intel_rdt.prepare({"closID": "a"}, "c", root) == str(there)


def test_without_a_class_the_container_has_its_own_and_takes_it_away(root: str) -> None:
    made = intel_rdt.prepare({}, "c", root)
    assert made == f"{root}/c"
    intel_rdt.remove({}, "c", root)
    assert not Path(made).exists()
    intel_rdt.remove({}, "c", root)


def test_a_named_class_stays(root: str) -> None:
    there = given(root, "a")
    intel_rdt.remove({"closID": "a"}, "a", root)
    assert there.exists()


@pytest.mark.parametrize(
    ("wanted", "last"),
    [
        ({"l3CacheSchema": "L3:0=f"}, "L3:0=f\n"),
        ({"memBwSchema": "MB:0=20"}, "MB:0=20\n"),
        ({"l3CacheSchema": "L3:0=f\nMB:0=1", "memBwSchema": "MB:0=20"}, "MB:0=20\n"),
        ({"l3CacheSchema": "L3:0=f", "schemata": ["L2:0=1"]}, "L2:0=1\n"),
    ],
)
def test_schemata_are_written_line_by_line(root: str, wanted: dict[str, Any], last: str) -> None:
    made = intel_rdt.prepare({"closID": "new", **wanted}, "c", root)
    assert Path(made, "schemata").read_text() == last


def test_the_schemata_of_a_class_that_is_there_have_to_match(root: str) -> None:
    given(root, "a", "L3:0=f\n")
    intel_rdt.prepare({"closID": "a", "schemata": ["L3:0=f"]}, "c", root)
    with pytest.raises(SpecError, match="has not 'L3:0=1'"):
        intel_rdt.prepare({"closID": "a", "schemata": ["L3:0=1"]}, "c", root)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../x"])
def test_a_class_is_a_name_and_no_path(root: str, name: str) -> None:
    with pytest.raises(SpecError, match="is not a name"):
        intel_rdt.prepare({"closID": name, "schemata": ["L3:0=f"]}, "c", root)


def test_monitoring_has_a_group_of_the_containers(root: str) -> None:
    given(root, "a")
    intel_rdt.prepare({"closID": "a", "enableMonitoring": True}, "c", root)
    assert Path(root, "a/mon_groups/c").is_dir()


def test_a_process_is_put_into_its_tasks(root: str) -> None:
    directory = given(root, "a")
    intel_rdt.join(str(directory), 77)
    assert (directory / "tasks").read_text() == "77"

"""Which CNI configuration counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podsandbox.network.cni_config import CNIConfigError, ConfigDirectories, from_json, parse


def conflist(**changes: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]} | changes


def read(document: Any, *, is_list: bool = True):
    return parse(json.dumps(document).encode(), is_list=is_list)


def test_a_list_and_a_single_plugin_are_the_same_thing() -> None:
    plugin = {"cniVersion": "0.4.0", "name": "net", "type": "bridge", "mtu": 1400}
    config = read(plugin, is_list=False)
    assert (config.name, config.version, config.plugins) == ("net", "0.4.0", (plugin,))
    assert read(conflist()).plugins == ({"type": "bridge"},)


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_the_versions_are_known(version: str) -> None:
    assert read(conflist(cniVersion=version)).version == version


@pytest.mark.parametrize(
    ("changes", "version"),
    [
        ({"cniVersions": ["0.4.0", "1.1.0"]}, "1.1.0"),
        ({"cniVersions": ["0.4.0", "9.9.9"]}, "1.0.0"),
        ({"cniVersion": None, "cniVersions": ["0.4.0", "0.3.1"]}, "0.4.0"),
    ],
)
def test_the_highest_known_version_is_chosen(changes: dict[str, Any], version: str) -> None:
    assert read(conflist(**changes)).version == version


@pytest.mark.parametrize(
    ("document", "is_list", "message"),
    [
        ([], True, "not a JSON object"),
        (conflist(name=""), True, "name is ''"),
        (conflist(name=3), True, "name is 3"),
        (conflist(name="a/b"), True, "name is 'a/b'"),
        (conflist(plugins=[]), True, "no plugins"),
        (conflist(plugins={}), True, "no plugins"),
        (conflist(plugins=["bridge"]), True, "type is None"),
        (conflist(plugins=[{"type": "../../bin/sh"}]), True, "not the name of a program"),
        (conflist(plugins=[{"type": ".."}]), True, "not the name of a program"),
        (conflist(cniVersion="0.2.0"), True, "cniVersion 0.2.0 is none of"),
        (conflist(cniVersion=None), True, "cniVersion None"),
        (conflist(cniVersions="1.0.0"), True, "cniVersions is not a list"),
        (conflist(), False, "belongs in a .conflist"),
        ({"cniVersion": "1.0.0", "type": "bridge"}, False, "name is None"),
    ],
)
def test_what_cannot_be_used_says_why(document: Any, is_list: bool, message: str) -> None:
    with pytest.raises(CNIConfigError, match=message):
        read(document, is_list=is_list)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_configuration_or_an_error(text: bytes) -> None:
    for is_list in (True, False):
        with pytest.raises(CNIConfigError):
            parse(text, is_list=is_list)


def test_the_first_usable_file_by_name_counts(tmp_path: Path) -> None:
    directory = ConfigDirectories([tmp_path / "net.d"])
    assert (directory.exists(), directory.load()) == (False, (None, []))
    (tmp_path / "net.d").mkdir()
    for name, text in {
        "05-ignored.txt": "{",
        "10-broken.conflist": "{",
        "20-second.conflist": json.dumps(conflist(name="second")),
        "30-third.conf": json.dumps({"cniVersion": "1.0.0", "name": "third", "type": "x"}),
    }.items():
        (tmp_path / "net.d" / name).write_text(text)
    config, reasons = directory.load()
    assert config is not None and config.name == "second"
    assert [reason.partition(":")[0] for reason in reasons] == ["10-broken.conflist"]


def test_a_change_is_seen_at_once(tmp_path: Path) -> None:
    directory = ConfigDirectories([tmp_path])
    path = tmp_path / "10-net.conflist"
    for name in ("one", "two"):
        new = tmp_path / "new"
        new.write_text(json.dumps(conflist(name=name)))
        new.rename(path)
        config, _ = directory.load()
        assert config is not None and config.name == name
    path.unlink()
    assert directory.load() == (None, [])


def test_only_broken_files_are_a_configuration_too(tmp_path: Path) -> None:
    (tmp_path / "10-net.json").write_text("{}")
    directory = ConfigDirectories([tmp_path])
    assert directory.exists()
    assert directory.load()[0] is None


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), ("TRUE", True), (False, False), ("false", False)]
)
def test_switches_are_values_or_words(value: Any, expected: bool) -> None:
    config = read(conflist(disableGC=value, disableCheck=value))
    assert (config.disable_gc, config.disable_check) == (expected, expected)
    assert from_json(json.loads(json.dumps(config.as_json()))) == config


@pytest.mark.parametrize("key", ["disableGC", "disableCheck", "loadOnlyInlinedPlugins"])
@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_switch_that_is_none_is_refused(key: str, value: Any) -> None:
    with pytest.raises(CNIConfigError, match=f"{key} is .*, neither true nor false"):
        read(conflist(**{key: value}))


def test_plugins_of_a_networks_own_directory_come_after_the_inlined_ones(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    for name in ("20-b.conf", "10-a.conf", "30-c.conflist"):
        (tmp_path / "net" / name).write_text(json.dumps({"type": name}))
    path = tmp_path / "10-net.conflist"
    path.write_text(json.dumps(conflist()))
    directories = ConfigDirectories([tmp_path])

    def types() -> list[str] | None:
        config, _ = directories.load()
        return None if config is None else [plugin["type"] for plugin in config.plugins]

    assert types() == ["bridge", "10-a.conf", "20-b.conf"]
    path.write_text(json.dumps(conflist(plugins=[])))
    assert types() == ["10-a.conf", "20-b.conf"]
    path.write_text(json.dumps(conflist(loadOnlyInlinedPlugins=True)))
    assert types() == ["bridge"]
    path.write_text(json.dumps(conflist()))
    (tmp_path / "net" / "10-a.conf").write_text("{")
    assert types() is None
    assert "net/10-a.conf: not JSON" in directories.load()[1][0]


def test_a_networks_own_directory_alone_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "10-x.conf").write_text("{}")
    assert not ConfigDirectories([tmp_path, tmp_path / "absent"]).exists()

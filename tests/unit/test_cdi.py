"""CDI: which spec has a device, and what its edits make of a container's spec."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from api.errors import FailedPreconditionError, InvalidArgumentError
from criserver.cdi import apply, resolve, specs, wanted

KIND = "vendor.com/gpu"


def write(directory: Path, name: str, **document: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(json.dumps({"cdiVersion": "0.6.0", "kind": KIND, **document}))
    return path


def device(name: str, *env: str) -> dict[str, Any]:
    return {"name": name, "containerEdits": {"env": list(env)}}


def oci() -> dict[str, Any]:
    return {
        "process": {"env": ["PATH=/bin", "A=1"], "user": {"uid": 0, "gid": 0}},
        "mounts": [{"destination": "/a/b", "type": "bind", "source": "/x", "options": []}],
        "linux": {"resources": {"devices": [{"allow": False, "access": "rwm"}]}, "devices": []},
    }


def edited(edits: dict[str, Any], spec: dict[str, Any] | None = None) -> dict[str, Any]:
    made = spec or oci()
    apply(made, [edits])
    return made


def test_names_of_the_field_then_of_the_annotations_each_once() -> None:
    annotations = {
        "cdi.k8s.io/x": "vendor.com/gpu=b, vendor.com/gpu=a,",
        "other": "vendor.com/gpu=c",
    }
    assert wanted(["vendor.com/gpu=a"], annotations) == ["vendor.com/gpu=a", "vendor.com/gpu=b"]


@pytest.mark.parametrize(
    "name",
    ["", "gpu", "vendor.com/gpu", "vendor.com/gpu=", "=a", "/gpu=a", "vendor.com/=a", "a/b=c\0",
     "vendor.com/gpu=../x", "1vendor/gpu=a", "vendor.com/gpu=a=b", "x" * 10**6],
)  # fmt: skip
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="CDI") as caught:
        wanted([name], {})
    assert len(str(caught.value)) < 1000


def test_shared_edits_come_once_and_before_the_devices(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a.json",
        containerEdits={"env": ["S=1"]},
        devices=[device("a", "D=a"), device("b", "D=b")],
    )
    found = resolve([f"{KIND}=b", f"{KIND}=a"], [tmp_path])
    assert found == [{"env": ["S=1"]}, {"env": ["D=b"]}, {"env": ["D=a"]}]


def test_yaml_and_json_beside_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "cdiVersion: 0.5.0\nkind: vendor.com/net\ndevices:\n"
        "- name: '0'\n  containerEdits:\n    deviceNodes:\n    - path: /dev/null\n"
    )
    write(tmp_path, "b.json", devices=[device("a")])
    (tmp_path / "c.txt").write_text("not looked at")
    (net, shared, gpu) = resolve(["vendor.com/net=0", f"{KIND}=a"], [tmp_path])[1:]
    assert net == {"deviceNodes": [{"path": "/dev/null"}]}
    assert (shared, gpu) == ({}, {"env": []})


def test_a_later_directory_goes_before(tmp_path: Path) -> None:
    write(tmp_path / "etc", "a.json", devices=[device("a", "D=etc"), device("b", "D=etc")])
    write(tmp_path / "run", "a.json", devices=[device("a", "D=run")])
    directories = [tmp_path / "etc", tmp_path / "run", tmp_path / "none"]
    assert resolve([f"{KIND}=a"], directories)[1] == {"env": ["D=run"]}
    assert resolve([f"{KIND}=b"], directories)[1] == {"env": ["D=etc"]}


def test_a_device_that_two_files_have_is_refused(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        write(tmp_path, name, devices=[device("a")])
    with pytest.raises(FailedPreconditionError, match=r"a\.json, .*b\.json"):
        resolve([f"{KIND}=a"], [tmp_path])


def test_a_missing_device_names_the_directories_and_the_broken_files(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "broken.yml").write_text("a: [")
    write(tmp_path, "good.json", devices=[device("a")])
    with pytest.raises(FailedPreconditionError) as caught:
        resolve([f"{KIND}=a", f"{KIND}=b", f"{KIND}=c"], [tmp_path])
    said = str(caught.value)
    assert f"{KIND}=b, {KIND}=c" in said and f"{KIND}=a" not in said
    assert "broken.json" in said and "not JSON" in said
    assert "broken.yml" in said and "not YAML" in said
    assert resolve([f"{KIND}=a"], [tmp_path]), "a broken file keeps no other device away"


BROKEN: list[tuple[Any, str]] = [
    ([], "object"),
    ({"kind": KIND, "devices": [device("a")]}, "cdiVersion"),
    ({"cdiVersion": "2.0.0", "kind": KIND, "devices": [device("a")]}, "newer"),
    ({"cdiVersion": 1, "kind": KIND, "devices": [device("a")]}, "version"),
    ({"cdiVersion": "0.6.0", "kind": "gpu", "devices": [device("a")]}, "vendor.com/class"),
    ({"cdiVersion": "0.6.0", "kind": KIND}, "no devices"),
    ({"cdiVersion": "0.6.0", "kind": KIND, "devices": ["a"]}, "object"),
    ({"cdiVersion": "0.6.0", "kind": KIND, "devices": [{"name": ""}]}, "name"),
    ({"cdiVersion": "0.6.0", "kind": KIND, "devices": [device("a"), device("a")]}, "twice"),
    ({"cdiVersion": "0.6.0", "kind": KIND, "devices": [{"name": "a", "containerEdits": 5}]},
     "containerEdits"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "why"), BROKEN)
def test_broken_specs_say_why(tmp_path: Path, document: Any, why: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(FailedPreconditionError, match=why):
        resolve([f"{KIND}=a"], [tmp_path])


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs, "MAX_FILE", 10)
    write(tmp_path, "a.json", devices=[device("a")])
    with pytest.raises(FailedPreconditionError, match="larger"):
        resolve([f"{KIND}=a"], [tmp_path])


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("!!python/object/apply:os.system ['touch /pwned']\n")
    with pytest.raises(FailedPreconditionError, match="not YAML"):
        resolve([f"{KIND}=a"], [tmp_path])


def test_env_replaces() -> None:
    assert edited({"env": ["A=2", "B=x=y"]})["process"]["env"] == ["PATH=/bin", "A=2", "B=x=y"]


def test_a_device_is_the_hosts() -> None:
    null = os.stat("/dev/null")
    spec = edited({"deviceNodes": [{"path": "/dev/zero0", "hostPath": "/dev/null"}]})
    assert spec["linux"]["devices"] == [
        {
            "path": "/dev/zero0",
            "type": "c",
            "major": 1,
            "minor": 3,
            "fileMode": stat.S_IMODE(null.st_mode),
        }
    ]
    rule = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
    assert spec["linux"]["resources"]["devices"][-1] == rule


def test_a_device_that_is_wholly_given_need_not_be_on_the_host() -> None:
    node = {"path": "/dev/x", "type": "b", "major": 7, "minor": 9, "fileMode": 0o600, "uid": 5,
            "gid": 6, "permissions": "r"}  # fmt: skip
    spec = edited({"deviceNodes": [node]})
    (device_,) = spec["linux"]["devices"]
    assert device_ == {key: value for key, value in node.items() if key != "permissions"}
    assert spec["linux"]["resources"]["devices"][-1]["access"] == "r"


def test_a_device_belongs_to_the_containers_user() -> None:
    spec = oci()
    spec["process"]["user"] = {"uid": 1000, "gid": 1001}
    (device_,) = edited({"deviceNodes": [{"path": "/dev/null"}]}, spec)["linux"]["devices"]
    assert (device_["uid"], device_["gid"]) == (1000, 1001)


def test_a_device_replaces_one_of_its_path_and_may_be_locked() -> None:
    spec = oci()
    spec["linux"]["devices"] = [{"path": "/dev/null", "type": "b"}]
    node = {"path": "/dev/null", "permissions": "none"}
    edited({"deviceNodes": [node]}, spec)
    assert [each["type"] for each in spec["linux"]["devices"]] == ["c"]
    assert len(spec["linux"]["resources"]["devices"]) == 1, "and no rule opens it"


def test_mounts_replace_and_stay_sorted() -> None:
    edits = {
        "mounts": [
            {"hostPath": "/h", "containerPath": "/a/b", "options": ["ro", "bind"]},
            {"hostPath": "/h", "containerPath": "/a"},
            {"hostPath": "tmpfs", "containerPath": "/t/u/v", "type": "tmpfs", "options": ["rw"]},
        ]
    }
    mounts = edited(edits)["mounts"]
    assert [each["destination"] for each in mounts] == ["/a", "/a/b", "/t/u/v"]
    assert [each["options"] for each in mounts] == [["rbind"], ["ro", "bind"], ["rw"]]
    assert [each["type"] for each in mounts] == ["bind", "bind", "tmpfs"]


def test_binds_of_a_container_with_a_user_namespace_have_its_owners() -> None:
    spec = oci()
    spec["linux"]["namespaces"] = [{"type": "user"}]
    edits = {"mounts": [{"hostPath": "/h", "containerPath": "/m", "options": ["bind"]}]}
    assert edited(edits, spec)["mounts"][0]["options"] == ["idmap", "bind"]


def test_hooks_groups_rdt_and_interfaces() -> None:
    hook = {"hookName": "createContainer", "path": "/bin/x", "args": ["x"], "timeout": 5}
    spec = edited(
        {
            "hooks": [hook, {"hookName": "prestart", "path": "/bin/y"}],
            "additionalGids": [5, 0, 5],
            "intelRdt": {"closID": "a", "schemata": ["L3:0=f"]},
            "netDevices": [{"hostInterfaceName": "eth7", "name": "net1"}],
        }
    )
    assert spec["hooks"] == {
        "createContainer": [{"path": "/bin/x", "args": ["x"], "timeout": 5}],
        "prestart": [{"path": "/bin/y"}],
    }
    assert spec["process"]["user"]["additionalGids"] == [5]
    assert spec["linux"]["intelRdt"] == {"closID": "a", "schemata": ["L3:0=f"]}
    assert spec["linux"]["netDevices"] == {"eth7": {"name": "net1"}}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"env": "A=1"}, "env"),
    ({"env": ["A"]}, "NAME=value"),
    ({"env": [5]}, "NAME=value"),
    ({"deviceNodes": ["x"]}, "path"),
    ({"deviceNodes": [{"path": "dev/x"}]}, "absolute"),
    ({"deviceNodes": [{"path": "/dev/no-such"}]}, "no-such"),
    ({"deviceNodes": [{"path": "/etc/passwd"}]}, "not a device"),
    ({"deviceNodes": [{"path": "/dev/null", "type": "b"}]}, "type"),
    ({"deviceNodes": [{"path": "/dev/null", "type": "x"}]}, "type"),
    ({"deviceNodes": [{"path": "/dev/null", "permissions": "x"}]}, "permissions"),
    ({"deviceNodes": [{"path": "/dev/null", "uid": -1}]}, "uid"),
    ({"mounts": [{"hostPath": "/x"}]}, "containerPath"),
    ({"mounts": [{"hostPath": "/x", "containerPath": "/y", "options": "ro"}]}, "options"),
    ({"hooks": [{"hookName": "later", "path": "/x"}]}, "later"),
    ({"hooks": [{"hookName": "prestart", "path": "x"}]}, "absolute"),
    ({"additionalGids": ["a"]}, "number"),
    ({"netDevices": [{"name": "x"}]}, "hostInterfaceName"),
    ({"intelRdt": 5}, "object"),
    ({"surprise": []}, "surprise"),
]


@pytest.mark.parametrize(("edits", "why"), WRONG)
def test_edits_that_make_no_sense_are_refused(edits: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        edited(edits)

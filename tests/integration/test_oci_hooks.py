"""Hooks of all six kinds: when and where they run, what they are told, what their failure does."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from runtimeshim.client import CreateError, StartError
from runtimeshim.oci.fields import HOOKS
from tests.integration import harness

pytestmark = pytest.mark.integration

INSIDE = ("startContainer",)


def hook(script: str, **more: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"], **more}


def noting(rt: harness.Runtime, kind: str, script: str) -> dict[str, Any]:
    """Return a hook that appends to a file: of the host, or of the container's root."""
    target = "/notes" if kind in INSIDE else str(rt.directory / "notes")
    return hook(f"{{ {script}; }} >> {target}")


def notes(rt: harness.Runtime) -> str:
    files = (rt.directory / "notes", rt.directory / "rw-c/upper/notes")
    return "".join(file.read_text() for file in files if file.exists())


async def test_every_kind_runs_once_and_is_told_the_state(rt: harness.Runtime) -> None:
    spec = rt.spec(["sleep", "1000"])
    spec["annotations"] = {"org.example": "note"}
    spec["hooks"] = {kind: [noting(rt, kind, f"echo -n '{kind} '; cat; echo")] for kind in HOOKS}
    shim = await rt.create(spec)
    before = [line.split(" ", 1) for line in notes(rt).splitlines()]
    assert [kind for kind, _ in before] == ["prestart", "createRuntime", "createContainer"]
    await shim.start()
    await shim.kill(9)
    await shim.wait()
    lines = [line.split(" ", 1) for line in notes(rt).splitlines()]
    assert sorted(kind for kind, _ in lines) == sorted(HOOKS)
    told = {kind: json.loads(state) for kind, state in lines}
    for kind, status in (("prestart", "creating"), ("createRuntime", "creating"),
                         ("createContainer", "creating"), ("startContainer", "created"),
                         ("poststart", "running"), ("poststop", "stopped")):  # fmt: skip
        assert told[kind]["status"] == status
        assert told[kind]["id"] == "c"
        assert told[kind]["ociVersion"] == spec["ociVersion"]
        assert told[kind]["bundle"] == str(rt.run_dir / "containers/c")
        assert told[kind]["annotations"] == {"org.example": "note"}
    for kind in ("prestart", "createRuntime", "poststart"):
        assert told[kind]["pid"] == shim.pid
    for kind in ("createContainer", "startContainer"):
        assert told[kind]["pid"] == 1


async def test_each_kind_runs_in_its_namespaces(rt: harness.Runtime) -> None:
    ask = "readlink /proc/self/ns/net"
    spec = rt.spec(["readlink", "/proc/self/ns/net"])
    spec["hooks"] = {kind: [noting(rt, kind, f"echo {kind} $({ask})")] for kind in HOOKS}
    _, inside = await rt.run(spec)
    own = os.readlink("/proc/self/ns/net")
    where = dict(line.split() for line in notes(rt).splitlines() if " " in line)
    assert where.pop("startContainer") == inside.strip()
    # /proc of the host does not know the container's pids: its hook finds no "self" in there
    where.pop("createContainer", None)
    assert where == dict.fromkeys(("prestart", "createRuntime", "poststart", "poststop"), own)


async def test_create_hooks_see_the_mounts_before_the_pivot(rt: harness.Runtime) -> None:
    spec = rt.spec(["ls", "/late"])
    root = rt.run_dir / "containers/c/rootfs"
    spec["hooks"] = {"createContainer": [hook(f"ls {root}/proc/1/comm && touch {root}/late")]}
    record, output = await rt.run(spec)
    assert (record.exit_code, output) == (0, "/late\n")


async def test_a_hook_has_its_own_environment_and_nothing_of_ours(rt: harness.Runtime) -> None:
    spec = rt.spec(["true"])
    script = noting(rt, "prestart", "env; echo args $0 $1; ls /proc/self/fd")
    script["env"] = ["PATH=/bin:/usr/bin", "A=b=c"]
    script["args"] += ["zero", "one"]
    spec["hooks"] = {"prestart": [script]}
    await rt.run(spec)
    lines = notes(rt).splitlines()
    assert "A=b=c" in lines
    assert "args zero one" in lines
    assert not [line for line in lines if line.startswith(("HOME=", "LANG=", "VIRTUAL"))]
    assert [line for line in lines if line.isdigit()] == ["0", "1", "2", "3"]  # 3 is ls's own


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
async def test_a_failing_create_hook_fails_the_creation(rt: harness.Runtime, kind: str) -> None:
    spec = rt.spec(["true"])
    spec["hooks"] = {kind: [hook("echo because >&2; exit 3"), noting(rt, kind, "echo second")]}
    with pytest.raises(CreateError, match=rf"hooks\.{kind}\[0\] .*exit status 3: because"):
        await rt.create(spec)
    assert harness.cgroup_dirs(rt.cgroup_of("c")) == []
    assert notes(rt) == ""


@pytest.mark.parametrize("kind", ["startContainer", "poststart"])
async def test_a_failing_start_hook_ends_the_container(rt: harness.Runtime, kind: str) -> None:
    spec = rt.spec(["sleep", "1000"])
    spec["hooks"] = {kind: [hook("exit 4")]}
    shim = await rt.create(spec)
    with pytest.raises(StartError, match=rf"hooks\.{kind}\[0\] .*exit status 4"):
        await shim.start()
    assert (await shim.wait()).exit_code in (128, 137)


async def test_a_failing_poststop_hook_is_passed_over(rt: harness.Runtime) -> None:
    spec = rt.spec(["true"])
    spec["hooks"] = {"poststop": [hook("exit 5"), noting(rt, "poststop", "echo second")]}
    record, _ = await rt.run(spec)
    assert record.exit_code == 0
    assert notes(rt) == "second\n"
    assert "hooks.poststop[0]" in (rt.run_dir / "spawner.log").read_text()


async def test_a_hook_past_its_timeout_is_killed_with_what_it_started(rt: harness.Runtime) -> None:
    pid_file = rt.directory / "pid"
    spec = rt.spec(["true"])
    script = f"sleep 1000 & echo $! > {pid_file}; wait"
    spec["hooks"] = {"createRuntime": [hook(script, timeout=1)]}
    with pytest.raises(CreateError, match=r"createRuntime\[0\] .*not done within 1 s"):
        await rt.create(spec)
    pid = int(pid_file.read_text())
    await harness.until(lambda: not harness.alive(pid))


async def test_a_hook_that_is_not_there(rt: harness.Runtime) -> None:
    spec = rt.spec(["true"])
    spec["hooks"] = {"createRuntime": [{"path": "/no/such/hook"}]}
    with pytest.raises(CreateError, match=r"/no/such/hook\): No such file"):
        await rt.create(spec)


async def test_start_hooks_have_the_users_rights_only(rt: harness.Runtime) -> None:
    (rt.layer / "tmp/notes").write_text("")
    (rt.layer / "tmp/notes").chmod(0o666)
    spec = rt.spec(["cat", "/tmp/notes"], user={"uid": 1000, "gid": 1000})
    spec["hooks"] = {
        "startContainer": [hook("id -u > /tmp/notes; grep CapEff /proc/self/status >> /tmp/notes")]
    }
    _, output = await rt.run(spec)
    assert output.split() == ["1000", "CapEff:", "0000000000000000"]

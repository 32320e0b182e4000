"""The systemd cgroup driver: scopes and slices of the real systemd, with their limits."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from runtimeshim.linux import cgroups, systemd
from runtimeshim.linux.cgroups import units
from runtimeshim.linux.dbus import DBusError, Variant
from tests.integration import harness


def show(unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit, as systemctl prints them."""
    done = subprocess.run(
        ["systemctl", "show", unit, f"--property={','.join(names)}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def kernel(unit: str, file: str) -> str:
    return Path(f"/sys/fs/cgroup{units.directory(unit)}/{file}").read_text().strip()


def reload() -> None:
    subprocess.run(["systemctl", "daemon-reload"], check=True)


@pytest.fixture
def pod() -> Iterator[str]:
    """The slice of a pod, as the kubelet names them."""
    name = f"crtest{secrets.token_hex(4)}-burstable-pod{secrets.token_hex(4)}.slice"
    yield name
    for slice_ in reversed(units.ancestry(name)):
        systemd.stop(slice_)
    assert not Path(f"/sys/fs/cgroup/{units.ancestry(name)[0]}").exists()


@pytest_asyncio.fixture
async def rt(tmp_path: Path, pod: str) -> AsyncIterator[harness.Runtime]:
    async with harness.runtime(tmp_path) as runtime:
        yield runtime


def in_scope(rt: harness.Runtime, pod: str, args: list[str], **resources: Any) -> dict[str, Any]:
    spec = rt.spec(args)
    spec["linux"]["cgroupsPath"] = f"{pod}:cri-criserver:c"
    spec["linux"]["resources"] = resources
    return spec


LIMITS = {
    "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20},
    "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "1", "mems": "0"},
    "pids": {"limit": 55},
    "blockIO": {"weight": 123},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
}
FILES = {
    "memory.max": str(64 << 20),
    "memory.swap.max": str(32 << 20),
    "memory.low": str(32 << 20),
    "cpu.weight": "59",
    "cpu.max": "50000 100000",
    "cpuset.cpus": "1",
    "cpuset.mems": "0",
    "pids.max": "55",
    "io.weight": "default 1142",
    "hugetlb.2MB.max": str(4 << 20),
}


async def test_a_container_is_a_scope_with_its_limits_that_a_reload_leaves(
    rt: harness.Runtime, pod: str
) -> None:
    shim = await rt.start(in_scope(rt, pod, ["sleep", "1000"], **LIMITS))
    path, scope = f"{pod}:cri-criserver:c", "cri-criserver-c.scope"
    found = show(scope, "Slice", "ActiveState", "Delegate", "MemoryMax", "TasksMax", "AllowedCPUs")
    assert found == {
        "Slice": pod, "ActiveState": "active", "Delegate": "yes", "MemoryMax": str(64 << 20),
        "TasksMax": "55", "AllowedCPUs": "1",
    }  # fmt: skip
    assert Path(f"/proc/{shim.pid}/cgroup").read_text() == f"0::{units.directory(path)}\n"
    assert {file: kernel(path, file) for file in FILES} == FILES
    reload()
    assert {file: kernel(path, file) for file in FILES} == FILES
    # Another unit's property makes systemd write the whole tree again.
    systemd.change(pod, [("MemoryMax", Variant("t", 1 << 30))])
    assert {file: kernel(path, file) for file in FILES} == FILES


def test_a_unit_that_is_there_is_told_as_such(pod: str) -> None:
    systemd.start(pod, [])
    with pytest.raises(DBusError) as caught:
        systemd.start(pod, [])
    assert caught.value.name == systemd.UNIT_EXISTS


def test_containers_that_begin_at_once_share_a_slice(pod: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = [pool.submit(cgroups.manager().create, f"{pod}:crtest:{n}") for n in range(24)]
    assert [each.exception() for each in made] == [None] * len(made)
    assert Path(f"/sys/fs/cgroup{units.directory(pod)}").is_dir()


async def test_a_scopes_end_leaves_no_unit(rt: harness.Runtime, pod: str) -> None:
    shim = await rt.start(in_scope(rt, pod, ["sleep", "1000"]))
    await shim.kill(9)
    await shim.wait()
    assert show("cri-criserver-c.scope", "LoadState") == {"LoadState": "not-found"}


@pytest.mark.parametrize("allowed", [False, True])
async def test_devices_beside_the_allowed_are_refused_after_a_reload_too(
    rt: harness.Runtime, pod: str, allowed: bool
) -> None:
    number = Path("/dev/vda").stat().st_rdev
    major, minor = os.major(number), os.minor(number)
    script = (
        f"mknod /dev/shm/disk b {major} {minor}; while [ ! -e /dev/shm/go ]; do sleep 0.1; done;"
        "cat /dev/null && head -c 1 /dev/shm/disk > /dev/null && echo read"
    )
    rule = {"allow": True, "type": "b", "major": major, "minor": minor, "access": "r"}
    spec = in_scope(rt, pod, ["sh", "-c", script], devices=[rule] if allowed else [])
    spec["process"]["capabilities"] = {
        kind: ["CAP_MKNOD", "CAP_DAC_OVERRIDE"] for kind in ("bounding", "effective", "permitted")
    }
    (mount,) = [each for each in spec["mounts"] if each["destination"] == "/dev/shm"]
    mount["options"].remove("nodev")
    shim = await rt.start(spec)
    reload()
    Path(f"/proc/{shim.pid}/root/dev/shm/go").write_text("")
    await shim.wait()
    assert rt.output().endswith("read\n" if allowed else "Operation not permitted\n")


async def test_an_oom_kill_is_told_though_the_scope_goes_at_once(
    rt: harness.Runtime, pod: str
) -> None:
    for number in range(5):
        name = f"hog{number}"
        spec = in_scope(
            rt, pod, ["tail", "/dev/zero"], memory={"limit": 32 << 20, "swap": 32 << 20}
        )
        spec["linux"]["cgroupsPath"] = f"{pod}:cri-criserver:{name}"
        record, _ = await rt.run(spec, name)
        assert (record.exit_code, record.oom_killed) == (137, True)


async def test_a_limit_can_be_changed_and_a_reload_keeps_it(rt: harness.Runtime, pod: str) -> None:
    path = f"{pod}:cri-criserver:c"
    await rt.start(in_scope(rt, pod, ["sleep", "1000"], memory={"limit": 64 << 20}))
    cgroups.manager().apply(path, {"memory": {"limit": 80 << 20}, "pids": {"limit": 7}})
    reload()
    assert (kernel(path, "memory.max"), kernel(path, "pids.max")) == (str(80 << 20), "7")
    assert show("cri-criserver-c.scope", "MemoryMax") == {"MemoryMax": str(80 << 20)}


async def test_a_limit_that_is_refused_never_reaches_systemd(rt: harness.Runtime, pod: str) -> None:
    path, scope = f"{pod}:cri-criserver:c", "cri-criserver-c.scope"
    await rt.start(in_scope(rt, pod, ["sleep", "1000"], memory={"limit": 64 << 20}))
    manager, before = cgroups.manager(), show(scope, "MemoryMax", "AllowedCPUs")
    for refused, message in (
        ({"memory": {"limit": 4096, "checkBeforeUpdate": True}}, "in use"),
        ({"cpu": {"cpus": "7000"}}, "7000"),
    ):
        with pytest.raises(cgroups.CgroupError, match=message):
            manager.apply(path, refused)
    assert show(scope, "MemoryMax", "AllowedCPUs") == before
    assert kernel(path, "memory.max") == str(64 << 20)


def test_what_is_refused_names_the_unit(pod: str) -> None:
    manager = cgroups.manager()
    path = f"{pod}:crtest:none"
    with pytest.raises(cgroups.CgroupError, match=r"crtest-none\.scope .* limits are not known"):
        manager.join(path, 0)
    manager.apply(path, {})
    with pytest.raises(cgroups.CgroupError, match=r"start crtest-none\.scope"):
        manager.join(path, 1 << 22)

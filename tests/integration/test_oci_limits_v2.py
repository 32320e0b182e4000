"""Limits on cgroup v2, as a container reads them from its own files.

Collected on machines with that version only (conftest.py).
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from runtimeshim.client import CreateError
from runtimeshim.linux.cgroups import units
from tests.integration import harness

pytestmark = pytest.mark.integration


async def run(rt: harness.Runtime, spec: dict[str, Any]) -> str:
    record, output = await rt.run(spec)
    assert record.exit_code == 0, output
    return output


async def limited(rt: harness.Runtime, resources: dict[str, Any], *files: str) -> list[str]:
    """Run a container with these limits; returns the lines of these files of its cgroup."""
    spec = rt.spec(["sh", "-c", f"cd /sys/fs/cgroup && cat {' '.join(files)}"])
    spec["linux"]["resources"] = resources
    return (await run(rt, spec)).splitlines()


async def test_the_limits_of_memory(rt: harness.Runtime) -> None:
    memory = {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20}
    found = await limited(rt, {"memory": memory}, "memory.max", "memory.swap.max", "memory.low")
    assert found == [str(64 << 20), str(32 << 20), str(32 << 20)]


async def test_the_limits_of_cpus(rt: harness.Runtime) -> None:
    cpu = {
        "shares": 1024, "period": 50000, "quota": 25000, "burst": 5000, "cpus": "1", "mems": "0",
    }  # fmt: skip
    files = ("cpu.weight", "cpu.max", "cpu.max.burst", "cpuset.cpus", "cpuset.mems")
    found = await limited(rt, {"cpu": cpu}, *files, "cpuset.cpus.effective")
    assert found == ["100", "25000 50000", "5000", "1", "0", "1"]


async def test_an_idle_cpu_group(rt: harness.Runtime) -> None:
    assert await limited(rt, {"cpu": {"idle": 1}}, "cpu.idle") == ["1"]


async def test_the_limit_of_huge_pages(rt: harness.Runtime) -> None:
    limits = [{"pageSize": "2MB", "limit": 4 << 20}]
    files = ("hugetlb.2MB.max", "hugetlb.2MB.rsvd.max")
    assert await limited(rt, {"hugepageLimits": limits}, *files) == [str(4 << 20)] * 2


async def test_block_io_throttles(rt: harness.Runtime) -> None:
    disk = os.stat("/dev/vda").st_rdev
    device = {"major": os.major(disk), "minor": os.minor(disk)}
    rates = {"rbps": 1048576, "wbps": 2097152, "riops": 100, "wiops": 200}
    fields = ("throttleReadBpsDevice", "throttleWriteBpsDevice",
              "throttleReadIOPSDevice", "throttleWriteIOPSDevice")  # fmt: skip
    block_io = {
        field: [{**device, "rate": rate}]
        for field, rate in zip(fields, rates.values(), strict=True)
    }
    (line,) = await limited(rt, {"blockIO": block_io}, "io.max")
    number, *values = line.split()
    assert number == f"{device['major']}:{device['minor']}"
    assert set(values) == {f"{name}={rate}" for name, rate in rates.items()}


async def test_files_by_name_go_over_everything_else(rt: harness.Runtime) -> None:
    resources = {
        "memory": {"limit": 64 << 20},
        "unified": {"memory.high": str(48 << 20), "memory.oom.group": "1", "cpu.weight": "77"},
    }
    files = ("memory.max", "memory.high", "memory.oom.group", "cpu.weight")
    found = await limited(rt, resources, *files)
    assert found == [str(64 << 20), str(48 << 20), "1", "77"]


async def test_the_pressure_of_a_container_is_counted(rt: harness.Runtime) -> None:
    lines = await limited(rt, {}, "cpu.pressure", "memory.pressure", "io.pressure")
    assert [line.split()[0] for line in lines] == ["some", "full"] * 3


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"network": {"classID": 1}}, "network is not supported on cgroup v2"),
        ({"unified": {"../memory.max": "1"}}, "is not a file name"),
        ({"unified": {"memory.nonesuch": "1"}}, "memory.nonesuch"),
        ({"hugepageLimits": [{"pageSize": "3MB", "limit": 0}]}, "hugetlb.3MB.max"),
        ({"memory": {"limit": 2 << 20, "swap": 1 << 20}}, "counts memory too"),
    ],
)
async def test_a_limit_that_this_machine_cannot_set_is_an_error(
    rt: harness.Runtime, resources: dict[str, Any], message: str
) -> None:
    spec = rt.spec(["true"])
    spec["linux"]["resources"] = resources
    with pytest.raises(CreateError, match=message):
        await rt.create(spec)
    assert harness.cgroup_dirs(rt.cgroup_of("c")) == []


async def test_a_container_with_cgroups_of_its_own_can_be_execed_into_and_ended(
    rt: harness.Runtime,
) -> None:
    """As systemd or a nested runtime makes them: its own cgroup then takes no process any more."""
    script = (
        "mkdir /sys/fs/cgroup/inner && echo 1 > /sys/fs/cgroup/inner/cgroup.procs &&"
        "echo +memory > /sys/fs/cgroup/cgroup.subtree_control && exec sleep 1000"
    )
    spec = rt.spec(["sh", "-c", script])
    (mount,) = [each for each in spec["mounts"] if each["type"] == "cgroup"]
    mount["options"].remove("ro")
    shim = await rt.start(spec)
    (own,) = harness.cgroup_dirs(rt.cgroup_of("c"))
    inner = own / "inner"
    await harness.until(lambda: (inner / "memory.max").exists())
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        process = rt.spec(["cat", "/proc/self/cgroup"])["process"]
        started = await shim.exec(process, (null, write, write))
        os.close(write)
        assert await started.wait() == 0
        assert os.read(read, 100).startswith(b"0::/exec-")  # one of its own, within the container
    finally:
        os.close(read)
        os.close(null)
    await shim.kill(9, everyone=True)
    assert (await shim.wait()).exit_code == 137
    assert not inner.exists()


async def test_without_a_cgroup_namespace_the_hosts_tree_is_shown(rt: harness.Runtime) -> None:
    path_of_own = units.directory(rt.cgroup_of("c"))
    own = f"/sys/fs/cgroup{path_of_own}"
    spec = rt.spec(["sh", "-c", f"cat {own}/memory.max /proc/self/cgroup; echo 1 > {own}/cpu.idle"])
    spec["linux"]["namespaces"] = [
        each for each in spec["linux"]["namespaces"] if each["type"] != "cgroup"
    ]
    spec["linux"]["resources"] = {"memory": {"limit": 77 << 20}}
    _, output = await rt.run(spec)
    memory, path, refused = output.splitlines()
    assert memory == str(77 << 20)
    assert path == f"0::{path_of_own}"
    assert refused.endswith("Read-only file system")

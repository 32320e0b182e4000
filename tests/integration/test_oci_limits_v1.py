"""Limits on cgroup v1, as a container reads them from its own files.

Collected on machines with that version only (conftest.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtimeshim.client import CreateError
from tests.integration import harness

pytestmark = pytest.mark.integration


async def run(rt: harness.Runtime, spec: dict[str, Any]) -> str:
    record, output = await rt.run(spec)
    assert record.exit_code == 0, output
    return output


async def test_a_realtime_priority_within_the_budget_of_the_group(rt: harness.Runtime) -> None:
    parent = Path(f"/sys/fs/cgroup/cpu{rt.cgroup}")
    parent.mkdir()
    (parent / "cpu.rt_runtime_us").write_text("20000")
    spec = rt.spec(
        ["sh", "-c", "cat /sys/fs/cgroup/cpu/cpu.rt_period_us /sys/fs/cgroup/cpu/cpu.rt_runtime_us;"
         "cut -d' ' -f40,41 /proc/self/stat"],
        scheduler={"policy": "SCHED_FIFO", "priority": 5},
    )  # fmt: skip
    spec["linux"]["resources"] = {"cpu": {"realtimePeriod": 900000, "realtimeRuntime": 10000}}
    assert await run(rt, spec) == "900000\n10000\n5 1\n"


async def test_the_weight_of_block_io(rt: harness.Runtime) -> None:
    spec = rt.spec(["sh", "-c", "cat /sys/fs/cgroup/blkio/blkio.*weight"])
    spec["linux"]["resources"] = {"blockIO": {"weight": 321}}
    assert await run(rt, spec) == "321\n"


async def test_block_io_throttles(rt: harness.Runtime) -> None:
    found = os.stat("/dev/vda").st_rdev if Path("/dev/vda").exists() else os.stat("/").st_dev
    device = {"major": os.major(found), "minor": os.minor(found)}
    rates = {"read_bps": 1048576, "write_bps": 2097152, "read_iops": 100, "write_iops": 200}
    spec = rt.spec(["sh", "-c", "cd /sys/fs/cgroup/blkio; for f in "
                    + " ".join(rates) + "; do cat blkio.throttle.${f}_device; done"])  # fmt: skip
    fields = ("throttleReadBpsDevice", "throttleWriteBpsDevice",
              "throttleReadIOPSDevice", "throttleWriteIOPSDevice")  # fmt: skip
    spec["linux"]["resources"] = {"blockIO": {
        field: [{**device, "rate": rate}]
        for field, rate in zip(fields, rates.values(), strict=True)
    }}  # fmt: skip
    number = f"{device['major']}:{device['minor']}"
    assert (await run(rt, spec)).splitlines() == [f"{number} {rate}" for rate in rates.values()]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"blockIO": {"leafWeight": 500}}, r"blockIO: this kernel has no blkio\.leaf_weight"),
        ({"rdma": {"m": {"hcaHandles": 1}}}, "rdma needs the rdma controller"),
        ({"network": {"classID": 1}}, "network needs the net_cls controller"),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}, "needs the hugetlb controller"),
        ({"unified": {"memory.high": "1"}}, "unified is not supported on cgroup v1"),
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


async def test_the_limits_of_memory(rt: harness.Runtime) -> None:
    files = {
        "limit_in_bytes": 64 << 20, "memsw.limit_in_bytes": 96 << 20,
        "soft_limit_in_bytes": 32 << 20, "kmem.tcp.limit_in_bytes": 16 << 20, "swappiness": 7,
    }  # fmt: skip
    spec = rt.spec(["sh", "-c", "cd /sys/fs/cgroup/memory; for f in " + " ".join(files)
                    + "; do cat memory.$f; done; head -1 memory.oom_control"])  # fmt: skip
    spec["linux"]["resources"] = {"memory": {
        "limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20, "kernelTCP": 16 << 20,
        "swappiness": 7, "disableOOMKiller": True,
    }}  # fmt: skip
    wanted = [str(value) for value in files.values()] + ["oom_kill_disable 1"]
    assert (await run(rt, spec)).splitlines() == wanted


async def test_the_limits_of_cpus(rt: harness.Runtime) -> None:
    files = {
        "cpu/cpu.shares": 513, "cpu/cpu.cfs_period_us": 50000, "cpu/cpu.cfs_quota_us": 25000,
        "cpu/cpu.cfs_burst_us": 5000, "cpuset/cpuset.cpus": 1, "cpuset/cpuset.mems": 0,
    }  # fmt: skip
    spec = rt.spec(["sh", "-c", f"cd /sys/fs/cgroup; cat {' '.join(files)};"
                    "grep Cpus_allowed_list /proc/self/status"])  # fmt: skip
    spec["linux"]["resources"] = {"cpu": {
        "shares": 513, "period": 50000, "quota": 25000, "burst": 5000, "cpus": "1", "mems": "0",
    }}  # fmt: skip
    lines = (await run(rt, spec)).splitlines()
    assert lines[:-1] == [str(value) for value in files.values()]
    assert lines[-1].split()[1] == "1"


async def test_an_idle_cpu_group(rt: harness.Runtime) -> None:
    spec = rt.spec(["cat", "/sys/fs/cgroup/cpu/cpu.idle"])
    spec["linux"]["resources"] = {"cpu": {"idle": 1}}
    assert await run(rt, spec) == "1\n"


async def test_without_a_cgroup_namespace_its_own_directories_are_shown(
    rt: harness.Runtime,
) -> None:
    spec = rt.spec(["sh", "-c", "cat /sys/fs/cgroup/pids/cgroup.procs | wc -l;"
                    "cat /sys/fs/cgroup/memory/memory.limit_in_bytes;"
                    "cat /proc/self/cgroup"])  # fmt: skip
    spec["linux"]["namespaces"] = [
        each for each in spec["linux"]["namespaces"] if each["type"] != "cgroup"
    ]
    spec["linux"]["resources"] = {"memory": {"limit": 77 << 20}}
    lines = (await run(rt, spec)).splitlines()
    assert int(lines[0]) <= 4
    assert lines[1] == str(77 << 20)
    assert any(line.endswith(rt.cgroup_of("c")) for line in lines[2:])

"""Statistics of `events`, read from cgroups in a temporary directory."""

from __future__ import annotations

from pathlib import Path

from runtimeshim.cli import stats
from runtimeshim.linux import cgroups

V1 = {
    "cpu/cpu.stat": "nr_periods 10\nnr_throttled 2\nthrottled_time 3000\n",
    "cpuacct/cpuacct.usage": "5000000\n",
    "cpuacct/cpuacct.usage_percpu": "2000000 3000000\n",
    "cpuacct/cpuacct.stat": "user 1\nsystem 2\n",
    "memory/memory.stat": "cache 4096\nrss 8192\n",
    "memory/memory.usage_in_bytes": "12288\n",
    "memory/memory.max_usage_in_bytes": "20480\n",
    "memory/memory.limit_in_bytes": "9223372036854771712\n",
    "memory/memory.failcnt": "3\n",
    "pids/pids.current": "2\n",
    "pids/pids.max": "100\n",
    "blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 512\nTotal 4608\n",
    "hugetlb/hugetlb.2MB.usage_in_bytes": "0\n",
    "hugetlb/hugetlb.2MB.max_usage_in_bytes": "2097152\n",
    "hugetlb/hugetlb.2MB.failcnt": "1\n",
}
V2 = {
    "cpu.stat": "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 1\n"
    "nr_throttled 1\nthrottled_usec 7\n",
    "memory.stat": "file 4096\nanon 8192\n",
    "memory.current": "12288\n",
    "memory.peak": "20480\n",
    "memory.max": "65536\n",
    "memory.events": "low 0\nmax 4\noom_kill 0\n",
    "pids.current": "2\n",
    "pids.max": "max\n",
    "io.stat": "8:0 rbytes=4096 wbytes=512 rios=1 wios=2 dbytes=0 dios=0\n",
}


def test_cgroup_v1(tmp_path: Path) -> None:
    for name, content in V1.items():
        controller, file = name.split("/")
        (tmp_path / controller / "c").mkdir(parents=True, exist_ok=True)
        (tmp_path / controller / "cgroup.procs").touch()
        (tmp_path / controller / "c" / file).write_text(content)
    found = stats.read(cgroups.manager(str(tmp_path)), "/c")
    assert found["cpu"]["usage"]["total"] == 5000000
    assert found["cpu"]["usage"]["percpu"] == [2000000, 3000000]
    assert found["cpu"]["usage"]["kernel"] == 2 * found["cpu"]["usage"]["user"] > 0
    assert found["cpu"]["throttling"] == {
        "periods": 10,
        "throttledPeriods": 2,
        "throttledTime": 3000,
    }
    assert found["memory"]["cache"] == 4096
    assert found["memory"]["raw"] == {"cache": 4096, "rss": 8192}
    unlimited = 2**64 - 1
    assert found["memory"]["usage"] == {
        "limit": unlimited,
        "usage": 12288,
        "max": 20480,
        "failcnt": 3,
    }
    assert "swap" not in found["memory"]  # this kernel does not count it
    assert found["pids"] == {"current": 2, "limit": 100}
    assert found["blkio"]["ioServiceBytesRecursive"] == [
        {"major": 8, "minor": 0, "op": "Read", "value": 4096},
        {"major": 8, "minor": 0, "op": "Write", "value": 512},
    ]
    assert found["hugetlb"] == {"2MB": {"usage": 0, "max": 2097152, "failcnt": 1}}


def test_cgroup_v2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
    (tmp_path / "c").mkdir()
    for file, content in V2.items():
        (tmp_path / "c" / file).write_text(content)
    found = stats.read(cgroups.manager(str(tmp_path)), "/c")
    assert found["cpu"]["usage"] == {"total": 5000000, "kernel": 2000000, "user": 3000000}
    assert found["cpu"]["throttling"] == {
        "periods": 1,
        "throttledPeriods": 1,
        "throttledTime": 7000,
    }
    assert found["memory"]["usage"] == {"limit": 65536, "usage": 12288, "max": 20480, "failcnt": 4}
    assert found["pids"] == {"current": 2, "limit": 0}
    assert found["blkio"]["ioServiceBytesRecursive"] == [
        {"major": 8, "minor": 0, "op": "Read", "value": 4096},
        {"major": 8, "minor": 0, "op": "Write", "value": 512},
    ]
    assert [each["value"] for each in found["blkio"]["ioServicedRecursive"]] == [1, 2]
    assert found["hugetlb"] == {}


def test_a_cgroup_that_went_with_its_container_has_used_nothing(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu io memory hugetlb pids")
    found = stats.read(cgroups.manager(str(tmp_path)), "/a.slice/c.scope")
    assert found["hugetlb"] == {}
    assert found["memory"] == {"cache": 0, "raw": {}}
    assert found["pids"] == {}

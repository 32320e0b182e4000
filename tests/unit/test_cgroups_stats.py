"""The one reader of cgroup statistics, on directories that look like the kernel's."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from runtimeshim.linux.cgroups import CgroupError, stats
from runtimeshim.linux.cgroups.stats import (
    Cpu,
    DeviceIO,
    HugePages,
    Pressure,
    Stall,
    StatsReader,
    parse_pressure,
)
from runtimeshim.linux.cgroups.v1 import Hierarchy, V1Manager
from runtimeshim.linux.cgroups.v2 import V2Manager

V1 = {
    "cpuacct/a/cpuacct.usage": "5000000000",
    "cpuacct/a/cpuacct.stat": "user 300\nsystem 100",
    "cpu/a/cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 77",
    "memory/a/memory.usage_in_bytes": "1000",
    "memory/a/memory.limit_in_bytes": "9223372036854771712",
    "memory/a/memory.memsw.limit_in_bytes": "9223372036854771712",
    "memory/a/memory.kmem.usage_in_bytes": "30",
    "memory/a/memory.max_usage_in_bytes": "2000",
    "memory/a/memory.failcnt": "3",
    "memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2",
    "memory/a/memory.stat": (
        "pgfault 5\npgmajfault 1\ntotal_cache 400\ntotal_rss 500\ntotal_mapped_file 60\n"
        "total_swap 200\ntotal_pgfault 9\ntotal_pgmajfault 2\ntotal_inactive_file 300\n"
        "total_active_file 100"
    ),
    "pids/a/pids.current": "7",
    "pids/a/pids.max": "max",
    "blkio/a/blkio.throttle.io_service_bytes_recursive": (
        "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\nTotal 12288"
    ),
    "blkio/a/blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\nTotal 3",
    "hugetlb/a/hugetlb.2MB.usage_in_bytes": "2097152",
    "hugetlb/a/hugetlb.2MB.max_usage_in_bytes": "4194304",
}
V2 = {
    "cgroup.controllers": "cpu memory pids io hugetlb",
    "a/cpu.stat": (
        "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 1000000\nnr_periods 10\n"
        "nr_throttled 4\nthrottled_usec 77"
    ),
    "a/cpu.pressure": (
        "some avg10=1.50 avg60=0.50 avg300=0.10 total=123\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=12"
    ),
    "a/memory.current": "1000",
    "a/memory.max": "max",
    "a/memory.peak": "2000",
    "a/memory.swap.current": "200",
    "a/memory.swap.max": "500",
    "a/memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 2",
    "a/memory.stat": (
        "anon 500\nfile 400\nkernel 30\nfile_mapped 60\ninactive_file 1300\nactive_file 100\n"
        "pgfault 9\npgmajfault 2"
    ),
    "a/pids.current": "7",
    "a/pids.max": "100",
    "a/io.stat": "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n8:16 ",
    "a/hugetlb.2MB.current": "2097152",
    "a/hugetlb.2MB.max": "max",
}


def lay_out(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")


@pytest.fixture
def v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StatsReader:
    lay_out(tmp_path, V1)
    names = sorted({name.split("/")[0] for name in V1})
    monkeypatch.setattr(stats, "_huge_page_sizes", lambda _directory: ("2MB", "1GB"))
    return StatsReader(V1Manager([Hierarchy(name, str(tmp_path / name)) for name in names]))


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StatsReader:
    lay_out(tmp_path, V2)
    monkeypatch.setattr(stats, "_huge_page_sizes", lambda _directory: ("2MB", "1GB"))
    return StatsReader(V2Manager(str(tmp_path)))


def test_cpu_is_in_nanoseconds(v1: StatsReader, tmp_path: Path) -> None:
    assert v1.stats("/a", monitoring=True).cpu == Cpu(5 * 10**9, 3 * 10**9, 10**9, 10, 4, 77)


def test_cpu_is_in_nanoseconds_on_v2(v2: StatsReader) -> None:
    assert v2.stats("/a").cpu == Cpu(5 * 10**9, 3 * 10**9, 10**9, 10, 4, 77_000)


def test_memory_of_v1_counts_the_descendants(v1: StatsReader) -> None:
    memory = v1.stats("/a").memory
    assert memory is not None
    assert (memory.usage, memory.working_set, memory.rss, memory.cache) == (1000, 700, 500, 400)
    assert (memory.faults, memory.own_faults, memory.major_faults) == (9, 5, 2)
    # No limit is none, whatever the number.
    assert (memory.swap, memory.limit, memory.swap_limit) == (200, None, None)


def test_memory_of_v2(v2: StatsReader) -> None:
    memory = v2.stats("/a").memory
    assert memory is not None
    assert (memory.usage, memory.rss, memory.cache, memory.mapped_file) == (1000, 500, 400, 60)
    assert memory.working_set == 0, "more inactive than used is nothing, never negative"
    assert (memory.swap, memory.limit, memory.swap_limit) == (200, None, 500)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_monitoring_has_more_of_memory(version: str, request: pytest.FixtureRequest) -> None:
    reader: StatsReader = request.getfixturevalue(version)
    memory = reader.stats("/a", monitoring=True).memory
    assert memory is not None
    assert (memory.peak, memory.failures, memory.kernel) == (2000, 3, 30)
    assert (memory.usage, memory.swap) == (1000, 200)
    plain = reader.stats("/a").memory
    assert plain is not None
    assert (plain.peak, plain.failures, plain.kernel) == (None, 0, None)


def test_swap_alone_of_v1_limits(v1: StatsReader, tmp_path: Path) -> None:
    (tmp_path / "memory/a/memory.limit_in_bytes").write_text("1000\n")
    (tmp_path / "memory/a/memory.memsw.limit_in_bytes").write_text("1500\n")
    memory = v1.stats("/a").memory
    assert memory is not None
    assert (memory.limit, memory.swap_limit) == (1000, 500)


def test_memory_without_swap_accounting(v1: StatsReader, tmp_path: Path) -> None:
    (tmp_path / "memory/a/memory.memsw.limit_in_bytes").unlink()
    stat = tmp_path / "memory/a/memory.stat"
    stat.write_text(stat.read_text().replace("total_swap 200\n", ""))
    memory = v1.stats("/a").memory
    assert memory is not None
    assert (memory.swap, memory.swap_limit) == (None, None)


def test_tasks(v1: StatsReader) -> None:
    assert v1.stats("/a").tasks == 7
    assert v1.details("/a").max_tasks is None


def test_tasks_on_v2(v2: StatsReader) -> None:
    assert v2.stats("/a").tasks == 7
    assert v2.details("/a").max_tasks == 100


def test_a_scope_of_systemd_is_found(v2: StatsReader, tmp_path: Path) -> None:
    (tmp_path / "pods.slice").mkdir()
    (tmp_path / "a").rename(tmp_path / "pods.slice/cri-x.scope")
    found = v2.stats("pods.slice:cri:x")
    assert found.cpu is not None and found.memory is not None and found.tasks is not None
    assert v2.details("pods.slice:cri:x").io != ()


def test_device_io(v1: StatsReader) -> None:
    amounts = {"Read": 4096, "Write": 8192, "Total": 12288}
    assert v1.details("/a").io == (DeviceIO(8, 0, amounts, {"Read": 1, "Write": 2}),)


def test_device_io_on_v2(v2: StatsReader) -> None:
    amounts = {"Read": 4096, "Write": 8192}
    assert v2.details("/a").io == (DeviceIO(8, 0, amounts, {"Read": 1, "Write": 2}),)


def test_huge_pages_and_oom_kills(v1: StatsReader) -> None:
    assert v1.details("/a").huge_pages == (HugePages("2MB", 2 << 20, 4 << 20),)
    assert v1.details("/a").oom_kills == 2


def test_huge_pages_and_oom_kills_on_v2(v2: StatsReader) -> None:
    assert v2.details("/a").huge_pages == (HugePages("2MB", 2 << 20, None),)
    assert v2.details("/a").oom_kills == 2


def test_pressure_is_there_on_v2_only(v1: StatsReader) -> None:
    assert v1.stats("/a").pressure == {}


def test_pressure_on_v2(v2: StatsReader) -> None:
    some, full = Stall(1.5, 0.5, 0.1, 123_000), Stall(0.0, 0.0, 0.0, 12_000)
    assert v2.stats("/a").pressure == {"cpu": Pressure(some, full)}


def test_pressure_without_full_and_none_at_all() -> None:
    old = parse_pressure(b"some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n")
    assert old == Pressure(Stall(0.0, 0.0, 0.0, 1000), None)
    assert parse_pressure(b"") is None


def test_a_cgroup_that_is_gone(v1: StatsReader) -> None:
    with pytest.raises(CgroupError, match="gone") as caught:
        v1.stats("/b")
    assert caught.value.errno == errno.ENOENT


def test_a_cgroup_that_is_gone_on_v2(v2: StatsReader) -> None:
    with pytest.raises(CgroupError, match="gone"):
        v2.stats("/b")


def test_controllers_that_are_not_there_are_nothing(tmp_path: Path) -> None:
    lay_out(tmp_path, {"pids/a/pids.current": "1"})
    reader = StatsReader(V1Manager([Hierarchy("pids", str(tmp_path / "pids"))]))
    assert reader.stats("/a") == stats.CgroupStats(tasks=1)
    assert reader.details("/a") == stats.CgroupDetails()


def test_a_long_file_is_read_to_its_end(v1: StatsReader, tmp_path: Path) -> None:
    lines = "".join(f"8:{n} Read {n}\n" for n in range(20_000))
    (tmp_path / "blkio/a/blkio.throttle.io_service_bytes_recursive").write_text(lines)
    (tmp_path / "blkio/a/blkio.throttle.io_serviced_recursive").write_text("")
    assert len(v1.details("/a").io) == 20_000


@pytest.mark.parametrize(
    ("kilobytes", "name"), [(64, "64KB"), (2048, "2MB"), (1 << 20, "1GB"), (16 << 20, "16GB")]
)
def test_huge_page_sizes_are_named_as_the_files_are(kilobytes: int, name: str) -> None:
    assert stats._size_name(kilobytes) == name

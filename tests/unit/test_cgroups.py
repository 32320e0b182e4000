"""Cgroups on a temporary directory: what is found, which files are written, what is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from runtimeshim.linux import cgroups
from runtimeshim.linux.cgroups import files
from runtimeshim.linux.cgroups.v2_limits import swap_alone, weight

V1_FILES = {
    "cpu": {
        "cpu.shares": "1024",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "-1",
        "cpu.cfs_burst_us": "0",
        "cpu.idle": "0",
    },
    "cpuset": {"cpuset.cpus": "0-3", "cpuset.mems": "0"},
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.memsw.limit_in_bytes": "9223372036854771712",
        "memory.soft_limit_in_bytes": "0",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0",
    },
    "pids": {"pids.max": "max"},
    "devices": {"devices.allow": "", "devices.deny": ""},
    "systemd": {},
}
V2_FILES = {
    "cpu.weight": "100",
    "cpu.max": "max 100000",
    "cpu.max.burst": "0",
    "cpu.idle": "0",
    "cpuset.cpus": "",
    "cpuset.mems": "",
    "memory.max": "max",
    "memory.low": "0",
    "memory.swap.max": "max",
    "memory.high": "max",
    "memory.current": "5000",
    "memory.events": "low 0\noom 2\noom_kill 2",
    "pids.max": "max",
    "hugetlb.2MB.max": "max",
    "hugetlb.2MB.rsvd.max": "max",
    "cgroup.procs": "",
}


def fill(directory: Path, contents: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.procs").touch()
    for name, value in contents.items():
        (directory / name).write_text(value)


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    for controller, contents in V1_FILES.items():
        fill(tmp_path / controller, contents)
        fill(tmp_path / controller / "pod/c", contents)
    return tmp_path


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    fill(tmp_path, {"cgroup.controllers": "cpuset cpu io memory hugetlb pids"})
    for directory in (tmp_path, tmp_path / "pod", tmp_path / "pod/c"):
        fill(directory, {"cgroup.subtree_control": ""} | V2_FILES)
    return tmp_path


class TestDetection:
    def test_a_tree_with_controllers_at_its_root_is_v2(self, v2: Path) -> None:
        manager = cgroups.manager(str(v2))
        assert manager.version == 2
        assert {"cpu", "memory", "devices"} <= manager.controllers
        assert manager.mounts() == [("", "cgroup2", "")]
        assert manager.directories("/pod/c") == [("", f"{v2}/pod/c")]

    def test_v1_finds_every_hierarchy_and_systemds_without_a_controller(self, v1: Path) -> None:
        manager = cgroups.manager(str(v1))
        assert manager.version == 1
        assert manager.controllers == {"cpu", "cpuset", "memory", "pids", "devices"}
        assert ("systemd", "cgroup", "none,name=systemd") in manager.mounts()
        assert ("memory", "cgroup", "memory") in manager.mounts()

    def test_hybrid_is_v1_without_the_v2_tree(self, v1: Path) -> None:
        fill(v1 / "unified", {"cgroup.controllers": "hugetlb"})
        manager = cgroups.manager(str(v1))
        assert manager.version == 1
        assert "hugetlb" not in manager.controllers
        assert "unified" not in [name for name, _ in manager.directories("/")]

    def test_controllers_mounted_together_are_one_hierarchy_and_links(self, tmp_path: Path) -> None:
        fill(tmp_path / "cpu,cpuacct", V1_FILES["cpu"])
        (tmp_path / "cpu").symlink_to("cpu,cpuacct")
        (tmp_path / "cpuacct").symlink_to("cpu,cpuacct")
        manager = cgroups.manager(str(tmp_path))
        assert manager.controllers == {"cpu", "cpuacct"}
        assert manager.directories("/x") == [("cpu,cpuacct", f"{tmp_path}/cpu,cpuacct/x")]
        assert ("cpu", "link", "cpu,cpuacct") in manager.mounts()

    def test_no_hierarchy_at_all_is_an_error_that_names_the_place(self, tmp_path: Path) -> None:
        with pytest.raises(cgroups.CgroupError, match="no cgroup hierarchy") as caught:
            cgroups.manager(str(tmp_path))
        assert caught.value.filename == str(tmp_path)


@pytest.mark.parametrize("path", ["pod/c", "", "/pod/../../etc", "/a\0b"])
def test_a_path_that_could_leave_the_hierarchy_is_refused(v2: Path, path: str) -> None:
    manager = cgroups.manager(str(v2))
    for operation in (manager.create, manager.delete, manager.kill, manager.pids):
        with pytest.raises(cgroups.CgroupError) as caught:
            operation(path)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("path", ["/", "//", "/."])
def test_the_root_is_never_killed_or_removed(v2: Path, path: str) -> None:
    manager = cgroups.manager(str(v2))
    for operation in (manager.kill, manager.delete):
        with pytest.raises(cgroups.CgroupError, match="root cgroup"):
            operation(path)


class TestV1:
    @pytest.mark.parametrize(
        ("resources", "written"),
        [
            ({"cpu": {"shares": 512}}, {"cpu/cpu.shares": "512"}),
            (
                {"cpu": {"quota": 20000, "period": 50000, "burst": 1000}},
                {
                    "cpu/cpu.cfs_quota_us": "20000",
                    "cpu/cpu.cfs_period_us": "50000",
                    "cpu/cpu.cfs_burst_us": "1000",
                },
            ),
            ({"cpu": {"idle": 1}}, {"cpu/cpu.idle": "1"}),
            (
                {"cpu": {"cpus": "0-1", "mems": "0"}},
                {"cpuset/cpuset.cpus": "0-1", "cpuset/cpuset.mems": "0"},
            ),
            (
                {"memory": {"limit": 1 << 20, "swap": 1 << 21, "reservation": 4096}},
                {
                    "memory/memory.limit_in_bytes": str(1 << 20),
                    "memory/memory.memsw.limit_in_bytes": str(1 << 21),
                    "memory/memory.soft_limit_in_bytes": "4096",
                },
            ),
            (
                {"memory": {"limit": -1}},
                {
                    "memory/memory.limit_in_bytes": "-1",
                    "memory/memory.memsw.limit_in_bytes": "-1",
                },
            ),
            ({"pids": {"limit": 7}}, {"pids/pids.max": "7"}),
            ({"pids": {"limit": 0}}, {"pids/pids.max": "1"}),
            ({"pids": {"limit": -1}}, {"pids/pids.max": "max"}),
        ],
    )
    def test_each_field_goes_to_its_file(
        self, v1: Path, resources: dict[str, object], written: dict[str, str]
    ) -> None:
        cgroups.manager(str(v1)).apply("/pod/c", resources)
        for name, value in written.items():
            controller, file = name.split("/")
            assert (v1 / controller / "pod/c" / file).read_text().startswith(value)

    def test_absent_and_zero_fields_leave_the_files_alone(self, v1: Path) -> None:
        cgroups.manager(str(v1)).apply(
            "/pod/c", {"cpu": {"shares": 0, "quota": 0, "cpus": ""}, "memory": {"limit": 0}}
        )
        for controller, contents in V1_FILES.items():
            for name, value in contents.items():
                assert (v1 / controller / "pod/c" / name).read_text() == value

    @pytest.mark.parametrize(
        ("current", "limit", "swap", "order"),
        [
            (100, 200, 300, ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]),
            (100, 200, -1, ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]),
            (300, 100, 200, ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]),
        ],
    )
    def test_memory_and_swap_are_written_so_that_the_sum_is_never_the_smaller(
        self,
        v1: Path,
        monkeypatch: pytest.MonkeyPatch,
        current: int,
        limit: int,
        swap: int,
        order: list[str],
    ) -> None:
        (v1 / "memory/pod/c/memory.limit_in_bytes").write_text(str(current))
        written = []
        monkeypatch.setattr(
            "runtimeshim.linux.cgroups.v1_limits.write",
            lambda path, value: written.append(os.path.basename(path)),
        )
        cgroups.manager(str(v1)).apply("/pod/c", {"memory": {"limit": limit, "swap": swap}})
        assert written == order

    def test_without_swap_accounting_no_more_than_memory_itself_can_be_asked(
        self, v1: Path
    ) -> None:
        (v1 / "memory/pod/c/memory.memsw.limit_in_bytes").unlink()
        manager = cgroups.manager(str(v1))
        manager.apply("/pod/c", {"memory": {"limit": 4096, "swap": 4096}})
        assert (v1 / "memory/pod/c/memory.limit_in_bytes").read_text().startswith("4096")
        with pytest.raises(cgroups.CgroupError, match="8192"):
            manager.apply("/pod/c", {"memory": {"limit": 4096, "swap": 8192}})

    def test_a_controller_that_is_not_mounted_is_named(self, v1: Path) -> None:
        with pytest.raises(cgroups.CgroupError, match="hugepageLimits needs the hugetlb"):
            cgroups.manager(str(v1)).apply(
                "/pod/c", {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}
            )

    def test_network_and_rdma_go_to_their_hierarchies(self, v1: Path) -> None:
        for name, file in (("net_cls", "net_cls.classid"), ("net_prio", "net_prio.ifpriomap"),
                           ("rdma", "rdma.max"), ("blkio", "blkio.weight")):  # fmt: skip
            fill(v1 / name, {"cgroup.procs": "", file: ""})
            fill(v1 / name / "pod/c", {file: ""})
        network = {"classID": 7, "priorities": [{"name": "eth0", "priority": 5}]}
        resources = {
            "network": network,
            "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}},
            "blockIO": {"weight": 300},
        }
        cgroups.manager(str(v1)).apply("/pod/c", resources)
        assert (v1 / "net_cls/pod/c/net_cls.classid").read_text() == "7"
        assert (v1 / "net_prio/pod/c/net_prio.ifpriomap").read_text() == "eth0 5"
        assert (v1 / "rdma/pod/c/rdma.max").read_text() == ("mlx5_1 hca_handle=3 hca_object=10000")
        assert (v1 / "blkio/pod/c/blkio.weight").read_text() == "300"

    def test_a_weight_that_no_scheduler_takes_is_an_error(self, v1: Path) -> None:
        fill(v1 / "blkio", {"cgroup.procs": ""})
        fill(v1 / "blkio/pod/c", {})
        with pytest.raises(cgroups.CgroupError, match=r"this kernel has no blkio\.weight"):
            cgroups.manager(str(v1)).apply("/pod/c", {"blockIO": {"weight": 300}})

    def test_an_rdma_device_needs_a_limit(self, v1: Path) -> None:
        fill(v1 / "rdma", {"cgroup.procs": ""})
        fill(v1 / "rdma/pod/c", {"rdma.max": ""})
        with pytest.raises(cgroups.CgroupError, match=r"rdma\['m'\]: neither"):
            cgroups.manager(str(v1)).apply("/pod/c", {"rdma": {"m": {}}})

    def test_unified_is_refused(self, v1: Path) -> None:
        with pytest.raises(cgroups.CgroupError, match="unified"):
            cgroups.manager(str(v1)).apply("/pod/c", {"unified": {"memory.high": "1"}})

    def test_an_empty_cpuset_is_filled_from_above_at_every_level(self, v1: Path) -> None:
        for level in ("new", "new/c"):
            fill(v1 / "cpuset" / level, {"cpuset.cpus": "", "cpuset.mems": "\n"})
        cgroups.manager(str(v1)).create("/new/c")
        for level in ("new", "new/c"):
            assert (v1 / "cpuset" / level / "cpuset.cpus").read_text() == "0-3"
            assert (v1 / "cpuset" / level / "cpuset.mems").read_text().strip() == "0"

    def test_create_makes_every_hierarchy_and_undoes_all_when_one_fails(self, v1: Path) -> None:
        manager = cgroups.manager(str(v1))
        # The new cpuset directory of a temporary tree has no files: its initialisation fails.
        with pytest.raises(cgroups.CgroupError, match=r"read: .*cpuset\.cpus"):
            manager.create("/fresh/c")
        assert not any((v1 / controller / "fresh").exists() for controller in V1_FILES)

    def test_join_writes_the_pid_once_in_every_hierarchy(self, v1: Path) -> None:
        cgroups.manager(str(v1)).join("/pod/c", 4321)
        for controller in V1_FILES:
            assert (v1 / controller / "pod/c/cgroup.procs").read_text() == "4321"

    def test_oom_kills_of_descendants_are_added(self, v1: Path) -> None:
        fill(v1 / "memory/pod/c/inner", {"memory.oom_control": "oom_kill_disable 0\noom_kill 3"})
        (v1 / "memory/pod/c/memory.oom_control").write_text("under_oom 0\noom_kill 2\n")
        manager = cgroups.manager(str(v1))
        assert manager.oom_kills("/pod/c") == 5
        assert manager.oom_kills("/gone") == 0


class TestV2:
    @pytest.mark.parametrize(
        ("resources", "written"),
        [
            ({"cpu": {"shares": 1024}}, {"cpu.weight": "100"}),
            ({"cpu": {"quota": 20000}}, {"cpu.max": "20000 100000"}),
            ({"cpu": {"period": 50000}}, {"cpu.max": "max 50000"}),
            ({"cpu": {"quota": -1, "period": 1000}}, {"cpu.max": "max 1000"}),
            ({"cpu": {"burst": 10}}, {"cpu.max.burst": "10"}),
            ({"cpu": {"idle": 1}}, {"cpu.idle": "1"}),
            ({"cpu": {"cpus": "1", "mems": "0"}}, {"cpuset.cpus": "1", "cpuset.mems": "0"}),
            (
                {"memory": {"limit": 4096, "swap": 12288, "reservation": 1024}},
                {"memory.max": "4096", "memory.swap.max": "8192", "memory.low": "1024"},
            ),
            (
                {"memory": {"limit": 4096, "swap": 4096}},
                {"memory.max": "4096", "memory.swap.max": "0"},
            ),
            ({"memory": {"limit": -1}}, {"memory.max": "max", "memory.swap.max": "max"}),
            ({"pids": {"limit": 9}}, {"pids.max": "9"}),
            (
                {"hugepageLimits": [{"pageSize": "2MB", "limit": 2097152}]},
                {"hugetlb.2MB.max": "2097152", "hugetlb.2MB.rsvd.max": "2097152"},
            ),
            (
                {"memory": {"limit": 4096}, "unified": {"memory.max": "8192", "memory.high": "1"}},
                {"memory.max": "8192", "memory.high": "1"},
            ),
        ],
    )
    def test_each_field_goes_to_its_file(
        self, v2: Path, resources: dict[str, object], written: dict[str, str]
    ) -> None:
        cgroups.manager(str(v2)).apply("/pod/c", resources)
        for name, value in written.items():
            # A plain file keeps what a shorter value did not overwrite; a control file does not.
            rest = V2_FILES[name][len(value) :]
            assert (v2 / "pod/c" / name).read_text() == value + rest

    @pytest.mark.parametrize("size", ["3MB", "a\nb", "/../../2MB", "x/../hugetlb.2MB"])
    def test_a_size_of_huge_pages_that_there_is_not(self, v2: Path, size: str) -> None:
        with pytest.raises(cgroups.CgroupError, match=r"hugepageLimits\.pageSize") as caught:
            cgroups.manager(str(v2)).apply(
                "/pod/c", {"hugepageLimits": [{"pageSize": size, "limit": 0}]}
            )
        assert caught.value.is_unacceptable

    @pytest.mark.parametrize(
        ("block_io", "file", "written"),
        [
            ({"weight": 10}, "io.weight", "1"),
            ({"weight": 1000}, "io.weight", "10000"),
            (
                {"weightDevice": [{"major": 8, "minor": 0, "weight": 505}]},
                "io.weight",
                "8:0 5000",
            ),
            (
                {"throttleReadBpsDevice": [{"major": 8, "minor": 16, "rate": 600}]},
                "io.max",
                "8:16 rbps=600",
            ),
            (
                {"throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}]},
                "io.max",
                "8:16 wiops=max",
            ),
        ],
    )
    def test_block_io(self, v2: Path, block_io: dict[str, object], file: str, written: str) -> None:
        fill(v2 / "pod/c", {"io.weight": "", "io.max": ""})
        cgroups.manager(str(v2)).apply("/pod/c", {"blockIO": block_io})
        assert (v2 / "pod/c" / file).read_text() == written

    def test_the_weight_of_bfq_is_not_converted(self, v2: Path) -> None:
        fill(v2 / "pod/c", {"io.bfq.weight": ""})
        cgroups.manager(str(v2)).apply("/pod/c", {"blockIO": {"weight": 300}})
        assert (v2 / "pod/c/io.bfq.weight").read_text() == "300"

    def test_controllers_are_enabled_above_the_cgroup_and_not_in_it(self, v2: Path) -> None:
        cgroups.manager(str(v2)).create("/pod/c")
        wanted = "+cpu +cpuset +io +memory +pids +hugetlb"
        assert (v2 / "cgroup.subtree_control").read_text() == wanted
        assert (v2 / "pod/cgroup.subtree_control").read_text() == wanted
        assert (v2 / "pod/c/cgroup.subtree_control").read_text() == ""

    def test_enabled_controllers_are_not_written_again(self, v2: Path) -> None:
        (v2 / "cgroup.subtree_control").write_text("cpuset cpu io memory hugetlb pids")
        cgroups.manager(str(v2)).create("/pod")
        assert "+" not in (v2 / "cgroup.subtree_control").read_text()

    def test_a_limit_below_the_usage_is_refused_when_asked_for(self, v2: Path) -> None:
        resources = {"memory": {"limit": 4096, "checkBeforeUpdate": True}}
        with pytest.raises(cgroups.CgroupError, match="5000 bytes"):
            cgroups.manager(str(v2)).apply("/pod/c", resources)
        assert (v2 / "pod/c/memory.max").read_text() == "max"

    @pytest.mark.parametrize("name", ["../x", "a/b.c", "memory"])
    def test_unified_names_are_file_names(self, v2: Path, name: str) -> None:
        with pytest.raises(cgroups.CgroupError, match="unified"):
            cgroups.manager(str(v2)).apply("/pod/c", {"unified": {name: "1"}})

    def test_kill_uses_the_kernels(self, v2: Path) -> None:
        (v2 / "pod/c/cgroup.kill").write_text("")
        cgroups.manager(str(v2)).kill("/pod/c")
        assert (v2 / "pod/c/cgroup.kill").read_text() == "1"

    def test_the_oom_counter_is_not_that_of_oom_events(self, v2: Path) -> None:
        manager = cgroups.manager(str(v2))
        (v2 / "pod/c/memory.events").write_text("oom 9\noom_kill 4\noom_group_kill 1\n")
        assert manager.oom_kills("/pod/c") == 4
        assert manager.oom_kills("/pod/gone") == 0


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"cpu": {"shares": "512"}}, "shares"),
        ({"cpu": {"shares": True}}, "shares"),
        ({"cpu": {"cpus": 3}}, "cpus"),
        ({"memory": []}, "memory"),
        ({"memory": {"limit": 1.5}}, "limit"),
        ({"pids": {"limit": "max"}}, "limit"),
        ({"devices": {}}, "devices"),
        ({"devices": [{"allow": 1}]}, "allow"),
        ({"devices": [{"type": "x"}]}, "type"),
        ({"devices": [{"access": "rx"}]}, "access"),
        ({"devices": [{"type": "c", "major": -7}]}, "major"),
    ],
)
def test_a_wrong_type_names_its_field(v1: Path, resources: dict[str, object], field: str) -> None:
    with pytest.raises(cgroups.CgroupError, match=field) as caught:
        cgroups.manager(str(v1)).apply("/pod/c", resources)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("shares", "expected"), [(0, 1), (2, 1), (1024, 100), (262144, 10000), (1 << 20, 10000)]
)
def test_weight_at_the_points_that_define_it(shares: int, expected: int) -> None:
    assert weight(shares) == expected


def test_weight_grows_with_the_shares() -> None:
    weights = [weight(1 << exponent) for exponent in range(1, 19)]
    assert weights == sorted(weights)


@pytest.mark.parametrize(
    ("limit", "swap", "expected"),
    [
        (100, None, None),
        (None, None, None),
        (-1, None, -1),
        (100, 150, 50),
        (100, 100, 0),
        (100, -1, -1),
        (-1, 150, 150),
    ],
)
def test_swap_alone(limit: int | None, swap: int | None, expected: int | None) -> None:
    assert swap_alone(limit, swap) == expected


@pytest.mark.parametrize(("limit", "swap"), [(None, 100), (100, 99)])
def test_swap_without_or_below_memory_is_refused(limit: int | None, swap: int) -> None:
    with pytest.raises(cgroups.CgroupError, match="swap"):
        swap_alone(limit, swap)


def test_processes_of_another_pid_namespace_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path / "c", {"cgroup.procs": "0\n12\n"})
    fill(tmp_path / "c/inner", {"cgroup.procs": "0\n13\n12\n"})
    assert files.pids(str(tmp_path / "c")) == [12, 13]


def test_an_error_names_value_file_and_cause(tmp_path: Path) -> None:
    with pytest.raises(cgroups.CgroupError) as caught:
        files.write(str(tmp_path / "missing"), "17")
    assert caught.value.errno == errno.ENOENT
    assert "'17'" in str(caught.value)
    assert str(tmp_path / "missing") in str(caught.value)

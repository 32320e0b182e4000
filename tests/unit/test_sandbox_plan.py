"""What a sandbox configuration asks for."""

from __future__ import annotations

import pytest

from api.cri import api_pb2 as cri
from api.errors import InvalidArgumentError
from podsandbox.cgroup_names import cgroup_path
from podsandbox.plan import SandboxHost, oci_resources, plan_sandbox


def config(**options: int) -> cri.PodSandboxConfig:
    made = cri.PodSandboxConfig(hostname="web")
    for kind, mode in options.items():
        setattr(made.linux.security_context.namespace_options, kind, mode)
    return made


@pytest.mark.parametrize(
    ("options", "namespaces", "shared_pid"),
    [
        ({}, ("net", "uts", "ipc"), True),  # POD is enum zero
        ({"pid": cri.CONTAINER}, ("net", "uts", "ipc"), False),
        ({"pid": cri.NODE}, ("net", "uts", "ipc"), False),
        ({"network": cri.NODE}, ("ipc",), True),
        ({"ipc": cri.NODE}, ("net", "uts"), True),
        ({"network": cri.NODE, "ipc": cri.NODE, "pid": cri.NODE}, (), False),
    ],
)
def test_the_namespace_modes(
    options: dict[str, int], namespaces: tuple[str, ...], shared_pid: bool
) -> None:
    plan = plan_sandbox("abc", config(**options))
    assert plan.namespaces == namespaces
    assert (plan.init_cgroup is not None) == shared_pid
    assert plan.hostname == ("web" if "uts" in namespaces else "")
    assert plan.own_network == ("net" in namespaces)
    assert plan.own_ipc == ("ipc" in namespaces)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"pid": cri.TARGET}, InvalidArgumentError),
        ({"network": cri.CONTAINER}, InvalidArgumentError),
        ({"ipc": cri.TARGET}, InvalidArgumentError),
    ],
)
def test_modes_that_a_sandbox_cannot_have(options: dict[str, int], error: type[Exception]) -> None:
    with pytest.raises(error):
        plan_sandbox("abc", config(**options))


ONE_LINE = [cri.IDMapping(host_id=100000, container_id=0, length=65536)]


def test_the_hosts_user_namespace_is_none() -> None:
    made = config()
    assert plan_sandbox("abc", made).user is None
    made.linux.security_context.namespace_options.userns_options.mode = cri.NODE
    assert plan_sandbox("abc", made).user is None


def mapped(**options: int) -> cri.PodSandboxConfig:
    made = config()
    user = cri.UserNamespace(mode=cri.POD, uids=ONE_LINE, gids=ONE_LINE)
    namespaces = cri.NamespaceOption(userns_options=user, **options)
    made.linux.security_context.namespace_options.CopyFrom(namespaces)
    return made


def test_a_user_namespace_has_its_mappings_and_no_default_for_ids_that_it_lacks() -> None:
    plan = plan_sandbox("abc", mapped())
    assert plan.user is not None
    line = {"containerID": 0, "hostID": 100000, "size": 65536}
    assert plan.user.as_json() == {"uids": [line], "gids": [line]}
    assert "net/ipv4/ping_group_range" not in plan.sysctls
    assert "net/ipv4/ip_unprivileged_port_start" in plan.sysctls


@pytest.mark.parametrize("name", ["pid", "ipc"])
def test_a_user_namespace_needs_namespaces_that_it_owns(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"host's {name} namespace"):
        plan_sandbox("abc", mapped(**{name: cri.NODE}))


def test_a_pod_without_a_cgroup_parent_has_one_of_its_own_with_its_limits() -> None:
    made = config()
    made.linux.resources.cpu_shares = 512
    plan = plan_sandbox("abc", made)
    assert (plan.cgroup_parent, plan.own_cgroup) == ("/criserver-abc", True)
    assert plan.init_cgroup == "/criserver-abc/abc"
    assert plan.resources == {"cpu": {"shares": 512}}


def test_the_kubelets_cgroup_keeps_the_kubelets_limits() -> None:
    made = config()
    made.linux.cgroup_parent = "/kubepods/pod1"
    made.linux.resources.cpu_shares = 512
    plan = plan_sandbox("abc", made)
    assert (plan.cgroup_parent, plan.own_cgroup) == ("/kubepods/pod1", False)
    assert plan.init_cgroup == "/kubepods/pod1/abc"
    assert plan.resources == {}


@pytest.mark.parametrize(
    ("given", "path"),
    [("/kubepods/pod1", "/kubepods/pod1"), ("kubepods", "/kubepods"), ("/a/b/", "/a/b")],
)
def test_cgroup_parents(given: str, path: str) -> None:
    assert cgroup_path(given) == path


@pytest.mark.parametrize("given", ["/", "/a/../b", "..", "/a//b", "/a/./b", "/a\0b"])
def test_a_cgroup_parent_that_is_no_path_is_refused(given: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cgroup_parent"):
        cgroup_path(given)


@pytest.mark.parametrize("hostname", ["a" * 65, "a b", "a\n127.0.0.1 evil", "a\0b", "\x1b[2J"])
def test_a_hostname_that_is_none_is_refused(hostname: str) -> None:
    with pytest.raises(InvalidArgumentError, match="hostname"):
        plan_sandbox("abc", cri.PodSandboxConfig(hostname=hostname))


def test_resources_that_are_not_given_are_not_written() -> None:
    assert oci_resources(cri.LinuxContainerResources()) == {}
    given = cri.LinuxContainerResources(
        cpu_quota=50000,
        cpu_period=100000,
        memory_limit_in_bytes=1 << 26,
        memory_swap_limit_in_bytes=1 << 27,
        cpuset_cpus="0",
        hugepage_limits=[cri.HugepageLimit(page_size="2MB", limit=4 << 20)],
        unified={"memory.high": "1"},
    )
    assert oci_resources(given) == {
        "cpu": {"quota": 50000, "period": 100000, "cpus": "0"},
        "memory": {"limit": 1 << 26, "swap": 1 << 27},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
        "unified": {"memory.high": "1"},
    }


def test_the_overhead_comes_on_top_of_each_limit_that_there_is() -> None:
    overhead = cri.LinuxContainerResources(
        cpu_shares=10, cpu_quota=5000, cpu_period=50000, memory_limit_in_bytes=1 << 20
    )
    given = cri.LinuxContainerResources(
        cpu_shares=100, cpu_quota=20000, cpu_period=100000, memory_limit_in_bytes=1 << 26
    )
    assert oci_resources(given, overhead) == {
        "cpu": {"shares": 110, "quota": 30000, "period": 100000},
        "memory": {"limit": (1 << 26) + (1 << 20)},
    }
    assert oci_resources(cri.LinuxContainerResources(cpu_quota=-1), overhead) == {
        "cpu": {"quota": -1}
    }


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("kubepods-burstable-pod1_2.slice", "kubepods-burstable-pod1_2.slice"),
        ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice"),
        ("-.slice", "-.slice"),
    ],
)
def test_a_slice_is_known_by_its_name_alone(given: str, path: str) -> None:
    assert cgroup_path(given, "systemd") == path


def test_with_the_systemd_driver_pods_are_slices_and_their_inits_scopes() -> None:
    made = config()
    made.linux.cgroup_parent = "kubepods-burstable-pod1.slice"
    host = SandboxHost(cgroup_driver="systemd")
    plan = plan_sandbox("abc", made, host)
    assert plan.cgroup_parent == "kubepods-burstable-pod1.slice"
    assert plan.init_cgroup == "kubepods-burstable-pod1.slice:cri-criserver:abc"
    made.linux.cgroup_parent = ""
    assert plan_sandbox("abc", made, host).cgroup_parent == "criserverabc.slice"


@pytest.mark.parametrize("given", [".slice", "a--b.slice", "-a.slice", "a-.slice", "a\0.slice"])
def test_a_slice_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(InvalidArgumentError, match="slice"):
        cgroup_path(given, "systemd")


@pytest.mark.parametrize(
    ("driver", "given"), [("systemd", "/kubepods/pod1"), ("cgroupfs", "kubepods-pod1.slice")]
)
def test_the_kubelets_driver_must_be_ours(driver: str, given: str) -> None:
    made = config()
    made.linux.cgroup_parent = given
    with pytest.raises(InvalidArgumentError, match=f"the cgroup driver is {driver}"):
        plan_sandbox("abc", made, SandboxHost(cgroup_driver=driver))


def test_the_files_have_the_pods_selinux_level() -> None:
    made = config()
    assert plan_sandbox("abc", made).mount_label == ""  # without SELinux
    host = SandboxHost(selinux=True)
    label = "system_u:object_r:container_file_t"
    assert plan_sandbox("abc", made, host).mount_label == f"{label}:s0"
    made.linux.security_context.selinux_options.level = "s0:c1,c2"
    assert plan_sandbox("abc", made, host).mount_label == f"{label}:s0:c1,c2"
    made.linux.security_context.selinux_options.level = 's0",uid=0,"'
    plan_sandbox("abc", made)
    with pytest.raises(InvalidArgumentError, match="is not a level"):
        plan_sandbox("abc", made, host)


def test_a_group_needs_a_user() -> None:
    made = config()
    made.linux.security_context.run_as_group.value = 5
    with pytest.raises(InvalidArgumentError, match="run_as_group without run_as_user"):
        plan_sandbox("abc", made)
    made.linux.security_context.run_as_user.value = 5
    plan_sandbox("abc", made)

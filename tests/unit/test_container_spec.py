"""A CRI request becomes an OCI spec: tables of fields and what they turn into."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from api.cri import api_pb2
from api.errors import InvalidArgumentError
from criserver.container_spec import (
    ContainerSpecInput,
    HostFacts,
    anonymous_volumes,
    container_spec,
    limits,
    localhost_profile,
)
from criserver.container_spec.security import DEFAULT_CAPABILITIES
from criserver.host_devices import Device
from criserver.users import ResolvedUser
from runtimeshim.linux.capabilities import KNOWN
from runtimeshim.oci.paths import MASKED_PATHS, READONLY_PATHS

NS = "/run/criserver/sandboxes/pod1/ns"
FILES = "/run/criserver/sandboxes/pod1"


@dataclass(frozen=True)
class Pod:
    namespaces: Mapping[str, str] = field(
        default_factory=lambda: {kind: f"{NS}/{kind}" for kind in ("network", "ipc", "uts")}
    )
    files: Mapping[str, str] = field(
        default_factory=lambda: {
            name: f"{FILES}/{name}" for name in ("hostname", "hosts", "resolv.conf", "shm")
        }
    )
    cgroup_parent: str = "/kubepods/pod1"


HOST = HostFacts(
    machine="x86_64",
    hostname="node",
    capabilities=tuple(name for name in KNOWN if name != "CAP_SYS_RESOURCE"),
    cgroup_version=1,
    swap=True,
    hugetlb=True,
    devices=(Device("/dev/sda", "b", 8, 0, 0o660, 0, 6),),
)
FUSE = Device("/dev/fuse", "c", 10, 229, 0o666, 0, 0, "rw")


def given(
    context: dict[str, Any] | None = None,
    *,
    config: dict[str, Any] | None = None,
    resources: dict[str, Any] | None = None,
    sandbox_config: dict[str, Any] | None = None,
    **fields: Any,
) -> ContainerSpecInput:
    linux: dict[str, Any] = {"security_context": context or {}}
    if resources is not None:
        linux["resources"] = resources
    request = {"metadata": {"name": "app"}, "command": ["/bin/app"], "linux": linux}
    pod = {"metadata": {"name": "pod", "namespace": "ns", "uid": "u1"}, "hostname": "pod-host"}
    base = ContainerSpecInput(
        container_id="c1",
        sandbox_id="pod1",
        config=api_pb2.ContainerConfig(**(request | (config or {}))),
        sandbox_config=api_pb2.PodSandboxConfig(**(pod | (sandbox_config or {}))),
        sandbox=Pod(),
        image_name="registry/app:1",
        image_config={},
        user=ResolvedUser(1000, 1001, (29, 1001), "/home/app"),
        host=HOST,
    )
    return replace(base, **fields)


def made(*arguments: Any, **fields: Any) -> dict[str, Any]:
    spec = container_spec(given(*arguments, **fields))
    assert json.loads(json.dumps(spec)) == spec  # what the bundle holds is what was meant
    return spec


def mount_at(spec: dict[str, Any], destination: str) -> dict[str, Any]:
    (found,) = [mount for mount in spec["mounts"] if mount["destination"] == destination]
    return found


PRIVILEGED_POD = {"linux": {"security_context": {"privileged": True}}}


class TestProcess:
    @pytest.mark.parametrize(
        ("command", "arguments", "entrypoint", "cmd", "expected"),
        [
            (["a"], [], ["e"], ["c"], ["a"]),
            (["a"], ["b"], ["e"], ["c"], ["a", "b"]),
            ([], ["b"], ["e"], ["c"], ["e", "b"]),
            ([], [], ["e"], ["c"], ["e", "c"]),
            ([], [], None, ["c"], ["c"]),
            ([], [], ["e"], None, ["e"]),
            ([], ["b"], None, None, ["b"]),
            ([], [], [""], ["c"], ["c"]),
        ],
    )
    def test_arguments(
        self,
        command: list[str],
        arguments: list[str],
        entrypoint: list[str] | None,
        cmd: list[str] | None,
        expected: list[str],
    ) -> None:
        spec = made(
            config={"command": command, "args": arguments},
            image_config={"Entrypoint": entrypoint, "Cmd": cmd},
        )
        assert spec["process"]["args"] == expected

    def test_environment_of_request_over_image_over_defaults(self) -> None:
        spec = made(
            config={
                "envs": [
                    {"key": "A", "value": b"request"},
                    {"key": "RAW", "value": b"\xff=x\n"},
                    {"key": "A", "value": b"last"},
                ]
            },
            image_config={"Env": ["A=image", "B=image", "PATH=/image", "EMPTY=", "HOSTNAME"]},
        )
        assert spec["process"]["env"] == [
            "PATH=/image",
            "A=last",
            "B=image",
            "EMPTY=",
            "RAW=\udcff=x\n",
            "HOME=/home/app",
        ]

    def test_default_environment(self) -> None:
        assert made(config={"tty": True})["process"]["env"] == [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TERM=xterm",
            "HOSTNAME=pod-host",
            "HOME=/home/app",
        ]

    def test_a_pod_without_a_hostname_has_the_nodes(self) -> None:
        assert "HOSTNAME=node" in made(sandbox_config={"hostname": ""})["process"]["env"]

    @pytest.mark.parametrize(
        ("request_", "image", "expected"),
        [
            ("", None, "/"),
            ("", "/srv", "/srv"),
            ("", "srv", "/srv"),
            ("/work/", "/srv", "/work"),
        ],
    )
    def test_directory(self, request_: str, image: str | None, expected: str) -> None:
        spec = made(config={"working_dir": request_}, image_config={"WorkingDir": image})
        assert spec["process"]["cwd"] == expected

    def test_user_terminal_and_no_new_privileges(self) -> None:
        process = made({"no_new_privs": True}, config={"tty": True})["process"]
        assert process["user"] == {"uid": 1000, "gid": 1001, "additionalGids": [29, 1001]}
        assert process["terminal"] is True
        assert process["noNewPrivileges"] is True
        assert "rlimits" not in process

    def test_oom_score_only_with_resources(self) -> None:
        assert "oomScoreAdj" not in made()["process"]
        assert made(resources={"oom_score_adj": -997})["process"]["oomScoreAdj"] == -997
        assert made(resources={})["process"]["oomScoreAdj"] == 0


class TestCapabilities:
    DEFAULT = frozenset(DEFAULT_CAPABILITIES)

    @pytest.mark.parametrize(
        ("add", "drop", "expected"),
        [
            ([], [], DEFAULT),
            (["NET_ADMIN"], [], DEFAULT | {"CAP_NET_ADMIN"}),
            (["cap_net_admin"], ["chown"], DEFAULT - {"CAP_CHOWN"} | {"CAP_NET_ADMIN"}),
            ([], ["ALL"], frozenset()),
            (["NET_BIND_SERVICE"], ["all"], {"CAP_NET_BIND_SERVICE"}),
            (["ALL"], [], frozenset(HOST.capabilities)),
            (["ALL"], ["MKNOD"], frozenset(HOST.capabilities) - {"CAP_MKNOD"}),
            (["KILL"], ["KILL"], DEFAULT - {"CAP_KILL"}),
        ],
    )
    def test_added_and_dropped(self, add: list[str], drop: list[str], expected: set[str]) -> None:
        lists = {"add_capabilities": add, "drop_capabilities": drop}
        sets = made({"capabilities": lists})["process"]["capabilities"]
        assert set(sets) == {"bounding", "effective", "permitted"}
        assert sets["bounding"] == sets["effective"] == sets["permitted"]
        assert set(sets["bounding"]) == expected

    def test_ambient_ones_are_in_every_set(self) -> None:
        lists = {"add_ambient_capabilities": ["NET_RAW"], "drop_capabilities": ["ALL"]}
        sets = made({"capabilities": lists})["process"]["capabilities"]
        kinds = ("bounding", "effective", "permitted", "inheritable", "ambient")
        assert sets == {kind: ["CAP_NET_RAW"] for kind in kinds}

    def test_privileged_is_what_the_host_has(self) -> None:
        lists = {"drop_capabilities": ["ALL"]}
        spec = made({"privileged": True, "capabilities": lists}, sandbox_config=PRIVILEGED_POD)
        assert spec["process"]["capabilities"]["bounding"] == list(HOST.capabilities)


class TestSeccomp:
    @pytest.mark.parametrize(
        "context",
        [
            {"seccomp": {"profile_type": "RuntimeDefault"}},
            {"seccomp_profile_path": "runtime/default"},
            {"seccomp_profile_path": "docker/default"},
        ],
    )
    def test_the_default_profile(self, context: dict[str, Any]) -> None:
        profile = made(context)["linux"]["seccomp"]
        assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
        assert "chroot" in profile["syscalls"][0]["names"]  # CAP_SYS_CHROOT is a default one
        assert "mount" not in profile["syscalls"][0]["names"]

    def test_the_default_profile_follows_the_capabilities(self) -> None:
        lists = {"add_capabilities": ["SYS_ADMIN"], "drop_capabilities": ["SYS_CHROOT"]}
        context = {"capabilities": lists, "seccomp": {"profile_type": "RuntimeDefault"}}
        names = made(context)["linux"]["seccomp"]["syscalls"][0]["names"]
        assert "mount" in names
        assert "chroot" not in names

    @pytest.mark.parametrize(
        "context",
        [
            {},
            {"seccomp": {"profile_type": "Unconfined"}},
            {"seccomp_profile_path": "unconfined"},
        ],
    )
    def test_unconfined(self, context: dict[str, Any]) -> None:
        assert "seccomp" not in made(context)["linux"]
        assert localhost_profile(given(context).context) == ""

    @pytest.mark.parametrize(
        "context",
        [
            {"seccomp": {"profile_type": "Localhost", "localhost_ref": "/p/x.json"}},
            {"seccomp": {"profile_type": "Localhost", "localhost_ref": "localhost//p/x.json"}},
            {"seccomp_profile_path": "localhost//p/x.json"},
        ],
    )
    def test_a_local_profile_is_read_by_the_caller(self, context: dict[str, Any]) -> None:
        assert localhost_profile(given(context).context) == "/p/x.json"
        profile = {"defaultAction": "SCMP_ACT_LOG"}
        assert made(context, seccomp_profile=profile)["linux"]["seccomp"] == profile
        with pytest.raises(InvalidArgumentError, match="local profile is missing"):
            container_spec(given(context))

    def test_privileged_is_unconfined(self) -> None:
        context = {"privileged": True, "seccomp": {"profile_type": "RuntimeDefault"}}
        assert "seccomp" not in made(context, sandbox_config=PRIVILEGED_POD)["linux"]


class TestSecurityModules:
    APPARMOR = replace(HOST, apparmor_profile="criserver-default")
    SELINUX = replace(HOST, selinux=True)

    @pytest.mark.parametrize(
        ("context", "expected"),
        [
            ({}, "criserver-default"),
            ({"apparmor": {"profile_type": "RuntimeDefault"}}, "criserver-default"),
            ({"apparmor": {"profile_type": "Localhost", "localhost_ref": "mine"}}, "mine"),
            ({"apparmor_profile": "localhost/mine"}, "mine"),
            ({"apparmor": {"profile_type": "Unconfined"}}, None),
        ],
    )
    def test_apparmor(self, context: dict[str, Any], expected: str | None) -> None:
        assert made(context, host=self.APPARMOR)["process"].get("apparmorProfile") == expected

    def test_apparmor_that_is_not_there_is_refused_only_when_asked_for(self) -> None:
        assert "apparmorProfile" not in made()["process"]
        with pytest.raises(InvalidArgumentError, match="no AppArmor"):
            container_spec(given({"apparmor": {"profile_type": "RuntimeDefault"}}))

    def test_selinux_labels_fill_what_is_left_open(self) -> None:
        context = {"selinux_options": {"level": "s0:c1,c2"}}
        spec = made(context, host=self.SELINUX)
        assert spec["process"]["selinuxLabel"] == "system_u:system_r:container_t:s0:c1,c2"
        assert spec["linux"]["mountLabel"] == "system_u:object_r:container_file_t:s0:c1,c2"
        assert "selinuxLabel" not in made(context)["process"]

    @pytest.mark.parametrize("value", ["a\0b", 's0",lowerdir="/', "s0 s1", "s0\n"])
    @pytest.mark.parametrize("field", ["user", "role", "type", "level"])
    def test_what_is_no_part_of_a_selinux_label_is_refused(self, field: str, value: str) -> None:
        context = {"selinux_options": {field: value}}
        with pytest.raises(
            InvalidArgumentError, match=rf"selinux_options\.{field}: .*(no part|NUL)"
        ):
            container_spec(given(context, host=self.SELINUX))

    def test_paths_are_the_defaults_without_any_in_the_request(self) -> None:
        linux = made()["linux"]
        assert linux["maskedPaths"] == list(MASKED_PATHS)
        assert linux["readonlyPaths"] == list(READONLY_PATHS)

    def test_paths_are_the_requests(self) -> None:
        linux = made({"masked_paths": ["/proc/kcore"], "readonly_paths": ["/proc/sys/"]})["linux"]
        assert linux["maskedPaths"] == ["/proc/kcore"]
        assert linux["readonlyPaths"] == ["/proc/sys"]

    def test_proc_mount_unmasked_shows_all_in_a_user_namespace(self) -> None:
        linux = container_spec(in_user_namespace())["linux"]
        assert linux["maskedPaths"] == linux["readonlyPaths"] == []


def in_user_namespace(**fields: Any) -> ContainerSpecInput:
    mapping = {"host_id": 65536, "container_id": 0, "length": 65536}
    options = {"userns_options": {"mode": "POD", "uids": [mapping], "gids": [mapping]}}
    pod = Pod(namespaces={**Pod().namespaces, "user": f"{NS}/user"})
    return given(
        {"namespace_options": options},
        sandbox_config={"linux": {"security_context": {"namespace_options": options}}},
        **({"sandbox": pod} | fields),
    )


class TestPrivileged:
    def test_it_sees_all_and_writes_all(self) -> None:
        spec = made(
            {"privileged": True, "masked_paths": ["/proc/kcore"]}, sandbox_config=PRIVILEGED_POD
        )
        linux = spec["linux"]
        assert linux["maskedPaths"] == linux["readonlyPaths"] == []
        assert "rw" in mount_at(spec, "/sys")["options"]
        assert "rw" in mount_at(spec, "/sys/fs/cgroup")["options"]
        assert [device["path"] for device in linux["devices"]] == ["/dev/sda"]
        assert linux["resources"]["devices"][-1] == {"allow": True, "access": "rwm"}

    def test_not_in_a_pod_that_is_not(self) -> None:
        with pytest.raises(InvalidArgumentError, match="privileged: the sandbox is not"):
            container_spec(given({"privileged": True}))


class TestMounts:
    def test_the_standard_ones_come_first(self) -> None:
        spec = made()
        assert [mount["destination"] for mount in spec["mounts"]] == [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup",
            "/etc/hostname",
            "/etc/hosts",
            "/etc/resolv.conf",
            "/dev/shm",
        ]
        assert "ro" in mount_at(spec, "/sys")["options"]
        assert "ro" in mount_at(spec, "/sys/fs/cgroup")["options"]

    def test_the_pods_files(self) -> None:
        spec = made()
        assert mount_at(spec, "/etc/hosts") == {
            "destination": "/etc/hosts",
            "type": "bind",
            "source": f"{FILES}/hosts",
            "options": ["rbind", "rprivate", "rw"],
        }
        assert mount_at(spec, "/dev/shm")["source"] == f"{FILES}/shm"

    def test_a_read_only_root_has_read_only_files_and_writable_memory(self) -> None:
        spec = made({"readonly_rootfs": True})
        assert spec["root"] == {"path": "rootfs", "readonly": True}
        assert "ro" in mount_at(spec, "/etc/hosts")["options"]
        assert "rw" in mount_at(spec, "/dev/shm")["options"]

    def test_the_hosts_ipc_brings_the_hosts_shared_memory(self) -> None:
        pod = Pod(namespaces={}, files={"shm": f"{FILES}/shm"})
        assert mount_at(made(sandbox=pod), "/dev/shm")["source"] == "/dev/shm"

    def test_without_a_pods_shared_memory_the_container_has_its_own(self) -> None:
        shm = mount_at(made(sandbox=Pod(files={})), "/dev/shm")
        assert (shm["type"], shm["source"]) == ("tmpfs", "shm")

    @pytest.mark.parametrize(
        ("fields", "options"),
        [
            ({}, ["rbind", "rprivate", "rw"]),
            ({"readonly": True}, ["rbind", "rprivate", "ro"]),
            ({"readonly": True, "recursive_read_only": True}, ["rbind", "rprivate", "rro"]),
            ({"propagation": "PROPAGATION_HOST_TO_CONTAINER"}, ["rbind", "rslave", "rw"]),
            ({"propagation": "PROPAGATION_BIDIRECTIONAL"}, ["rbind", "rshared", "rw"]),
            ({"mount_options": ["noexec"]}, ["rbind", "rprivate", "rw", "noexec"]),
        ],
    )
    def test_options_of_a_requested_mount(self, fields: dict[str, Any], options: list[str]) -> None:
        mount = {"container_path": "/data/", "host_path": "/srv//data"} | fields
        assert mount_at(made(config={"mounts": [mount]}), "/data") == {
            "destination": "/data",
            "type": "bind",
            "source": "/srv/data",
            "options": options,
        }

    @pytest.mark.parametrize(
        ("modes", "expected"),
        [
            (["PROPAGATION_PRIVATE"], None),
            (["PROPAGATION_HOST_TO_CONTAINER"], "rslave"),
            (["PROPAGATION_BIDIRECTIONAL", "PROPAGATION_HOST_TO_CONTAINER"], "rshared"),
        ],
    )
    def test_the_root_propagates_what_its_mounts_need(
        self, modes: list[str], expected: str | None
    ) -> None:
        mounts = [
            {"container_path": f"/d{i}", "host_path": "/srv", "propagation": mode}
            for i, mode in enumerate(modes)
        ]
        assert made(config={"mounts": mounts})["linux"].get("rootfsPropagation") == expected

    def test_a_requested_mount_replaces_a_standard_one_and_a_pods_file(self) -> None:
        mounts = [
            {"container_path": "/etc/hosts", "host_path": "/kubelet/hosts"},
            {"container_path": "/sys/", "host_path": "/sys"},
        ]
        spec = made(config={"mounts": mounts})
        assert mount_at(spec, "/etc/hosts")["source"] == "/kubelet/hosts"
        assert mount_at(spec, "/sys")["type"] == "bind"

    def test_a_requested_dev_replaces_all_below(self) -> None:
        mounts = [{"container_path": "/dev", "host_path": "/dev"}]
        destinations = [m["destination"] for m in made(config={"mounts": mounts})["mounts"]]
        assert "/dev/pts" not in destinations
        assert "/dev/mqueue" not in destinations
        assert destinations.count("/dev") == 1

    def test_shallow_mounts_come_first(self) -> None:
        mounts = [
            {"container_path": path, "host_path": "/srv"} for path in ("/a/b/c", "/a", "/a/b")
        ]
        destinations = [m["destination"] for m in made(config={"mounts": mounts})["mounts"]]
        assert [d for d in destinations if d.startswith("/a")] == ["/a", "/a/b", "/a/b/c"]

    def test_anonymous_volumes_are_made_where_nothing_else_is(self) -> None:
        image = {"Volumes": {"/data": {}, "cache": {}, "/mine": {}}}
        config = {"mounts": [{"container_path": "/mine", "host_path": "/srv"}]}
        assert anonymous_volumes(image, given(config=config).config) == ["/cache", "/data"]
        spec = made(config=config, image_config=image, volumes={"/data": "/v/1"})
        assert mount_at(spec, "/data")["source"] == "/v/1"
        assert mount_at(spec, "/data")["options"] == ["rbind", "rprivate", "rw"]

    def test_id_mappings_of_a_mount(self) -> None:
        mapping = {"host_id": 1, "container_id": 2, "length": 3}
        mount = {"container_path": "/d", "host_path": "/s", "uidMappings": [mapping]}
        found = mount_at(made(config={"mounts": [mount]}), "/d")
        assert found["uidMappings"] == [{"containerID": 2, "hostID": 1, "size": 3}]
        assert "gidMappings" not in found


class TestNamespaces:
    def kinds(self, spec: dict[str, Any]) -> dict[str, str | None]:
        return {each["type"]: each.get("path") for each in spec["linux"]["namespaces"]}

    def test_the_pods_and_a_private_pid(self) -> None:
        spec = made({"namespace_options": {"pid": "CONTAINER"}})
        assert self.kinds(spec) == {
            "mount": None,
            "pid": None,
            "network": f"{NS}/network",
            "ipc": f"{NS}/ipc",
            "uts": f"{NS}/uts",
            "cgroup": None,
        }

    def test_a_pod_in_the_hosts_network(self) -> None:
        pod = Pod(namespaces={"ipc": f"{NS}/ipc"})
        spec = made({"namespace_options": {"network": "NODE"}}, sandbox=pod)
        assert set(self.kinds(spec)) == {"mount", "pid", "ipc", "cgroup"}

    def test_a_container_cannot_leave_its_pods_network(self) -> None:
        spec = made({"namespace_options": {"network": "NODE", "ipc": "NODE"}})
        assert self.kinds(spec)["network"] == f"{NS}/network"
        assert self.kinds(spec)["ipc"] == f"{NS}/ipc"

    def test_pid_of_the_pod(self) -> None:
        pod = Pod(namespaces={"pid": f"{NS}/pid"})
        assert self.kinds(made(sandbox=pod))["pid"] == f"{NS}/pid"

    def test_pid_of_a_pod_that_shares_none_is_private(self) -> None:
        assert self.kinds(made())["pid"] is None
        assert "pid" in self.kinds(made())

    def test_pid_of_the_host(self) -> None:
        pod = {"linux": {"security_context": {"namespace_options": {"pid": "NODE"}}}}
        for mode in ("NODE", "POD"):
            spec = made({"namespace_options": {"pid": mode}}, sandbox_config=pod)
            assert "pid" not in self.kinds(spec)

    def test_pid_of_another_container(self) -> None:
        context = {"namespace_options": {"pid": "TARGET", "target_id": "c0"}}
        spec = made(context, target_pid_namespace="/proc/42/ns/pid")
        assert self.kinds(spec)["pid"] == "/proc/42/ns/pid"

    @pytest.mark.parametrize("version", [1, 2])
    def test_a_cgroup_namespace_but_not_for_privileged(self, version: int) -> None:
        host = replace(HOST, cgroup_version=version)
        assert "cgroup" in self.kinds(made(host=host))
        spec = made({"privileged": True}, host=host, sandbox_config=PRIVILEGED_POD)
        assert "cgroup" not in self.kinds(spec)

    def test_the_pods_user_namespace(self) -> None:
        spec = container_spec(in_user_namespace())
        mapping = [{"containerID": 0, "hostID": 65536, "size": 65536}]
        assert self.kinds(spec)["user"] == f"{NS}/user"
        assert spec["linux"]["uidMappings"] == spec["linux"]["gidMappings"] == mapping
        # The files in /etc are its root's already; before Linux 6.3 a tmpfs takes no mapping.
        assert "uidMappings" not in mount_at(spec, "/etc/hosts")
        assert mount_at(spec, "/sys")["type"] == "sysfs"

    def test_a_user_namespace_in_the_hosts_network_binds_sys(self) -> None:
        pod = Pod(namespaces={"user": f"{NS}/user"})
        sys = mount_at(container_spec(in_user_namespace(sandbox=pod)), "/sys")
        assert (sys["type"], sys["source"]) == ("bind", "/sys")
        assert "rro" in sys["options"]


class TestResources:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, {}),
            ({"cpu_shares": 2, "cpu_quota": -1}, {"cpu": {"shares": 2, "quota": -1}}),
            (
                {"cpu_period": 1000, "cpuset_cpus": "0-1", "cpuset_mems": "0"},
                {"cpu": {"period": 1000, "cpus": "0-1", "mems": "0"}},
            ),
            ({"memory_limit_in_bytes": 4096}, {"memory": {"limit": 4096, "swap": 4096}}),
            (
                {"memory_limit_in_bytes": 4096, "memory_swap_limit_in_bytes": 8192},
                {"memory": {"limit": 4096, "swap": 8192}},
            ),
            ({"memory_swap_limit_in_bytes": -1}, {"memory": {"swap": -1}}),
            (
                {"hugepage_limits": [{"page_size": "2MB", "limit": 0}]},
                {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]},
            ),
        ],
    )
    def test_limits(self, fields: dict[str, Any], expected: dict[str, Any]) -> None:
        assert limits(api_pb2.LinuxContainerResources(**fields), HOST) == expected

    def test_what_the_host_cannot_account_is_left_out(self) -> None:
        host = replace(HOST, swap=False, hugetlb=False)
        wanted = api_pb2.LinuxContainerResources(
            memory_limit_in_bytes=4096, hugepage_limits=[{"page_size": "2MB", "limit": 0}]
        )
        assert limits(wanted, host) == {"memory": {"limit": 4096}}

    def test_unified_on_v2(self) -> None:
        host = replace(HOST, cgroup_version=2)
        wanted = api_pb2.LinuxContainerResources(unified={"memory.high": "1"})
        assert limits(wanted, host) == {"unified": {"memory.high": "1"}}

    def test_devices_are_made_and_allowed(self) -> None:
        linux = made(devices=(FUSE,))["linux"]
        assert linux["devices"] == [
            {
                "path": "/dev/fuse",
                "type": "c",
                "major": 10,
                "minor": 229,
                "fileMode": 0o666,
                "uid": 0,
                "gid": 0,
            }
        ]
        assert linux["resources"]["devices"] == [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        ]

    def test_the_cgroup_is_below_the_pods(self) -> None:
        assert made()["linux"]["cgroupsPath"] == "/kubepods/pod1/c1"


def test_annotations_are_containerds() -> None:
    assert made()["annotations"] == {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": "app",
        "io.kubernetes.cri.image-name": "registry/app:1",
        "io.kubernetes.cri.sandbox-id": "pod1",
        "io.kubernetes.cri.sandbox-name": "pod",
        "io.kubernetes.cri.sandbox-namespace": "ns",
        "io.kubernetes.cri.sandbox-uid": "u1",
    }


def one_mount(**fields: Any) -> dict[str, Any]:
    return {"config": {"mounts": [{"container_path": "/d", "host_path": "/s"} | fields]}}


def with_options(**fields: Any) -> dict[str, Any]:
    return {"context": {"namespace_options": fields}}


def with_resources(**fields: Any) -> dict[str, Any]:
    return {"resources": fields}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {"command": []}}, "config.command: no command"),
        ({"config": {"command": ["a\0b"]}}, "NUL"),
        ({"config": {"working_dir": "srv"}}, "config.working_dir: 'srv' is not an absolute path"),
        ({"config": {"working_dir": "/a\0"}}, "config.working_dir: contains a NUL"),
        ({"config": {"working_dir": "/a/../b"}}, r"config.working_dir: .*'\.\.'"),
        ({"config": {"envs": [{"key": "", "value": b"x"}]}}, r"config.envs\[0\].key"),
        ({"config": {"envs": [{"key": "A=B"}]}}, r"config.envs\[0\].key"),
        ({"config": {"envs": [{"key": "A", "value": b"\0"}]}}, r"config.envs\[0\].value"),
        ({"image_config": {"Env": ["A=\0"]}}, "image config Env"),
        (one_mount(container_path="d"), r"config.mounts\[0\].container_path"),
        (one_mount(container_path=""), r"config.mounts\[0\].container_path"),
        (one_mount(container_path="/"), r"config.mounts\[0\].container_path"),
        (one_mount(container_path="/a/../.."), r"config.mounts\[0\].container_path"),
        (one_mount(host_path=""), r"config.mounts\[0\].host_path"),
        (one_mount(host_path="/a\0b"), r"config.mounts\[0\].host_path"),
        (one_mount(propagation=7), r"config.mounts\[0\].propagation: unknown value 7"),
        (one_mount(recursive_read_only=True), "recursive_read_only: needs readonly"),
        (
            one_mount(
                recursive_read_only=True, readonly=True, propagation="PROPAGATION_BIDIRECTIONAL"
            ),
            "recursive_read_only: needs private",
        ),
        (one_mount(mount_options=["suid"]), r"config.mounts\[0\].mount_options: 'suid'"),
        (
            one_mount(recursive_read_only=True, readonly=True)
            | {"host": replace(HOST, recursive_read_only=False)},
            "^RROUnsupported: ",
        ),
        (with_options(network="TARGET"), "namespace_options.network: TARGET"),
        (with_options(ipc="CONTAINER"), "namespace_options.ipc: CONTAINER"),
        (with_options(network=9), "namespace_options.network: 9"),
        (with_options(pid=9), "namespace_options.pid: unknown value 9"),
        (with_options(pid="NODE"), "namespace_options.pid: NODE needs"),
        (with_options(pid="TARGET"), "namespace_options.target_id"),
        (with_options(userns_options={"mode": "TARGET"}), "userns_options.mode: TARGET"),
        (with_options(userns_options={"mode": "POD"}), "userns_options: the sandbox has no"),
        (
            with_options(userns_options={"mode": "POD", "uids": [{"length": 1}]}),
            "userns_options: differs",
        ),
        (
            {"context": {"capabilities": {"add_capabilities": ["FOO"]}}},
            r"add_capabilities\[0\]: unknown capability 'FOO'",
        ),
        (
            {"context": {"capabilities": {"drop_capabilities": ["ALL", ""]}}},
            r"drop_capabilities\[1\]",
        ),
        ({"context": {"seccomp": {"profile_type": 5}}}, "seccomp.profile_type: unknown value 5"),
        ({"context": {"seccomp": {"profile_type": "Localhost"}}}, "seccomp.localhost_ref"),
        ({"context": {"seccomp": {"localhost_ref": "/x"}}}, "seccomp.localhost_ref"),
        ({"context": {"seccomp_profile_path": "mine"}}, "seccomp_profile_path: unknown"),
        ({"context": {"masked_paths": ["proc"]}}, r"masked_paths\[0\]"),
        ({"context": {"readonly_paths": ["/a", "/b\0"]}}, r"readonly_paths\[1\]"),
        (with_resources(oom_score_adj=1001), "oom_score_adj: 1001"),
        (with_resources(cpu_shares=-1), "cpu_shares: -1"),
        (with_resources(cpu_quota=-2), "cpu_quota: -2"),
        (with_resources(cpu_period=-1), "cpu_period: -1"),
        (with_resources(memory_limit_in_bytes=-2), "memory_limit_in_bytes: -2"),
        (with_resources(cpuset_cpus="0\0"), "cpuset_cpus: .* is not a list"),
        (with_resources(unified={"memory.high": "1"}), "unified: needs cgroup v2"),
        (
            with_resources(unified={"../x": "1"}) | {"host": replace(HOST, cgroup_version=2)},
            "unified: '../x'",
        ),
    ],
)
def test_bad_input_names_the_field(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        container_spec(given(**arguments))


def test_a_container_outside_its_pods_user_namespace_is_refused() -> None:
    pod = Pod(namespaces={"user": f"{NS}/user"})
    with pytest.raises(InvalidArgumentError, match="the container asks for none"):
        container_spec(given(sandbox=pod))


def test_the_same_input_gives_the_same_spec_and_is_not_changed() -> None:
    image = {"Env": ["A=1"], "Cmd": ["x"], "Volumes": {"/v": {}}}
    before = json.dumps(image)
    assert container_spec(given(image_config=image)) == container_spec(given(image_config=image))
    assert json.dumps(image) == before

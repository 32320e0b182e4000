"""The check of config.json: what is wrong is named by its field."""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimeshim.oci import spec, sysctls
from runtimeshim.oci.default_spec import default_spec
from runtimeshim.oci.errors import SpecError
from runtimeshim.oci.schema import Wrong

GOOD: dict[str, Any] = json.loads(json.dumps(default_spec("1.3.0")))
USER = [{"containerID": 0, "hostID": 100000, "size": 65536}]


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return a good spec with one field, "linux.resources.pids.limit", set to a value."""
    made = copy.deepcopy(GOOD)
    parts = path.split(".")
    at: Any = made
    for part in parts[:-1]:
        at = at.setdefault(part, {})
    at[parts[-1]] = value
    return made


WRONG: list[tuple[str, Any, str]] = [
    # field, its value, the beginning of the message
    ("ociVersion", 1, "ociVersion: 1 is not a string"),
    ("ociVersion", "one", "ociVersion: 'one' is not a version"),
    ("ociVersion", "2.0.0", "ociVersion: '2.0.0' is a specification that"),
    ("root", "rootfs", "root: 'rootfs' is not an object"),
    ("root.path", None, "root.path: missing"),
    ("root.path", "", "root.path: empty"),
    ("root.readonly", "yes", "root.readonly: 'yes' is not a boolean"),
    ("mounts", {}, "mounts: {} is not a list"),
    ("mounts", ["/proc"], "mounts[0]: '/proc' is not an object"),
    ("mounts", [{"type": "proc"}], "mounts[0].destination: missing"),
    ("mounts", [{"destination": ""}], "mounts[0].destination: empty"),
    ("mounts", [{"destination": "/a", "type": "bind"}], "mounts[0].source: empty"),
    (
        "mounts",
        [{"destination": "/a", "options": ["ro", 1]}],
        "mounts[0].options[1]: 1 is not a string",
    ),
    (
        "mounts",
        [{"destination": "/a", "type": "bind", "source": "/b", "options": ["idmap"]}],
        "mounts[0].options: idmap needs mappings",
    ),
    (
        "mounts",
        [{"destination": "/a", "type": "tmpfs", "uidMappings": USER, "gidMappings": USER}],
        "mounts[0]: only a bind mount can be id-mapped",
    ),
    (
        "mounts",
        [{"destination": "/a", "type": "bind", "source": "/b", "uidMappings": USER}],
        "mounts[0]: uidMappings and gidMappings go together",
    ),
    (
        "mounts",
        [{"destination": "/proc", "type": "bind", "source": "/tmp"}],
        "mounts[0].destination: only procfs can be mounted on /proc",
    ),
    (
        "mounts",
        [{"destination": "//proc/../proc/sys", "type": "tmpfs"}],
        "mounts[0].destination: nothing can be mounted on '/proc/sys'",
    ),
    ("process", None, "process: missing"),
    ("process", [], "process: [] is not an object"),
    ("process.args", [], "process.args: empty"),
    ("process.args", ["sh", None], "process.args[1]: None is not a string"),
    ("process.args", ["a\0b"], "process.args[0]: 'a\\x00b' has a NUL byte"),
    ("process.args", ["\ud800"], "process.args[0]: '\\ud800' is not valid Unicode"),
    ("process.env", "A=b", "process.env: 'A=b' is not a list"),
    ("process.env", ["A=b\0C=d"], "process.env[0]: "),
    ("process.cwd", None, "process.cwd: missing"),
    ("process.cwd", "tmp", "process.cwd: 'tmp' is not an absolute path"),
    ("process.terminal", 1, "process.terminal: 1 is not a boolean"),
    ("process.consoleSize", {"height": -1}, "process.consoleSize.height: -1 is not between"),
    ("process.user", "root", "process.user: 'root' is not an object"),
    ("process.user.uid", "0", "process.user.uid: '0' is not an integer"),
    ("process.user.uid", True, "process.user.uid: True is not an integer"),
    ("process.user.uid", -1, "process.user.uid: -1 is not between 0 and 2147483647"),
    ("process.user.uid", 1 << 31, "process.user.uid: 2147483648 is not between"),
    ("process.user.uid", (1 << 32) - 1, "process.user.uid: 4294967295 is not between"),
    ("process.user.uid", 1 << 32, "process.user.uid: 4294967296 is not between"),
    ("process.user.gid", 0.5, "process.user.gid: 0.5 is not an integer"),
    ("process.user.umask", 0o1000, "process.user.umask: 512 is not between 0 and 511"),
    ("process.user.additionalGids", [0, -2], "process.user.additionalGids[1]: -2 is not"),
    ("process.capabilities", ["CAP_KILL"], "process.capabilities: ['CAP_KILL'] is not an object"),
    ("process.capabilities.ambient", [1], "process.capabilities.ambient[0]: 1 is not a string"),
    (
        "process.rlimits",
        [{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}],
        "process.rlimits[0].type: 'RLIMIT_NONE' is none of",
    ),
    (
        "process.rlimits",
        [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}],
        "process.rlimits[0]: soft 2 is above hard 1",
    ),
    (
        "process.rlimits",
        [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2,
        "process.rlimits[1].type: 'RLIMIT_CPU' is there twice",
    ),
    ("process.rlimits", [{"type": "RLIMIT_CPU", "hard": 1}], "process.rlimits[0].soft: missing"),
    ("process.noNewPrivileges", "true", "process.noNewPrivileges: 'true' is not a boolean"),
    ("process.apparmorProfile", 1, "process.apparmorProfile: 1 is not a string"),
    ("process.selinuxLabel", [], "process.selinuxLabel: [] is not a string"),
    ("process.oomScoreAdj", 1001, "process.oomScoreAdj: 1001 is not between -1000 and 1000"),
    ("process.scheduler", {}, "process.scheduler.policy: missing"),
    ("process.scheduler", {"policy": "FIFO"}, "process.scheduler.policy: 'FIFO' is none of"),
    (
        "process.scheduler",
        {"policy": "SCHED_OTHER", "nice": 20},
        "process.scheduler.nice: 20 is not between",
    ),
    (
        "process.scheduler",
        {"policy": "SCHED_OTHER", "flags": ["X"]},
        "process.scheduler.flags[0]: 'X' is none of",
    ),
    ("process.ioPriority", {"class": "BE"}, "process.ioPriority.class: 'BE' is none of"),
    (
        "process.ioPriority",
        {"class": "IOPRIO_CLASS_BE", "priority": 8},
        "process.ioPriority.priority: 8 is not between 0 and 7",
    ),
    (
        "process.execCPUAffinity",
        {"initial": "0-"},
        "process.execCPUAffinity.initial: '0-' is no list",
    ),
    ("process.execCPUAffinity", {"final": "3-1"}, "process.execCPUAffinity.final: '3-1'"),
    ("hostname", 1, "hostname: 1 is not a string"),
    ("hostname", "x" * 65, "hostname: 'xxx"),
    ("domainname", ["x"], "domainname: ['x'] is not a string"),
    ("hooks", {"prestart": {}}, "hooks.prestart: {} is not a list"),
    ("hooks", {"poststop": [{}]}, "hooks.poststop[0].path: missing"),
    ("hooks", {"poststop": [{"path": "a"}]}, "hooks.poststop[0].path: 'a' is not an absolute"),
    (
        "hooks",
        {"poststart": [{"path": "/a", "timeout": 0}]},
        "hooks.poststart[0].timeout: 0 is not between 1",
    ),
    ("annotations", {"a": 1}, "annotations['a']: 1 is not a string"),
    ("linux", [], "linux: [] is not an object"),
    ("linux.namespaces", [{"type": "net"}], "linux.namespaces[0].type: 'net' is none of pid"),
    ("linux.namespaces", [{"path": "/x"}], "linux.namespaces[0].type: missing"),
    (
        "linux.namespaces",
        [{"type": "uts"}, {"type": "pid"}, {"type": "pid"}],
        "linux.namespaces[2].type: 'pid' is there twice",
    ),
    (
        "linux.namespaces",
        [{"type": "uts", "path": "ns/uts"}],
        "linux.namespaces[0].path: 'ns/uts' is not an absolute path",
    ),
    ("linux.namespaces", [{"type": "mount"}], "hostname: set, but linux.namespaces has no uts"),
    (
        "linux.namespaces",
        [{"type": "uts"}, {"type": "user"}],
        "linux.uidMappings: empty: a new user namespace needs one",
    ),
    ("linux.uidMappings", USER, "linux.uidMappings: set, but linux.namespaces has no user"),
    (
        "linux.uidMappings",
        [{"containerID": 0, "hostID": 1}],
        "linux.uidMappings[0].size: missing",
    ),
    (
        "linux.gidMappings",
        [{"containerID": 0, "hostID": 1 << 32, "size": 1}],
        "linux.gidMappings[0].hostID: 4294967296 is not between",
    ),
    ("linux.timeOffsets", {"boottime": {"secs": 1}}, "linux.timeOffsets: set, but linux.names"),
    (
        "linux.timeOffsets",
        {"boottime": {"nanosecs": 10**9}},
        "linux.timeOffsets['boottime'].nanosecs: 1000000000 is not between",
    ),
    ("linux.devices", [{"path": "/dev/x"}], "linux.devices[0].type: missing"),
    ("linux.devices", [{"path": "x", "type": "c"}], "linux.devices[0].path: 'x' is not an abs"),
    ("linux.devices", [{"path": "/x", "type": "z"}], "linux.devices[0].type: 'z' is none of"),
    ("linux.devices", [{"path": "/x", "type": "c"}], "linux.devices[0]: major and minor"),
    ("linux.netDevices", {"eth0": {"name": "a/b"}}, "linux.netDevices['eth0'].name: 'a/b' is no"),
    ("linux.netDevices", {"eth0": {"name": "x" * 16}}, "linux.netDevices['eth0'].name: "),
    ("linux.cgroupsPath", 1, "linux.cgroupsPath: 1 is not a string"),
    ("linux.resources.pids.limit", "x", "linux.resources.pids.limit: 'x' is not an integer"),
    ("linux.resources.memory.limit", 1 << 63, "linux.resources.memory.limit: 9223372036854775808"),
    ("linux.resources.memory.swappiness", -1, "linux.resources.memory.swappiness: -1 is not"),
    ("linux.resources.cpu.shares", -1, "linux.resources.cpu.shares: -1 is not between 0"),
    ("linux.resources.cpu.cpus", [0], "linux.resources.cpu.cpus: [0] is not a string"),
    ("linux.resources.devices", [{"allow": 1}], "linux.resources.devices[0].allow: 1 is not a"),
    ("linux.resources.devices", [{"type": "d"}], "linux.resources.devices[0].type: 'd' is none"),
    (
        "linux.resources.blockIO.throttleReadBpsDevice",
        [{"major": 8, "minor": 0}],
        "linux.resources.blockIO.throttleReadBpsDevice[0].rate: missing",
    ),
    ("linux.resources.blockIO.weight", 1 << 16, "linux.resources.blockIO.weight: 65536 is not"),
    ("linux.resources.hugepageLimits", [{"limit": 1}], "linux.resources.hugepageLimits[0].page"),
    ("linux.resources.network.classID", -1, "linux.resources.network.classID: -1 is not"),
    ("linux.resources.rdma", {"m": {"hcaHandles": -1}}, "linux.resources.rdma['m'].hcaHandles"),
    ("linux.resources.unified", {"a.b": 1}, "linux.resources.unified['a.b']: 1 is not a string"),
    ("linux.intelRdt", {"schemata": "L3:0=f"}, "linux.intelRdt.schemata: 'L3:0=f' is not a list"),
    ("linux.memoryPolicy", {"nodes": "0"}, "linux.memoryPolicy.mode: missing"),
    ("linux.memoryPolicy", {"mode": "BIND"}, "linux.memoryPolicy.mode: 'BIND' is none of"),
    ("linux.sysctl", {"net.a": 1}, "linux.sysctl['net.a']: 1 is not a string"),
    ("linux.seccomp", {}, "linux.seccomp.defaultAction: missing"),
    (
        "linux.seccomp",
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": "kill"}]},
        "linux.seccomp.syscalls[0].names: 'kill' is not a list",
    ),
    (
        "linux.seccomp",
        {"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"},
        "linux.seccomp.listenerMetadata: set without a listenerPath",
    ),
    (
        "linux.seccomp",
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
        },
        "linux.seccomp.listenerPath: SCMP_ACT_NOTIFY needs one",
    ),
    (
        "linux.seccomp",
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": "/x",
            "syscalls": [{"names": ["sendmsg"], "action": "SCMP_ACT_NOTIFY"}],
        },
        "linux.seccomp.syscalls[0].names: sendmsg cannot be notified",
    ),
    ("linux.rootfsPropagation", "both", "linux.rootfsPropagation: 'both' is none of"),
    ("linux.maskedPaths", ["proc"], "linux.maskedPaths[0]: 'proc' is not an absolute path"),
    ("linux.readonlyPaths", [1], "linux.readonlyPaths[0]: 1 is not a string"),
    ("linux.mountLabel", 1, "linux.mountLabel: 1 is not a string"),
    ("linux.personality", {"domain": "BSD"}, "linux.personality.domain: 'BSD' is none of"),
    (
        "linux.personality",
        {"domain": "LINUX", "flags": ["X"]},
        "linux.personality.flags: no flag is supported",
    ),
]


@pytest.mark.parametrize(("field", "value", "message"), WRONG)
def test_what_is_wrong_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec.check(changed(field, value))
    assert str(caught.value).startswith(message)


def test_a_good_spec_is_let_pass() -> None:
    spec.check(GOOD)


def test_unknown_fields_are_let_be_and_null_is_absent() -> None:
    spec.check(GOOD | {"windows": {"x": 1}, "future": [1], "hooks": None, "mounts": None})
    spec.check(changed("process.user", {"uid": None, "future": 1}))


def test_what_lxcfs_shows_may_be_mounted_in_proc() -> None:
    bind = {"destination": "/proc/meminfo", "type": "bind", "source": "/var/lib/lxcfs/meminfo"}
    spec.check(changed("mounts", [bind]))
    spec.check(changed("mounts", [{"destination": "/proc", "type": "bind", "source": "/proc"}]))


def test_a_relative_mount_destination_is_one_below_the_root() -> None:
    """config.md: deprecated, and still to be interpreted as relative to "/"."""
    spec.check(changed("mounts", [{"destination": "tmp", "type": "tmpfs"}]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "path", "names", "action", "uid", "limit", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)
FIELDS = sorted({field for field, _, _ in WRONG})


@given(st.sampled_from(FIELDS), JSON)
def test_no_value_does_more_than_be_refused(field: str, value: Any) -> None:
    try:
        spec.check(changed(field, value))
    except SpecError as err:
        assert ": " in str(err)


@pytest.mark.parametrize("value", [{"args": ["sh"]}, {"args": ["sh"], "cwd": "x"}])
def test_a_process_of_exec_is_checked_alike(value: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"^process\.cwd: "):
        spec.check_process(value)


def test_resources_of_update_are_checked_alike() -> None:
    with pytest.raises(SpecError, match=r"^linux\.resources\.pids\.limit: "):
        spec.check_resources({"pids": {"limit": "1"}})


@pytest.mark.parametrize(
    "path", ["/", "relative", "/a/../..", "/a//b", "/.", "a.slice", "a.slice:b", "a:b:c"]
)
def test_a_cgroup_path_that_is_not_below_the_root(path: str) -> None:
    with pytest.raises(SpecError, match=r"^linux\.cgroupsPath: "):
        spec.check_cgroup_path(path)


def test_a_cgroup_path_is_a_scope_too() -> None:
    spec.check_cgroup_path("kubepods-pod1.slice:cri-criserver:abc")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eno2/100.rp_filter", "net/ipv4/conf/eno2.100/rp_filter"),
        ("net/ipv4/conf/eno2.100/rp_filter", "net/ipv4/conf/eno2.100/rp_filter"),
    ],
)
def test_both_ways_to_write_a_sysctl(name: str, path: str) -> None:
    assert sysctls.path(name) == path


OWN = {"network": "", "ipc": "", "uts": ""}


@pytest.mark.parametrize(
    "name",
    [
        "kernel.core_pattern",
        "kernel.hostname",
        "kernel.shm_rmid_forced_not",
        "vm.overcommit_memory",
        "user.max_user_namespaces",
        "fs.mqueue",
        "net/../kernel/core_pattern",
        "net.//.kernel.core_pattern",
        "net..core",
        ".net.core",
        "net",
        "",
    ],
)
def test_a_sysctl_of_the_host_is_refused(name: str) -> None:
    with pytest.raises(Wrong):
        sysctls.check({name: "1"}, OWN)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("net.core.somaxconn", "network"),
        ("kernel.shm_rmid_forced", "ipc"),
        ("fs.mqueue.msg_max", "ipc"),
        ("kernel.domainname", "uts"),
        ("user.max_user_namespaces", "user"),
    ],
)
def test_a_sysctl_needs_its_namespace(name: str, kind: str) -> None:
    sysctls.check({name: "1"}, {kind: ""})
    with pytest.raises(Wrong, match=f"needs a {kind} namespace"):
        sysctls.check({name: "1"}, {})


def test_the_hosts_namespace_by_path_is_no_namespace_of_its_own() -> None:
    with pytest.raises(Wrong, match="network namespace beside the host's"):
        sysctls.check({"net.core.somaxconn": "1"}, {"network": f"/proc/{os.getpid()}/ns/net"})

"""Fields of config.json beyond those of test_executor, seen from inside containers."""

from __future__ import annotations

import array
import ctypes
import json
import os
import platform
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from runtimeshim.client import CreateError, Shim, StartError
from runtimeshim.linux import mounts
from runtimeshim.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, attribute
from runtimeshim.linux.rtnetlink import RTM_NEWLINK, Address, Netlink
from runtimeshim.oci.seccomp_default import default_profile
from tests.integration import bundles, harness

pytestmark = pytest.mark.integration

KEYCTL = 250 if platform.machine() == "x86_64" else 219


async def run(rt: harness.Runtime, spec: dict[str, Any], name: str = "c") -> str:
    record, output = await rt.run(spec, name)
    assert record.exit_code == 0, output
    return output


def python(rt: harness.Runtime, code: str, **process: Any) -> dict[str, Any]:
    """Return the spec of a container that runs the host's Python, for what busybox cannot ask."""
    spec = rt.spec(["/usr/bin/python3", "-I", "-S", "-c", code], **process)
    for path in ("/usr", "/lib", "/lib64"):
        spec["mounts"].append({"destination": path, "type": "bind", "source": path,
                               "options": ["rbind", "ro"]})  # fmt: skip
    return spec


async def run_exec(rt: harness.Runtime, shim: Shim, args: list[str], **process: Any) -> str:
    """Run a process in a container and return what it printed."""
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        started = await shim.exec(rt.spec(args, **process)["process"], (null, write, write))
    finally:
        os.close(write)
        os.close(null)
    code = await started.wait()
    with os.fdopen(read, encoding="utf-8") as pipe:
        output = pipe.read()
    assert code == 0, output
    return output


async def test_the_domain_name(rt: harness.Runtime) -> None:
    spec = rt.spec(["cat", "/proc/sys/kernel/domainname"])
    spec["domainname"] = "example.org"
    assert await run(rt, spec) == "example.org\n"


async def test_the_size_of_the_terminal(rt: harness.Runtime) -> None:
    spec = rt.spec(["sh", "-c", "stty size; tty; ls -l /dev/console | cut -c1"],
                   terminal=True, consoleSize={"height": 33, "width": 99})  # fmt: skip
    assert (await run(rt, spec)).split() == ["33", "99", "/dev/pts/0", "c"]


async def test_the_personality(rt: harness.Runtime) -> None:
    spec = rt.spec(["uname", "-m"])
    spec["linux"]["personality"] = {"domain": "LINUX32"}
    assert await run(rt, spec) == {"x86_64": "i686\n", "aarch64": "armv8l\n"}[platform.machine()]


async def test_the_scheduler_and_the_io_priority_of_init_and_exec(rt: harness.Runtime) -> None:
    fields = {
        "scheduler": {"policy": "SCHED_BATCH", "nice": 7},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
        "user": {"uid": 1000, "gid": 1000},
    }
    script = "ionice; cut -d' ' -f19,41 /proc/self/stat"
    shim = await rt.start(rt.spec(["sh", "-c", f"{script}; sleep 1000"], **fields))
    wanted = "best-effort: prio 6\n7 3\n"
    await harness.until(lambda: rt.output() == wanted)
    assert await run_exec(rt, shim, ["sh", "-c", script], **fields) == wanted


async def test_a_schedulers_flags(rt: harness.Runtime) -> None:
    scheduler = {"policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_RESET_ON_FORK"]}
    spec = python(rt, "import os; print(os.sched_getscheduler(0))", scheduler=scheduler)
    assert int(await run(rt, spec)) == os.SCHED_BATCH | os.SCHED_RESET_ON_FORK


async def test_a_deadline_reaches_the_kernel(rt: harness.Runtime) -> None:
    times = {"runtime": 50_000_000, "deadline": 80_000_000, "period": 100_000_000}
    number = 315 if platform.machine() == "x86_64" else 275
    code = (  # man 2 sched_getattr
        "import ctypes, struct; attr = ctypes.create_string_buffer(48);"
        f"ctypes.CDLL(None).syscall({number}, 0, attr, 48, 0);"
        "print(*struct.unpack('=IIQiIQQQ', attr.raw))"
    )
    spec = python(rt, code, scheduler={"policy": "SCHED_DEADLINE", **times})
    values = [int(word) for word in (await run(rt, spec)).split()]
    assert values[1] == 6
    assert values[5:] == list(times.values())


async def test_a_policy_that_the_kernel_refuses_fails_the_creation(rt: harness.Runtime) -> None:
    scheduler = {"policy": "SCHED_DEADLINE", "runtime": 2, "deadline": 1, "period": 1}
    with pytest.raises(CreateError, match=r"process\.scheduler: .*Invalid argument"):
        await rt.create(rt.spec(["true"], scheduler=scheduler))
    assert harness.cgroup_dirs(rt.cgroup_of("c")) == []


async def test_the_memory_policy(rt: harness.Runtime) -> None:
    spec = rt.spec(["sh", "-c", "head -1 /proc/self/numa_maps"])
    spec["linux"]["memoryPolicy"] = {
        "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"],
    }  # fmt: skip
    assert " bind=static:0 " in await run(rt, spec)


async def test_a_memory_policy_of_a_missing_node_is_refused(rt: harness.Runtime) -> None:
    spec = rt.spec(["true"])
    spec["linux"]["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "63"}
    with pytest.raises(CreateError, match=r"linux\.memoryPolicy: .*Invalid argument"):
        await rt.create(spec)


async def test_the_cpus_of_an_exec(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    ask = ["grep", "Cpus_allowed_list", "/proc/self/status"]
    output = await run_exec(rt, shim, ask, execCPUAffinity={"initial": "0", "final": "1"})
    assert output.split() == ["Cpus_allowed_list:", "1"]


async def test_the_session_keyring_is_a_new_one(rt: harness.Runtime) -> None:
    code = f"import ctypes; print(ctypes.CDLL(None).syscall({KEYCTL}, 0, -3, 0))"
    inside = int(await run(rt, python(rt, code)))
    ours = ctypes.CDLL(None).syscall(KEYCTL, 0, -3, 0)
    assert inside > 0
    assert inside != ours


async def test_the_oom_score_adjustment(rt: harness.Runtime) -> None:
    assert await run(rt, rt.spec(["cat", "/proc/self/oom_score_adj"], oomScoreAdj=555)) == "555\n"


async def test_ambient_capabilities_reach_a_user(rt: harness.Runtime) -> None:
    names = ["CAP_NET_BIND_SERVICE"]
    kinds = ("bounding", "effective", "permitted", "inheritable", "ambient")
    spec = rt.spec(["grep", "Cap", "/proc/self/status"], user={"uid": 1000, "gid": 1000},
                   capabilities=dict.fromkeys(kinds, names))  # fmt: skip
    sets = dict(line.split() for line in (await run(rt, spec)).splitlines())
    assert set(sets.values()) == {"0000000000000400"}


async def test_an_apparmor_profile_that_cannot_be_had_is_an_error(rt: harness.Runtime) -> None:
    if Path("/sys/kernel/security/apparmor").exists():
        expected = r"process\.apparmorProfile: .*'some-profile': no profile of that name is loaded"
    else:
        expected = r"process\.apparmorProfile: this kernel does not offer"
    with pytest.raises((CreateError, StartError), match=expected):
        await rt.start(rt.spec(["true"], apparmorProfile="some-profile"))


async def test_a_mount_label_is_there_or_an_error(rt: harness.Runtime) -> None:
    spec = rt.spec(["cat", "/proc/self/mountinfo"])
    spec["linux"]["mountLabel"] = "system_u:object_r:container_file_t:s0"
    if Path("/sys/fs/selinux/enforce").exists():
        assert "container_file_t" in await run(rt, spec)
        return
    with pytest.raises(CreateError, match=r"linux\.mountLabel: this kernel has no SELinux"):
        await rt.create(spec)


async def test_a_mount_label_cannot_hold_other_options(rt: harness.Runtime) -> None:
    spec = rt.spec(["true"])
    spec["linux"]["mountLabel"] = 'system_u:object_r:container_file_t:s0",lowerdir="/'
    with pytest.raises(CreateError, match=r"linux\.mountLabel: contains a quote"):
        await rt.create(spec)


async def test_intel_rdt_without_resctrl_is_an_error(rt: harness.Runtime) -> None:
    spec = rt.spec(["true"])
    spec["linux"]["intelRdt"] = {"closID": "c", "schemata": ["L3:0=f"]}
    with pytest.raises(CreateError, match=r"linux\.intelRdt: no resctrl filesystem is mounted"):
        await rt.create(spec)


async def test_device_rules_open_what_the_defaults_do_not(rt: harness.Runtime) -> None:
    spec = rt.spec(["sh", "-c", "(true < /dev/fuse) && echo opened; (true >> /dev/fuse)"])
    spec["linux"]["devices"] = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]
    spec["linux"]["resources"] = {"devices": [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "r"},
    ]}  # fmt: skip
    _, output = await rt.run(spec)
    assert output.startswith("opened\n")
    assert "Operation not permitted" in output


async def test_sysctls(rt: harness.Runtime) -> None:
    names = {"net.ipv4.ip_forward": "1",
             "fs.mqueue.msg_max": "33", "kernel.msgmax": "777",
             "kernel.domainname": "d"}  # fmt: skip
    spec = rt.spec(["cat", *(f"/proc/sys/{name.replace('.', '/')}" for name in names)])
    spec["linux"]["sysctl"] = names
    assert (await run(rt, spec)).split() == list(names.values())


async def test_a_sysctl_value_is_written_as_it_is(rt: harness.Runtime) -> None:
    """CVE-2022-0811: `1+kernel.core_pattern=…` is a value, and no second setting."""
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    spec = rt.spec(["true"])
    spec["linux"]["sysctl"] = {"kernel.shm_rmid_forced": "1+kernel.core_pattern=|/evil"}
    with pytest.raises(CreateError):
        await rt.create(spec)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


async def test_a_sysctl_of_the_host_is_refused(rt: harness.Runtime) -> None:
    spec = rt.spec(["true"])
    spec["linux"]["sysctl"] = {"kernel.core_pattern": "|/evil"}
    with pytest.raises(CreateError, match=r"linux\.sysctl: 'kernel\.core_pattern' is not in"):
        await rt.create(spec)


async def test_tmpcopyup_begins_with_the_images_files(rt: harness.Runtime) -> None:
    there = rt.layer / "data/deep"
    there.mkdir(parents=True)
    (there / "file").write_text("from the image\n")
    os.chown(there / "file", 11, 12)
    (there / "file").chmod(0o4750)
    (there / "link").symlink_to("/etc/passwd")
    os.setxattr(there / "file", "user.note", b"kept")
    spec = rt.spec(["sh", "-c", "cd /data/deep; cat file; stat -c %u:%g:%a file; readlink link;"
                    "echo x > new; grep ' /data ' /proc/mounts"])  # fmt: skip
    spec["mounts"].append({"destination": "/data", "type": "tmpfs", "source": "tmpfs",
                           "options": ["tmpcopyup", "nosuid", "size=1m"]})  # fmt: skip
    lines = (await run(rt, spec)).splitlines()
    assert lines[:3] == ["from the image", "11:12:4750", "/etc/passwd"]
    assert "size=1024k" in lines[3]
    assert "nosuid" in lines[3]
    assert not (rt.directory / "rw-c/upper/data/deep/new").exists()


@pytest.mark.parametrize(("option", "refused"), [("rro", ["deep", "top"]), ("ro", ["top"])])
async def test_rro_reaches_the_mounts_below(
    rt: harness.Runtime, option: str, refused: list[str]
) -> None:
    volume = rt.directory / "volume"
    (volume / "deep").mkdir(parents=True)
    mounts.mount("deep", str(volume / "deep"), "tmpfs", 0)
    try:
        spec = rt.spec(["sh", "-c", "echo > /v/deep/x || echo deep; echo > /v/x || echo top"])
        spec["mounts"].append({"destination": "/v", "type": "bind", "source": str(volume),
                               "options": ["rbind", option]})  # fmt: skip
        output = await run(rt, spec)
    finally:
        mounts.umount(str(volume / "deep"))
    assert [line for line in output.split("\n") if line in ("deep", "top")] == refused


@pytest.mark.parametrize(
    ("propagation", "shown"),
    [("shared", "shared:"), ("private", ""), ("unbindable", "unbindable"), ("slave", "")],
)
async def test_the_propagation_of_the_root(
    rt: harness.Runtime, propagation: str, shown: str
) -> None:
    spec = rt.spec(["sh", "-c", "grep ' / / ' /proc/self/mountinfo"])
    spec["linux"]["rootfsPropagation"] = propagation
    optional = (await run(rt, spec)).split(" - ")[0].split()[6:]
    assert [field.split(":")[0] for field in optional] == ([shown.rstrip(":")] if shown else [])


async def test_a_file_in_the_way_of_a_device_is_an_error(rt: harness.Runtime) -> None:
    (rt.layer / "opt").mkdir()
    (rt.layer / "opt/null").write_text("")
    spec = rt.spec(["true"])
    spec["linux"]["devices"] = [{"path": "/opt/null", "type": "c", "major": 1, "minor": 3}]
    with pytest.raises(CreateError, match=r"linux\.devices\[0\]\.path: /opt/null is there"):
        await rt.create(spec)


async def test_a_fifo_and_the_owner_of_a_device(rt: harness.Runtime) -> None:
    spec = rt.spec(["stat", "-c", "%F %a %u:%g", "/dev/pipe", "/opt/zero"])
    spec["linux"]["devices"] = [
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600},
        {"path": "/opt/zero", "type": "c", "major": 1, "minor": 5, "uid": 3, "gid": 4},
    ]
    assert await run(rt, spec) == "fifo 600 0:0\ncharacter special file 666 3:4\n"


async def test_a_device_of_the_host_moves_into_the_container(rt: harness.Runtime) -> None:
    host = Netlink()
    name = f"t{os.getpid()}"[:15]
    link = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, name.encode() + b"\0")
    link += attribute(18, attribute(1, b"veth\0"))  # IFLA_LINKINFO, IFLA_INFO_KIND
    host.change(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, link, f"make link {name}")
    try:
        index = host.index(name)
        address = struct.pack("=4s", bytes([192, 0, 2, 7]))
        host.add_address(index, Address(socket.AF_INET, 24, ((2, address), (1, address))))
        spec = rt.spec(["ip", "addr", "show", "dev", "moved0"])
        spec["linux"]["netDevices"] = {name: {"name": "moved0"}}
        output = await run(rt, spec)
    finally:
        host.close()
    assert "192.0.2.7/24" in output
    assert "UP" in output.split("<")[1].split(">")[0].split(",")
    assert not Path(f"/sys/class/net/{name}").exists()


async def test_a_device_that_is_not_there_fails_the_creation(rt: harness.Runtime) -> None:
    spec = rt.spec(["true"])
    spec["linux"]["netDevices"] = {"nonesuch0": {}}
    with pytest.raises(CreateError, match=r"linux\.netDevices\['nonesuch0'\]: .*No such device"):
        await rt.create(spec)
    assert harness.cgroup_dirs(rt.cgroup_of("c")) == []


def notify(path: Path) -> dict[str, Any]:
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": str(path),
        "listenerMetadata": "opaque",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    }


@pytest.mark.parametrize("no_new_privs", [True, False])
async def test_a_seccomp_listener_gets_the_fd_and_answers(
    rt: harness.Runtime, no_new_privs: bool
) -> None:
    path = rt.directory / "listener"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        directory = os.open(rt.directory, os.O_PATH)  # a socket's path has 107 bytes at most
        listener.bind(f"/proc/self/fd/{directory}/listener")
        os.close(directory)
        listener.listen()
        spec = rt.spec(["sh", "-c", "mkdir /tmp/made; echo $?"], noNewPrivileges=no_new_privs)
        spec["linux"]["seccomp"] = notify(path)
        shim = await rt.start(spec)
        connection, _ = listener.accept()
    with connection:
        fds = array.array("i")
        message, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(4))
        fds.frombytes(ancillary[0][2][:4])
        assert connection.recv(1) == b""  # closed after one state
    state = json.loads(message)
    assert state["fds"] == ["seccompFd"]
    assert state["metadata"] == "opaque"
    assert state["pid"] == state["state"]["pid"] == shim.pid
    assert state["state"]["id"] == "c"
    refuse(fds[0])
    await shim.wait()
    os.close(fds[0])
    assert "Read-only file system" in rt.output()


def refuse(fd: int) -> None:
    """Answer the next notified call with EROFS (man 2 seccomp_unotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    request = ctypes.create_string_buffer(80)  # struct seccomp_notif
    assert libc.ioctl(fd, ctypes.c_ulong(0xC0502100), request) == 0
    (identity,) = struct.unpack_from("=Q", request)
    answer = ctypes.create_string_buffer(struct.pack("=QqiI", identity, 0, -30, 0))
    assert libc.ioctl(fd, ctypes.c_ulong(0xC0182101), answer) == 0


async def test_the_errors_and_arguments_of_seccomp(rt: harness.Runtime) -> None:
    """A call that nobody needs is asked with arguments that one rule, another, or none matches."""

    def rule(value: int, op: str, errno: int, second: int = 0) -> dict[str, Any]:
        argument = {"index": 0, "value": value, "valueTwo": second, "op": op}
        return {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno,
                "args": [argument]}  # fmt: skip

    number = 135 if platform.machine() == "x86_64" else 92
    code = (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
        f"for value in (0x11, 0x22, 0x3300, 0xffffffff): print(libc.syscall({number}, value) < 0"
        " and ctypes.get_errno())\n"
        "print(libc.syscall(-1) < 0, libc.acct(None) < 0 and ctypes.get_errno())"
    )
    spec = python(rt, code)
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [f"SCMP_ARCH_{platform.machine().upper()}"],
        "syscalls": [
            rule(0x11, "SCMP_CMP_EQ", 5),
            rule(0xFF, "SCMP_CMP_MASKED_EQ", 6, 0x22),
            {"names": ["acct"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7},
        ],
    }  # fmt: skip
    lines = (await run(rt, spec)).splitlines()
    assert lines[:2] == ["5", "6"]
    assert lines[2:4] == ["False", "False"]
    assert lines[4].split()[1] == "7"


async def test_the_default_error_of_seccomp(rt: harness.Runtime) -> None:
    spec = rt.spec(["mkdir", "/tmp/made"])
    profile = default_profile(bundles.DEFAULT_CAPABILITIES, os.uname().machine)
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name not in ("mkdir", "mkdirat")]
    spec["linux"]["seccomp"] = profile | {"defaultErrnoRet": 28}
    _, output = await rt.run(spec)
    assert "No space left on device" in output


async def test_a_listener_that_is_away_fails_the_creation(rt: harness.Runtime) -> None:
    spec = rt.spec(["true"])
    spec["linux"]["seccomp"] = notify(rt.directory / "nobody")
    with pytest.raises(CreateError, match=r"linux\.seccomp\.listenerPath: .*No such file"):
        await rt.create(spec)


async def test_an_image_without_dev_gets_one(rt: harness.Runtime) -> None:
    (rt.layer / "dev").rmdir()
    (rt.layer / "proc").rmdir()
    assert await run(rt, rt.spec(["sh", "-c", "echo x > /dev/null; echo $$"])) == "1\n"


async def test_every_wrong_field_is_refused_before_anything_is_made(rt: harness.Runtime) -> None:
    spec = rt.spec(["true"])
    spec["linux"]["resources"] = {"pids": {"limit": "x"}}
    with pytest.raises(CreateError, match=r"linux\.resources\.pids\.limit: 'x' is not an integer"):
        await rt.create(spec)
    assert harness.cgroup_dirs(rt.cgroup_of("c")) == []

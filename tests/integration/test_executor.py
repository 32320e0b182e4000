"""The executor, seen from inside its containers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runtimeshim.client import CreateError, StartError
from runtimeshim.linux import mounts
from runtimeshim.oci.seccomp_default import default_profile
from tests.integration import bundles, harness

pytestmark = pytest.mark.integration


async def sh(rt: harness.Runtime, script: str, **process: Any) -> str:
    """Run a shell script in a container and return what it printed."""
    record, output = await rt.run(rt.spec(["sh", "-c", script], **process))
    assert record.exit_code == 0, output
    return output


def status(text: str) -> dict[str, str]:
    """Parse /proc/PID/status."""
    pairs = (line.split(":", 1) for line in text.splitlines())
    return {key: value.strip() for key, value in pairs}


async def test_every_namespace_is_its_own(rt: harness.Runtime) -> None:
    kinds = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
    output = await sh(rt, f"for n in {' '.join(kinds)}; do readlink /proc/self/ns/$n; done")
    own = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
    assert all(inside != host for inside, host in zip(output.split(), own, strict=True))


async def test_a_namespace_given_by_path_is_joined(rt: harness.Runtime) -> None:
    spec = rt.spec(["readlink", "/proc/self/ns/net"])
    for namespace in spec["linux"]["namespaces"]:
        if namespace["type"] == "network":
            namespace["path"] = "/proc/self/ns/net"
    spec["linux"]["namespaces"] = [
        n | ({"path": f"/proc/{os.getpid()}/ns/net"} if n["type"] == "network" else {})
        for n in spec["linux"]["namespaces"]
    ]
    _, output = await rt.run(spec)
    assert output.strip() == os.readlink("/proc/self/ns/net")


async def test_init_is_pid_1_and_sees_no_other(rt: harness.Runtime) -> None:
    assert await sh(rt, "echo $$; cd /proc; ls -d [0-9]* | head -2") == "1\n1\n2\n"


async def test_the_hostname_is_the_specs(rt: harness.Runtime) -> None:
    assert await sh(rt, "hostname") == "inside\n"


async def test_the_root_is_the_image_and_nothing_else(rt: harness.Runtime) -> None:
    output = await sh(
        rt, "ls /; grep -c . /proc/self/mountinfo; ls /.. ; cat /proc/1/root/etc/passwd"
    )
    assert "web:x:1000" in output
    assert "lib64" not in output.split()


async def test_no_mount_of_the_host_is_left_inside(rt: harness.Runtime) -> None:
    output = await sh(rt, "cut -d' ' -f5 /proc/self/mountinfo")
    allowed = ("/proc", "/dev", "/sys")
    assert all(line == "/" or line.startswith(allowed) for line in output.splitlines())


async def test_the_mounts_have_their_options(rt: harness.Runtime) -> None:
    output = await sh(rt, "cat /proc/mounts")
    mounts = {line.split()[1]: line.split() for line in output.splitlines()}
    assert mounts["/proc"][2] == "proc"
    assert {"nosuid", "noexec", "nodev"} <= set(mounts["/proc"][3].split(","))
    assert "ro" in mounts["/sys"][3].split(",")
    assert {"mode=755", "size=65536k"} <= set(mounts["/dev"][3].split(","))
    assert "mode=620" in mounts["/dev/pts"][3]
    assert mounts["/dev/mqueue"][2] == "mqueue"
    assert "ro" in mounts["/sys/fs/cgroup"][3].split(",")


async def test_the_default_devices_work(rt: harness.Runtime) -> None:
    output = await sh(
        rt,
        "cd /dev; stat -c '%n %t:%T %a' null zero full random urandom tty;"
        "for l in fd stdin stdout stderr ptmx; do readlink $l; done;"
        "head -c2 /dev/zero | wc -c; head -c2 /dev/urandom | wc -c; echo x > /dev/null;"
        "(echo x > /dev/full) 2>/dev/null || echo full",
    )
    assert "null 1:3 666" in output
    assert "tty 5:0 666" in output
    assert "pts/ptmx" in output
    assert output.splitlines()[-3:-1] == ["2", "2"]
    assert output.endswith("full\n")


async def test_masked_paths_show_nothing(rt: harness.Runtime) -> None:
    output = await sh(rt, "cat /proc/keys /proc/timer_list; ls /sys/firmware /proc/acpi; echo end")
    assert [line for line in output.splitlines() if not line.endswith(":")] == ["", "end"]


async def test_readonly_paths_refuse_writes(rt: harness.Runtime) -> None:
    output = await sh(
        rt, "echo 1 > /proc/sys/kernel/domainname; echo $?; cat /proc/sys/kernel/ostype"
    )
    assert "Read-only file system" in output
    assert output.endswith("1\nLinux\n")


async def test_a_readonly_root_refuses_writes_but_not_its_mounts(rt: harness.Runtime) -> None:
    spec = rt.spec(["sh", "-c", "touch /x; touch /dev/shm/y && echo shm"])
    spec["root"]["readonly"] = True
    _, output = await rt.run(spec)
    assert "Read-only file system" in output
    assert output.endswith("shm\n")


async def test_writes_go_to_the_upper_layer_alone(rt: harness.Runtime) -> None:
    await sh(rt, "echo new > /etc/new; rm /etc/group")
    assert not (rt.layer / "etc/new").exists()
    assert (rt.layer / "etc/group").exists()
    assert (rt.directory / "rw-c/upper/etc/new").read_text() == "new\n"


async def test_the_users_ids_and_groups(rt: harness.Runtime) -> None:
    user = {"uid": 1000, "gid": 1000, "additionalGids": [1000, 2000], "umask": 0o027}
    output = await sh(
        rt,
        "id -u; id -g; id -G; umask; echo $HOME; touch /tmp/x; stat -c %u:%g:%a /tmp/x",
        user=user,
    )
    assert output.splitlines() == [
        "1000", "1000", "1000 2000", "0027", "/home/web", "1000:1000:640",
    ]  # fmt: skip


async def test_stdout_can_be_reopened_by_the_user(rt: harness.Runtime) -> None:
    assert await sh(rt, "echo again > /dev/stdout", user={"uid": 1000, "gid": 1000}) == "again\n"


async def test_capabilities_are_the_specs_and_inheritable_is_empty(rt: harness.Runtime) -> None:
    output = status(await sh(rt, "cat /proc/self/status"))
    assert output["CapBnd"] == output["CapPrm"] == output["CapEff"] == "00000000000404eb"
    assert output["CapInh"] == output["CapAmb"] == "0000000000000000"


async def test_a_user_other_than_root_has_no_capabilities(rt: harness.Runtime) -> None:
    output = status(await sh(rt, "cat /proc/self/status", user={"uid": 1000, "gid": 1000}))
    assert output["CapPrm"] == output["CapEff"] == "0000000000000000"
    assert output["CapBnd"] == "00000000000404eb"


async def test_no_new_privs_and_clean_signals(rt: harness.Runtime) -> None:
    _, text = await rt.run(rt.spec(["cat", "/proc/self/status"]))
    output = status(text)
    assert output["NoNewPrivs"] == "1"
    assert output["SigIgn"] == output["SigBlk"] == "0000000000000000"


async def test_no_fd_is_left_beside_stdio(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    assert sorted(os.listdir(f"/proc/{shim.pid}/fd")) == ["0", "1", "2"]


@pytest.mark.parametrize("no_new_privs", [True, False])
async def test_the_default_seccomp_profile_is_loaded(
    rt: harness.Runtime, no_new_privs: bool
) -> None:
    spec = rt.spec(
        ["sh", "-c", "grep Seccomp: /proc/self/status; unshare -U true; echo $?; date > /dev/null"],
        noNewPrivileges=no_new_privs,
    )
    spec["linux"]["seccomp"] = default_profile(bundles.DEFAULT_CAPABILITIES, os.uname().machine)
    _, output = await rt.run(spec)
    assert output.splitlines()[0].split() == ["Seccomp:", "2"]
    assert "Operation not permitted" in output
    assert len(list((rt.run_dir / "seccomp").glob("*.bpf"))) == 1


async def test_an_exec_gets_the_same_filter(rt: harness.Runtime) -> None:
    spec = rt.spec(["sleep", "1000"])
    spec["linux"]["seccomp"] = default_profile(bundles.DEFAULT_CAPABILITIES, os.uname().machine)
    shim = await rt.start(spec)
    process = rt.spec(["grep", "Seccomp:", "/proc/self/status"])["process"]
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    started = await shim.exec(process, (null, write, write))
    os.close(write)
    os.close(null)
    assert await started.wait() == 0
    assert os.read(read, 100).split() == [b"Seccomp:", b"2"]
    os.close(read)


async def test_the_container_sees_its_cgroup_as_the_root(rt: harness.Runtime) -> None:
    file = harness.cgroup_file("memory/cgroup.procs", "cgroup.procs")
    output = await sh(rt, f"cut -d: -f3 /proc/self/cgroup | sort -u; head -1 {file}")
    assert output == "/\n1\n"


async def test_limits_are_set_before_the_program_runs(rt: harness.Runtime) -> None:
    files = [
        harness.cgroup_file("memory/memory.limit_in_bytes", "memory.max"),
        harness.cgroup_file("pids/pids.max", "pids.max"),
        harness.cgroup_file("cpu/cpu.cfs_quota_us", "cpu.max"),
        harness.cgroup_file("cpu/cpu.shares", "cpu.weight"),
    ]
    spec = rt.spec(["cat", *files])
    spec["linux"]["resources"] = {
        "memory": {"limit": 64 << 20},
        "pids": {"limit": 33},
        "cpu": {"quota": 50000, "period": 100000, "shares": 512},
    }
    _, output = await rt.run(spec)
    cpu = ["50000", "512"] if rt.cgroup_version == 1 else ["50000", "100000", "59"]
    assert output.split() == [str(64 << 20), "33", *cpu]


async def test_a_hog_is_killed_at_its_limit_and_it_is_said_so(rt: harness.Runtime) -> None:
    spec = rt.spec(["sh", "-c", "tail /dev/zero"])
    spec["process"]["args"] = ["tail", "/dev/zero"]
    spec["linux"]["resources"] = {"memory": {"limit": 32 << 20, "swap": 32 << 20}}
    record, _ = await rt.run(spec)
    assert (record.exit_code, record.oom_killed) == (137, True)


async def test_a_container_of_6_mib_starts(rt: harness.Runtime) -> None:
    spec = rt.spec(["sleep", "1000"])
    spec["linux"]["resources"] = {"memory": {"limit": 6 << 20, "swap": 6 << 20}}
    shim = await rt.start(spec)
    await harness.until(
        lambda: Path(f"/proc/{shim.pid}/cmdline").read_bytes() == b"sleep\x001000\0"
    )


async def test_a_bind_mount_is_seen_inside_and_read_only_if_asked(rt: harness.Runtime) -> None:
    volume = rt.directory / "volume"
    volume.mkdir()
    (volume / "file").write_text("from the host\n")
    spec = rt.spec(["sh", "-c", "cat /data/file /etc/one; echo x > /data/new; echo x > /ro/new"])
    for destination, options in (("/data", ["rbind"]), ("/ro/deep", ["rbind", "ro"])):
        spec["mounts"].append({"destination": destination, "type": "bind",
                               "source": str(volume), "options": options})  # fmt: skip
    spec["mounts"].append({"destination": "/etc/one", "type": "bind",
                           "source": str(volume / "file"), "options": ["bind", "ro"]})  # fmt: skip
    spec["process"]["args"][2] = spec["process"]["args"][2].replace("/ro/new", "/ro/deep/new")
    _, output = await rt.run(spec)
    assert output.startswith("from the host\nfrom the host\n")
    assert "/ro/deep/new: Read-only file system" in output
    assert (volume / "new").read_text() == "x\n"


async def test_nothing_mounted_inside_reaches_the_host(rt: harness.Runtime) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    assert Path("/proc/self/mountinfo").read_text() == before
    await shim.delete()


async def test_a_symbolic_link_in_the_image_leads_nowhere_outside(rt: harness.Runtime) -> None:
    victim = rt.directory / "victim"
    victim.mkdir()
    (rt.layer / "link").symlink_to(victim)
    (rt.layer / "up").symlink_to("../../../../../.." + str(victim))
    volume = rt.directory / "volume"
    volume.mkdir()
    spec = rt.spec(["true"])
    for name in ("link", "up"):
        spec["mounts"].append({"destination": f"/{name}/made", "type": "bind",
                               "source": str(volume), "options": ["rbind"]})  # fmt: skip
    try:
        await rt.run(spec)
    except CreateError:
        pass  # refused is as good as contained
    assert list(victim.iterdir()) == []


@pytest.mark.parametrize("name", ["proc", "sys"])
async def test_proc_and_sys_are_not_mounted_over_a_symbolic_link(
    rt: harness.Runtime, name: str
) -> None:
    (rt.layer / name).rmdir()
    (rt.layer / "elsewhere").mkdir()
    (rt.layer / name).symlink_to("/elsewhere")
    with pytest.raises(CreateError, match="symbolic link"):
        await rt.create(rt.spec(["true"]))


@pytest.mark.parametrize("number", [3, 4, 5, 6, 7, 8, 9, 10, 20])
async def test_a_leaked_fd_is_no_working_directory(rt: harness.Runtime, number: int) -> None:
    with pytest.raises(CreateError):
        await rt.create(rt.spec(["true"], cwd=f"/proc/self/fd/{number}"))


async def test_a_created_init_holds_no_fd_but_its_own(rt: harness.Runtime) -> None:
    shim = await rt.create(rt.spec(["true"]))
    targets = [
        os.readlink(f"/proc/{shim.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{shim.pid}/fd")
    ]
    assert len([t for t in targets if t.startswith("socket:")]) == 1
    assert all(t.startswith(("socket:", "pipe:")) or t == "/dev/null" for t in targets)


async def test_the_waiting_interpreter_is_a_sealed_copy(rt: harness.Runtime) -> None:
    shim = await rt.create(rt.spec(["true"]))
    assert os.readlink(f"/proc/{shim.pid}/exe").startswith("/memfd:criserver-python")
    with pytest.raises(OSError):  # ETXTBSY or EPERM, by kernel version
        os.open(f"/proc/{shim.pid}/exe", os.O_RDWR)


async def test_self_exe_as_the_program_is_harmless(rt: harness.Runtime) -> None:
    with_python = rt.spec(["/proc/self/exe", "-c", "print('reached')"])
    shim = await rt.create(with_python)
    try:
        await shim.start()
        await shim.wait()
    except StartError:
        pass
    assert "reached" not in rt.log("c").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonesuch"], r'exec: "nonesuch": executable file not found in \$PATH'),
        (["/no/such"], "no such file or directory"),
        (["/etc"], "is a directory"),
        (["/etc/passwd"], "permission denied"),
    ],
)
async def test_a_program_that_cannot_be_executed_fails_the_start(
    rt: harness.Runtime, args: list[str], message: str
) -> None:
    shim = await rt.create(rt.spec(args))
    with pytest.raises(StartError, match=message):
        await shim.start()
    assert (await shim.wait()).exit_code == 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"args": []}, "process.args"),
        ({"cwd": "relative"}, "process.cwd"),
        ({"user": {"uid": 1 << 31, "gid": 0}}, "process.user.uid"),
        ({"user": {"uid": (1 << 32) - 1, "gid": 0}}, "process.user.uid"),
        ({"user": {"uid": -1, "gid": 0}}, "process.user.uid"),
        ({"user": {"uid": 0, "gid": 1 << 32}}, "process.user.gid"),
        ({"user": {"uid": 0, "gid": 0, "additionalGids": [1 << 32]}}, r"additionalGids\[0\]"),
        ({"rlimits": [{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}]}, "RLIMIT_NONE"),
    ],
)
async def test_a_bad_process_is_refused_and_leaves_nothing(
    rt: harness.Runtime, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CreateError, match=message):
        spec = rt.spec(["true"])
        spec["process"] |= change
        await rt.create(spec)
    assert harness.cgroup_dirs(rt.cgroup_of("c")) == []


@pytest.mark.parametrize("path", ["/", "relative", "/a/../..", "/a//b", "/."])
async def test_a_cgroup_path_outside_of_a_subtree_is_refused(
    rt: harness.Runtime, path: str
) -> None:
    spec = rt.spec(["true"])
    spec["linux"]["cgroupsPath"] = path
    with pytest.raises(CreateError, match="cgroupsPath"):
        await rt.create(spec)


async def test_rlimits_are_applied(rt: harness.Runtime) -> None:
    limits = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    assert await sh(rt, "ulimit -Sn; ulimit -Hn", rlimits=limits) == "100\n200\n"


async def test_a_missing_working_directory_is_made(rt: harness.Runtime) -> None:
    assert await sh(rt, "pwd", cwd="/not/yet") == "/not/yet\n"


async def test_the_bundle_needs_a_readable_spec(rt: harness.Runtime) -> None:
    spec = rt.spec(["true"])
    spec["process"]["bad"] = "\ud800"
    bundle = rt.run_dir / "containers/broken"
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(spec)[:-1])
    with pytest.raises(CreateError, match=r"config\.json cannot be read"):
        await rt.spawner.spawn_shim("broken", bundle, harness.ShimOptions(None, None))


async def test_a_device_beside_the_default_ones_is_refused(rt: harness.Runtime) -> None:
    capabilities = [*bundles.DEFAULT_CAPABILITIES, "CAP_MKNOD"]
    sets = dict.fromkeys(("bounding", "effective", "permitted"), capabilities)
    output = await sh(
        rt,
        "mknod /tmp/zero c 1 5; head -c1 /tmp/zero | wc -c;"
        "mknod /tmp/kmsg c 1 11; cat /tmp/kmsg || true",
        capabilities=sets,
    )
    assert output.startswith("1\n")
    assert "Operation not permitted" in output


async def test_a_readonly_root_may_lack_what_is_mounted_on_it(rt: harness.Runtime) -> None:
    file = rt.directory / "file"
    file.write_text("bound\n")
    spec = rt.spec(["sh", "-c", "cat /etc/deep/er/file; touch /etc/x"])
    spec["root"]["readonly"] = True
    spec["mounts"].append({"destination": "/etc/deep/er/file", "type": "bind",
                           "source": str(file), "options": ["rbind", "ro"]})  # fmt: skip
    _, output = await rt.run(spec)
    assert output.startswith("bound\n")
    assert "Read-only file system" in output


@pytest.mark.parametrize(
    ("propagation", "inward", "outward"),
    [("rprivate", False, False), ("rslave", True, False), ("rshared", True, True)],
)
async def test_mount_propagation_goes_as_far_as_asked(
    rt: harness.Runtime, propagation: str, inward: bool, outward: bool
) -> None:
    volume = rt.directory / "shared volume"
    volume.mkdir()
    for name in ("host", "container"):
        (volume / name).mkdir()
    mounts.mount(str(volume), str(volume), None, mounts.MS_BIND)
    mounts.set_propagation(str(volume), mounts.MS_SHARED)
    try:
        sets = {kind: ["CAP_SYS_ADMIN"] for kind in ("bounding", "effective", "permitted")}
        script = "mount -t tmpfs t /v/container; while [ ! -e /dev/shm/go ]; do sleep 0.01; done;"
        spec = rt.spec(["sh", "-c", script + "ls /v/host"], capabilities=sets)
        spec["linux"]["rootfsPropagation"] = "rslave" if propagation == "rprivate" else propagation
        spec["mounts"].append({"destination": "/v", "type": "bind", "source": str(volume),
                               "options": ["rbind", propagation]})  # fmt: skip
        shim = await rt.start(spec)
        inside = Path(f"/proc/{shim.pid}/mountinfo")
        await harness.until(lambda: "/v/container" in inside.read_text())
        seen = (
            f"{volume}/container".replace(" ", r"\040") in Path("/proc/self/mountinfo").read_text()
        )
        assert seen is outward
        mounts.mount("t", str(volume / "host"), "tmpfs", 0)
        (volume / "host/file").write_text("")
        Path(f"/proc/{shim.pid}/root/dev/shm/go").write_text("")
        await shim.wait()
        assert ("file" in rt.output()) is inward
    finally:
        mounts.umount(str(volume))


async def test_a_privileged_containers_list_of_devices_is_made(rt: harness.Runtime) -> None:
    spec = rt.spec(["sh", "-c", "stat -c %t:%T /dev/kmsg; readlink /dev/ptmx"])
    spec["linux"]["devices"] = [
        {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o600}
        for path, major, minor in (("/dev/kmsg", 1, 11), ("/dev/ptmx", 5, 2), ("/dev/null", 1, 3))
    ]
    _, output = await rt.run(spec)
    assert output == "1:b\npts/ptmx\n"

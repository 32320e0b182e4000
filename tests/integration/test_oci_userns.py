"""User namespaces, id-mapped mounts and time namespaces, seen from inside containers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtimeshim.client import CreateError
from runtimeshim.linux import mounts, userns
from tests.integration import bundles, harness

pytestmark = pytest.mark.integration

FIRST = 200000
SIZE = 65536
MAPPINGS = [{"containerID": 0, "hostID": FIRST, "size": SIZE}]


def in_user_namespace(spec: dict[str, Any], path: str | None = None) -> dict[str, Any]:
    spec["linux"]["namespaces"].append({"type": "user"} | ({"path": path} if path else {}))
    spec["linux"] |= {"uidMappings": MAPPINGS, "gidMappings": MAPPINGS}
    return spec


async def sh(rt: harness.Runtime, script: str, **process: Any) -> str:
    record, output = await rt.run(in_user_namespace(rt.spec(["sh", "-c", script], **process)))
    assert record.exit_code == 0, output
    return output


def bind(source: Path, destination: str, *options: str, **more: Any) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source),
            "options": ["rbind", *options], **more}  # fmt: skip


async def test_root_inside_is_another_user_outside(rt: harness.Runtime) -> None:
    spec = in_user_namespace(rt.spec(["sh", "-c", "id -u; cat /proc/self/uid_map; sleep 1000"]))
    shim = await rt.start(spec)
    await harness.until(lambda: "65536" in rt.output())
    assert rt.output().split() == ["0", "0", str(FIRST), str(SIZE)]
    assert os.stat(f"/proc/{shim.pid}").st_uid == FIRST
    assert os.readlink(f"/proc/{shim.pid}/ns/user") != os.readlink("/proc/self/ns/user")


async def test_every_other_namespace_belongs_to_it(rt: harness.Runtime) -> None:
    capabilities = [*bundles.DEFAULT_CAPABILITIES, "CAP_SYS_ADMIN", "CAP_NET_ADMIN"]
    output = await sh(
        rt,
        # each needs the capability over the namespace's owner
        "hostname changed && hostname; ip link set lo up && echo net;"
        "mount -t tmpfs t /tmp && echo mnt; mount -t proc p /proc && echo pid;"
        "mkdir /tmp/q; mount -t mqueue m /tmp/q && echo ipc",
        capabilities=dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
    )
    assert output.split() == ["changed", "net", "mnt", "pid", "ipc"]


async def test_init_is_pid_1_and_has_the_default_mounts(rt: harness.Runtime) -> None:
    output = await sh(rt, "echo $$; cd /proc; ls -d [0-9]* | head -1; cat /proc/mounts")
    assert output.startswith("1\n1\n")
    for point in ("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"):
        assert f" {point} " in output


async def test_the_images_files_keep_their_owners(rt: harness.Runtime) -> None:
    os.chown(rt.layer / "tmp", 1000, 1000)
    output = await sh(
        rt, "stat -c %u:%g /etc/passwd /tmp; touch /tmp/new; chown 5:6 /tmp/new;"
        "echo x >> /etc/group;"
        "stat -c %u:%g /tmp/new /etc/group"
    )  # fmt: skip
    assert output.split() == ["0:0", "1000:1000", "5:6", "0:0"]
    made = os.stat(rt.directory / "rw-c/upper/tmp/new")
    assert (made.st_uid, made.st_gid) == (FIRST + 5, FIRST + 6)
    # The layer keeps the image's ids: containers of other maps share it.
    assert os.stat(rt.layer / "etc/passwd").st_uid == 0


async def test_devices_are_there_and_no_other_can_be_made(rt: harness.Runtime) -> None:
    spec = in_user_namespace(rt.spec([
        "sh", "-c",
        "exec 2>&1; stat -c '%n %t:%T %a %u' /dev/null /dev/zero /dev/tty /dev/fuse;"
        "head -c2 /dev/zero | wc -c; echo x > /dev/null; readlink /dev/ptmx;"
        "mknod /tmp/n c 1 3 || echo refused",
    ]))  # fmt: skip
    spec["linux"]["devices"] = [
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 7}
    ]
    _, output = await rt.run(spec)
    lines = output.splitlines()
    assert lines[:4] == ["/dev/null 1:3 666 0", "/dev/zero 1:5 666 0", "/dev/tty 5:0 666 0",
                         "/dev/fuse a:e5 640 7"]  # fmt: skip
    assert lines[4:6] == ["2", "pts/ptmx"]
    assert lines[-1] == "refused"


async def test_a_bind_from_a_directory_closed_to_it_is_mapped(rt: harness.Runtime) -> None:
    volume = rt.directory / "closed/volume"
    volume.mkdir(parents=True)
    volume.parent.chmod(0o700)
    (volume / "file").write_text("mine\n")
    os.chown(volume / "file", 33, 44)
    spec = in_user_namespace(rt.spec([
        "sh", "-c", "stat -c %u:%g /plain/file /mapped/file /idmap/file; echo > /mapped/new",
    ]))  # fmt: skip
    spec["mounts"] += [
        bind(volume, "/plain"),
        bind(volume, "/mapped", uidMappings=MAPPINGS, gidMappings=MAPPINGS),
        bind(volume, "/idmap", "idmap"),
    ]
    record, output = await rt.run(spec)
    assert record.exit_code == 0, output
    assert output.split() == ["65534:65534", "33:44", "33:44"]
    assert os.stat(volume / "new").st_uid == 0


async def test_an_overlay_of_closed_layers_keeps_their_owners(rt: harness.Runtime) -> None:
    """An image volume: layers below a directory of 0700, seen read-only."""
    layers = rt.directory / "layers"
    for name in ("top", "base"):
        (layers / name).mkdir(parents=True)
        (layers / name / name).write_text(f"{name}\n")
        os.chown(layers / name / name, 33, 44)
    layers.chmod(0o700)
    spec = in_user_namespace(rt.spec([
        "sh", "-c", "cat /volume/*; stat -c %u:%g /volume/top /volume/base; touch /volume/x || true"
    ]))  # fmt: skip
    spec["mounts"].append(
        {
            "destination": "/volume",
            "type": "overlay",
            "source": "image",
            "options": [f"lowerdir+={layers}/top", f"lowerdir+={layers}/base", "ro", "nodev"],
        }
    )
    record, output = await rt.run(spec)
    assert record.exit_code == 0, output
    assert output.splitlines()[:4] == ["base", "top", "33:44", "33:44"]
    assert "Read-only" in output


async def test_ridmap_reaches_the_mounts_below(rt: harness.Runtime) -> None:
    """A mount of the same filesystem: tmpfs, for one, has ids to map since Linux 6.3."""
    volume, other = rt.directory / "volume", rt.directory / "other"
    (volume / "below").mkdir(parents=True)
    other.mkdir()
    mounts.mount(str(other), str(volume / "below"), None, mounts.MS_BIND)
    try:
        spec = in_user_namespace(rt.spec(["stat", "-c", "%u", "/one/below", "/all/below"]))
        spec["mounts"] += [bind(volume, "/one", "idmap"), bind(volume, "/all", "ridmap")]
        _, output = await rt.run(spec)
    finally:
        mounts.umount(str(volume / "below"))
    assert output.split() == ["65534", "0"]


async def test_a_filesystem_without_idmapped_mounts_is_named(rt: harness.Runtime) -> None:
    spec = in_user_namespace(rt.spec(["true"]))
    spec["mounts"].append(bind(Path("/sys/kernel"), "/mapped", "idmap"))
    with pytest.raises(CreateError, match=r"/sys/kernel on /mapped.*cannot map the ids"):
        await rt.create(spec)


async def test_an_idmapped_mount_without_a_user_namespace(rt: harness.Runtime) -> None:
    volume = rt.directory / "volume"
    volume.mkdir()
    (volume / "file").write_text("")
    mappings = [{"containerID": 0, "hostID": 5000, "size": 10}]
    spec = rt.spec(["stat", "-c", "%u:%g", "/mapped/file"])
    spec["mounts"].append(bind(volume, "/mapped", uidMappings=mappings, gidMappings=mappings))
    _, output = await rt.run(spec)
    assert output == "5000:5000\n"


async def test_a_user_namespace_given_by_path_is_joined(rt: harness.Runtime) -> None:
    fd = userns.create(MAPPINGS, MAPPINGS)
    try:
        path = f"/proc/{os.getpid()}/fd/{fd}"
        spec = in_user_namespace(rt.spec(["sh", "-c", "readlink /proc/self/ns/user; id -u"]), path)
        _, output = await rt.run(spec)
        assert output.split() == [os.readlink(f"/proc/self/fd/{fd}"), "0"]
    finally:
        os.close(fd)


async def test_capabilities_masks_and_limits_hold_inside(rt: harness.Runtime) -> None:
    spec = in_user_namespace(rt.spec([
        "sh", "-c", "exec 2>&1; grep Cap /proc/self/status; cat /proc/keys; "
        "echo 1 > /proc/sys/kernel/domainname;"
        f"cat {harness.cgroup_file('pids/pids.max', 'pids.max')};"
        "cut -d: -f3 /proc/self/cgroup | sort -u; true",
    ]))  # fmt: skip
    spec["linux"]["resources"] = {"pids": {"limit": 44}}
    _, output = await rt.run(spec)
    assert "CapBnd:\t00000000000404eb" in output
    assert "CapInh:\t0000000000000000" in output
    assert "Read-only file system" in output
    assert output.endswith("44\n/\n")


async def test_a_pids_limit_of_one_is_enough_to_start(rt: harness.Runtime) -> None:
    spec = in_user_namespace(rt.spec(["echo", "up"]))
    spec["linux"]["resources"] = {"pids": {"limit": 1}}
    _, output = await rt.run(spec)
    assert output == "up\n"


async def test_a_user_inside_can_reopen_its_stdout(rt: harness.Runtime) -> None:
    assert await sh(rt, "echo again > /dev/stdout", user={"uid": 1000, "gid": 1000}) == "again\n"


async def test_sysctls_of_its_own_namespaces(rt: harness.Runtime) -> None:
    spec = in_user_namespace(rt.spec(["cat", "/proc/sys/net/ipv4/ip_forward",
                                      "/proc/sys/kernel/shm_rmid_forced"]))  # fmt: skip
    spec["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}
    _, output = await rt.run(spec)
    assert output == "1\n1\n"


async def test_a_terminal_inside(rt: harness.Runtime) -> None:
    spec = in_user_namespace(rt.spec(["sh", "-c", "tty; stat -c %u /dev/console $(tty)"]))
    spec["process"]["terminal"] = True
    _, output = await rt.run(spec)
    assert output.split() == ["/dev/pts/0", "0", "0"]


async def test_exec_joins_it_as_its_root(rt: harness.Runtime) -> None:
    shim = await rt.start(in_user_namespace(rt.spec(["sleep", "1000"])))
    process = rt.spec(
        ["sh", "-c", "id -u; readlink /proc/self/ns/user; grep CapInh /proc/self/status"]
    )
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    started = await shim.exec(process["process"], (null, write, write))
    os.close(write)
    os.close(null)
    assert await started.wait() == 0
    output = os.read(read, 1000).decode().split()
    os.close(read)
    assert output[:2] == ["0", os.readlink(f"/proc/{shim.pid}/ns/user")]
    assert output[-1] == "0000000000000000"


async def test_what_is_not_mapped_is_refused(rt: harness.Runtime) -> None:
    spec = in_user_namespace(rt.spec(["true"], user={"uid": 70000, "gid": 0}))
    with pytest.raises(CreateError, match="Invalid argument"):
        await rt.create(spec)
    assert harness.cgroup_dirs(rt.cgroup_of("c")) == []


async def test_a_bundles_own_root_without_an_overlay(rt: harness.Runtime) -> None:
    bundle = bundles.write(rt.run_dir / "containers/own", in_user_namespace(rt.spec(
        ["sh", "-c", "id -u; touch /made"], name="own",
    )))  # fmt: skip
    (bundle / "rootfs").rmdir()
    bundles.make_layer(bundle / "rootfs")
    for directory, names, files in os.walk(bundle / "rootfs"):
        for name in ["", *names, *files]:
            os.chown(os.path.join(directory, name), FIRST, FIRST, follow_symlinks=False)
    shim = await rt.spawner.spawn_shim("own", bundle, harness.ShimOptions(None, rt.log("own")))
    rt.shims.append(shim)
    await shim.start()
    assert (await shim.wait()).exit_code == 0
    assert os.stat(bundle / "rootfs/made").st_uid == FIRST


async def test_time_offsets_move_the_containers_clocks(rt: harness.Runtime) -> None:
    spec = rt.spec(["cat", "/proc/uptime", "/proc/self/timens_offsets"])
    spec["linux"]["namespaces"].append({"type": "time"})
    spec["linux"]["timeOffsets"] = {
        "boottime": {"secs": 1000000000, "nanosecs": 5}, "monotonic": {"secs": 7200},
    }  # fmt: skip
    _, output = await rt.run(spec)
    assert float(output.split()[0]) > 1000000000
    assert output.split()[2:] == ["monotonic", "7200", "0", "boottime", "1000000000", "5"]


async def test_a_time_namespace_of_another_is_joined_and_ours_is_left_alone(
    rt: harness.Runtime,
) -> None:
    first = rt.spec(["sleep", "1000"], name="first")
    first["linux"]["namespaces"].append({"type": "time"})
    first["linux"]["timeOffsets"] = {"boottime": {"secs": 1000000000}}
    shim = await rt.start(first, "first")
    second = rt.spec(["cat", "/proc/uptime"], name="second")
    second["linux"]["namespaces"].append({"type": "time", "path": f"/proc/{shim.pid}/ns/time"})
    _, output = await rt.run(second, "second")
    assert float(output.split()[0]) > 1000000000
    _, output = await rt.run(rt.spec(["cat", "/proc/uptime"], name="third"), "third")
    assert float(output.split()[0]) < 1000000000

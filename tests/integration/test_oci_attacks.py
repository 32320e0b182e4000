"""Attacks that broke other runtimes (docs of each: its CVE), tried on ours from inside."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from runtimeshim.client import CreateError, Shim, ShimError, StartError
from runtimeshim.linux.capabilities import KNOWN
from runtimeshim.oci.default_spec import default_spec
from runtimeshim.oci.process import MAX_PASSWD
from tests.integration import bundles, harness
from tests.integration.adoption import shim_of

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def rt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[harness.Runtime]:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "hunter2")
    async with harness.runtime(tmp_path) as runtime:
        yield runtime


def privileged(spec: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in KNOWN if name != "CAP_SYS_RESOURCE"]
    spec["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), names)
    return spec


def with_python(spec: dict[str, Any]) -> dict[str, Any]:
    for path in ("/usr", "/lib", "/lib64"):
        spec["mounts"].append(bind(Path(path), path, "ro"))
    return spec


def bind(source: Path, destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source),
            "options": ["rbind", *options]}  # fmt: skip


async def start_exec(
    rt: harness.Runtime, shim: Shim, args: list[str], **process: Any
) -> tuple[int, str]:
    """Run a process in a container; returns its exit code and output."""
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        started = await shim.exec(rt.spec(args, **process)["process"], (null, write, write))
        code = await started.wait()
    finally:
        os.close(write)
        os.close(null)
        with os.fdopen(read, encoding="utf-8", errors="replace") as pipe:
            output = pipe.read()
    return code, output


def interpreter_hash() -> str:
    return hashlib.sha256(Path(os.path.realpath(sys.executable)).read_bytes()).hexdigest()


# CVE-2019-5736: the runtime's own executable, through /proc/self/exe


@pytest.mark.parametrize("how", ["program", "script"])
async def test_the_runtimes_executable_is_of_no_use_as_a_program(
    rt: harness.Runtime, how: str
) -> None:
    before = interpreter_hash()
    (rt.layer / "bin/evil").write_text("#!/proc/self/exe\nprint('reached')\n")
    (rt.layer / "bin/evil").chmod(0o755)
    args = {"program": ["/proc/self/exe", "-c", "print('reached')"], "script": ["/bin/evil"]}[how]
    shim = await rt.create(rt.spec(args))
    try:
        await shim.start()
        await shim.wait()
    except StartError:
        pass
    assert "reached" not in rt.log("c").read_text()
    other = await rt.start(rt.spec(["sleep", "1000"], name="other"), "other")
    try:
        _, output = await start_exec(rt, other, args)
        assert "reached" not in output
    except ShimError:
        pass
    assert interpreter_hash() == before


async def test_a_starting_process_cannot_be_written_to_through_its_exe(
    rt: harness.Runtime,
) -> None:
    """With every capability, and while execs come and go: what is opened is the sealed copy."""
    before = interpreter_hash()
    script = (
        "echo up; while [ ! -e /tmp/stop ]; do for p in /proc/[0-9]*; do"
        " case $(readlink $p/exe) in *memfd*) echo seen; (echo x > $p/exe) && echo WRITTEN;; esac;"
        " done; done"
    )
    shim = await rt.start(privileged(rt.spec(["sh", "-c", script])))
    waiting = rt.spec(["sleep", "1000"], name="second")
    for namespace in waiting["linux"]["namespaces"]:
        if namespace["type"] == "pid":
            namespace["path"] = f"/proc/{shim.pid}/ns/pid"
    second = await rt.create(waiting, "second")  # held before execve, for the other to find it
    await harness.until(lambda: "seen" in rt.output())
    for _ in range(5):
        await start_exec(rt, shim, ["true"])
    Path(f"/proc/{shim.pid}/root/tmp/stop").write_text("")
    await shim.wait()
    await second.kill(9)
    assert "WRITTEN" not in rt.output()
    assert interpreter_hash() == before


async def test_the_interpreter_of_a_waiting_init_is_sealed_for_good(rt: harness.Runtime) -> None:
    """While it runs the kernel lets nobody write to it; the seals hold after that too."""
    shim = await rt.create(rt.spec(["true"]))
    fd = os.open(f"/proc/{shim.pid}/exe", os.O_RDONLY)
    try:
        wanted = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & wanted == wanted
    finally:
        os.close(fd)


# CVE-2024-21626: a leaked fd of the host as working directory


@pytest.mark.parametrize("path", ["/proc/self/fd/{}", "/proc/self/cwd/../fd/{}", "/link"])
async def test_no_fd_is_a_working_directory_of_create_or_exec(
    rt: harness.Runtime, path: str
) -> None:
    (rt.layer / "link").symlink_to("/proc/self/fd/8")
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    for number in range(3, 30):
        cwd = path.format(number)
        with pytest.raises(ShimError, match=r"process\.cwd"):
            await start_exec(rt, shim, ["pwd"], cwd=cwd)
        name = f"n{number}"
        with pytest.raises(CreateError):
            await rt.create(rt.spec(["pwd"], name=name, cwd=cwd), name)
        if "{}" not in path:
            return


def test_a_working_directory_outside_of_the_root_is_refused(tmp_path: Path) -> None:
    """Whatever brought us there: the last check before execve sees it."""
    code = (
        "import os, sys; from runtimeshim.oci import process; os.chroot(sys.argv[1]);"
        "process.check_directory('/proc/self/fd/3')"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd="/", capture_output=True)
    assert ran.returncode == 1
    assert b"outside of the container's root" in ran.stderr


async def test_an_exec_holds_no_fd_beside_stdio(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    _, output = await start_exec(rt, shim, ["ls", "/proc/self/fd"])
    assert output.split() == ["0", "1", "2", "3"]  # 3 is the directory that ls reads


# CVE-2016-9962: a process that is not the container's yet, seen from a shared PID namespace

SPY = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def look(pid):
    for name in ("environ", "mem", "maps", "exe", "cwd", "root", "fd", "auxv", "ns/net"):
        path = f"/proc/{pid}/{name}"
        try:
            if name == "fd":
                os.readlink(f"{path}/{os.listdir(path)[0]}")
            elif name in ("exe", "cwd", "root", "ns/net"):
                os.readlink(path)
            else:
                with open(path, "rb") as file:
                    if name == "mem":
                        continue
                    if not file.read(1):
                        continue
        except OSError:
            continue
        print("OPEN", name, flush=True)
    if libc.ptrace(16, pid, 0, 0) == 0:  # PTRACE_ATTACH
        print("TRACED", flush=True)
print("up", flush=True)
own = os.getpid()
for line in sys.stdin:
    for name in line.split()[1:] or os.listdir("/proc"):
        if name.isdigit() and int(name) != own:
            look(int(name))
    print("looked", flush=True)
"""


async def test_a_waiting_init_is_closed_to_its_neighbours(rt: harness.Runtime) -> None:
    """Neighbours have the same user and capabilities, so only its not being dumpable holds."""
    spec = with_python(rt.spec(["/usr/bin/python3", "-I", "-S", "-c", SPY], name="spy"))
    spy = await rt.start(spec, "spy", stdin=True)
    await harness.until(lambda: rt.output("spy") == "up\n")
    neighbour = rt.spec(["sleep", "1000"], name="victim")
    for namespace in neighbour["linux"]["namespaces"]:
        if namespace["type"] == "pid":
            namespace["path"] = f"/proc/{spy.pid}/ns/pid"
    victim = await rt.create(neighbour, "victim")
    read, write = os.pipe()
    await spy.attach(stdin=read, stdout=None, stderr=None)
    os.close(read)
    os.write(write, b"look\n")
    await harness.until(lambda: "looked" in rt.output("spy"))
    assert rt.output("spy") == "up\nlooked\n"
    await victim.start()  # the same look at what is the container's own by now sees something
    await harness.until(
        lambda: Path(f"/proc/{victim.pid}/cmdline").read_bytes() == b"sleep\0001000\0"
    )
    os.write(write, b"look\n")
    await harness.until(lambda: rt.output("spy").count("looked") == 2)
    assert "OPEN environ" in rt.output("spy")
    os.close(write)
    await victim.kill(9)


async def test_nothing_of_the_daemons_environment_is_in_a_waiting_init(
    rt: harness.Runtime,
) -> None:
    shim = await rt.create(rt.spec(["env"]))
    assert b"hunter2" not in Path(f"/proc/{shim.pid}/environ").read_bytes()
    await shim.start()
    await shim.wait()
    assert "hunter2" not in rt.output()


# CVE-2025-31133, CVE-2025-52565: what a mask or a console is made of


def dev_of_the_image(rt: harness.Runtime, spec: dict[str, Any]) -> Path:
    """Replace /dev by a volume whose content an attacker chose."""
    dev = rt.directory / "dev"
    (dev / "pts").mkdir(parents=True)
    spec["mounts"] = [
        mount for mount in spec["mounts"] if not mount["destination"].startswith("/dev")
    ]
    spec["mounts"].append(bind(dev, "/dev"))
    return dev


async def test_a_mask_is_the_null_device_whatever_dev_null_is(rt: harness.Runtime) -> None:
    spec = rt.spec(["stat", "-c", "%t:%T", "/proc/keys"])
    (dev_of_the_image(rt, spec) / "null").symlink_to("/proc/sys/kernel/core_pattern")
    _, output = await rt.run(spec)
    assert output == "1:3\n"


async def test_a_console_that_is_a_link_is_refused(rt: harness.Runtime) -> None:
    spec = rt.spec(["cat", "/proc/sysrq-trigger"], terminal=True)
    dev = dev_of_the_image(rt, spec)
    (dev / "console").symlink_to("/proc/sysrq-trigger")
    spec["mounts"].append(bundles.mount("/dev/pts", "devpts", "newinstance", "ptmxmode=0666"))
    with pytest.raises(CreateError, match="symbolic links"):
        await rt.create(spec)


async def test_a_terminal_multiplexer_that_is_another_file_is_refused(rt: harness.Runtime) -> None:
    spec = rt.spec(["true"], terminal=True)
    (dev_of_the_image(rt, spec) / "pts/ptmx").write_text("")
    with pytest.raises(CreateError, match="is not the terminal multiplexer"):
        await rt.create(spec)


# CVE-2019-16884, CVE-2025-52881: writes to procfs that go elsewhere


async def test_procfs_cannot_be_replaced_by_a_volume(rt: harness.Runtime) -> None:
    fake = rt.directory / "fake/self/attr"
    fake.mkdir(parents=True)
    spec = rt.spec(["true"])
    spec["mounts"].append(bind(rt.directory / "fake", "/proc"))
    with pytest.raises(CreateError, match="only procfs can be mounted on /proc"):
        await rt.create(spec)


async def test_a_sysctl_is_not_redirected_by_a_volume(rt: harness.Runtime) -> None:
    """A link of the image brings the volume over /proc/sys: the value still goes to the kernel."""
    fake = rt.directory / "fake"
    (fake / "net/ipv4").mkdir(parents=True)
    (fake / "net/ipv4/ip_forward").write_text("untouched\n")
    (rt.layer / "link").symlink_to("/proc/sys")
    spec = rt.spec(["sh", "-c", "cat /proc/sys/net/ipv4/ip_forward; mkdir /tmp/p;"
                    "mount -t proc p /tmp/p && cat /tmp/p/sys/net/ipv4/ip_forward"])  # fmt: skip
    spec["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    spec["linux"]["maskedPaths"] = spec["linux"]["readonlyPaths"] = []
    spec["mounts"].append(bind(fake, "/link"))
    _, output = await rt.run(privileged(spec))
    assert output == "untouched\n1\n"


async def test_an_exec_label_is_not_written_into_the_containers_procfs(
    rt: harness.Runtime,
) -> None:
    """The attribute is opened on the host's procfs, so what the image has there gets nothing."""
    fake = rt.directory / "fake"
    fake.write_text("untouched")
    (rt.layer / "link").symlink_to("/proc/self/attr/exec")
    spec = rt.spec(["true"], selinuxLabel="system_u:system_r:container_t:s0")
    spec["mounts"].append(bind(fake, "/link"))
    with pytest.raises(CreateError, match="the kernel refuses the label"):
        await rt.create(spec)
    assert fake.read_text() == "untouched"


# A link where a directory is expected


@pytest.mark.parametrize("mounted", [True, False])
async def test_dev_as_a_link_reaches_nothing_outside(rt: harness.Runtime, mounted: bool) -> None:
    victim = rt.directory / "victim"
    victim.mkdir()
    (rt.layer / "dev").rmdir()
    (rt.layer / "dev").symlink_to(victim)
    spec = rt.spec(["true"])
    spec["linux"]["devices"] = [{"path": "/dev/extra", "type": "c", "major": 1, "minor": 3}]
    if not mounted:  # nothing of ours lies over what the link leads to
        spec["mounts"] = [each for each in spec["mounts"] if "/dev" not in each["destination"]]
    try:
        await rt.run(spec)
    except CreateError:
        pass  # refused is as good as contained
    assert list(victim.iterdir()) == []


# CVE-2022-29162, CVE-2024-40635, CVE-2022-36109: credentials


async def test_an_exec_has_no_inheritable_capabilities(rt: harness.Runtime) -> None:
    kinds = ("bounding", "effective", "permitted", "inheritable")
    names = {kind: ["CAP_KILL", "CAP_CHOWN"] for kind in kinds}
    shim = await rt.start(rt.spec(["sleep", "1000"], capabilities=names))
    ask = ["grep", "-E", "CapInh|CapAmb", "/proc/self/status"]
    _, output = await start_exec(rt, shim, ask, capabilities=names)
    assert output.split()[1::2] == ["0000000000000000"] * 2
    text = Path(f"/proc/{shim.pid}/status").read_text()
    assert "CapInh:\t0000000000000000" in text


WRAPPING = [1 << 31, (1 << 32) - 1, 1 << 32, -1]


@pytest.mark.parametrize("wrapping", WRAPPING)
async def test_a_container_with_an_id_that_wraps_is_refused(
    rt: harness.Runtime, wrapping: int
) -> None:
    users = (
        ({"uid": wrapping, "gid": 0}, "uid"),
        ({"uid": 0, "gid": wrapping}, "gid"),
        ({"uid": 0, "gid": 0, "additionalGids": [wrapping]}, r"additionalGids\[0\]"),
    )
    for number, (user, field) in enumerate(users):
        with pytest.raises(CreateError, match=rf"process\.user\.{field}"):
            await rt.create(rt.spec(["id", "-u"], name=f"n{number}", user=user), f"n{number}")


@pytest.mark.parametrize("uid", WRAPPING)
async def test_an_exec_with_an_id_that_wraps_is_refused(rt: harness.Runtime, uid: int) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    with pytest.raises(ShimError, match=r"process\.user\.uid"):
        await start_exec(rt, shim, ["id", "-u"], user={"uid": uid, "gid": 0})
    with pytest.raises(ShimError, match=r"process\.user\.gid"):
        await start_exec(rt, shim, ["id", "-u"], user={"uid": 0, "gid": uid})


async def test_the_primary_group_cannot_be_given_up(rt: harness.Runtime) -> None:
    ask = ["grep", "Groups", "/proc/self/status"]
    user = {"uid": 1000, "gid": 1000, "additionalGids": [7]}
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    _, output = await start_exec(rt, shim, ask, user=user)
    assert output.split() == ["Groups:", "7", "1000"]
    _, output = await rt.run(rt.spec(ask, name="second", user={"uid": 0, "gid": 5}), "second")
    assert output.split() == ["Groups:", "5"]


# A hostile /etc/passwd


async def test_a_passwd_that_is_no_file_of_sense_gives_a_home(rt: harness.Runtime) -> None:
    passwd = rt.layer / "etc/passwd"

    def huge() -> None:
        with passwd.open("wb") as file:
            file.truncate(1 << 40)

    makers = (
        lambda: os.mkfifo(passwd),
        lambda: passwd.mkdir(),
        lambda: passwd.symlink_to("/dev/zero"),
        lambda: passwd.symlink_to("/proc/kmsg"),
        lambda: passwd.symlink_to("passwd"),
        lambda: passwd.write_bytes(b"web:x:1000:1000:\xff\n" * 1000),
        huge,
    )
    for number, make in enumerate(makers):
        if passwd.is_dir():
            passwd.rmdir()
        else:
            passwd.unlink()
        make()
        name = f"n{number}"
        spec = rt.spec(["sh", "-c", "echo $HOME"], name=name, user={"uid": 1000, "gid": 0})
        _, output = await rt.run(spec, name)
        assert output == "/\n"


WEB = "web:x:1000:0::/evil:"


async def test_a_passwd_is_read_as_far_as_its_limit(rt: harness.Runtime) -> None:
    (rt.layer / "etc/passwd").write_text("#" * MAX_PASSWD + f"\n{WEB}\n")
    _, output = await rt.run(rt.spec(["sh", "-c", "echo $HOME"], user={"uid": 1000, "gid": 0}))
    assert output == "/\n"


async def test_a_passwd_that_is_a_file_of_the_kernels_is_not_read(rt: harness.Runtime) -> None:
    """Reading can take away what is there (/proc/kmsg), or never end."""
    (rt.layer / "etc/passwd").unlink()
    (rt.layer / "etc/passwd").symlink_to("/proc/sys/kernel/domainname")
    spec = rt.spec(["sh", "-c", "cat /etc/passwd; echo $HOME"], user={"uid": 1000, "gid": 0})
    spec["domainname"] = WEB
    _, output = await rt.run(spec)
    assert output == f"{WEB}\n/\n"


async def test_a_passwd_link_to_a_file_of_the_host_stays_inside(rt: harness.Runtime) -> None:
    outside = rt.directory / "passwd"
    outside.write_text("web:x:1000:1000:web:/outside:/bin/sh\n")
    (rt.layer / "etc/passwd").unlink()
    (rt.layer / "etc/passwd").symlink_to(outside)
    spec = rt.spec(["sh", "-c", "echo $HOME"], user={"uid": 1000, "gid": 0})
    _, output = await rt.run(spec)
    assert output == "/\n"


async def test_a_newline_in_the_environment_makes_no_line_of_passwd(rt: harness.Runtime) -> None:
    value = "/tmp\nevil:x:0:0::/:/bin/sh"
    spec = rt.spec(["sh", "-c", "cat /etc/passwd; echo \"$HOME\"; id -u"],
                   env=["PATH=/bin", f"HOME={value}"], user={"uid": 1000, "gid": 0})  # fmt: skip
    _, output = await rt.run(spec)
    assert output == (rt.layer / "etc/passwd").read_text() + value + "\n1000\n"


# Sockets


async def test_sockets_have_names_that_only_root_can_reach(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    pids = [rt.spawner.pid, shim_of(shim.pid)]
    inodes = {target for pid in pids for target in _sockets(pid)}
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    own = [line for line in lines if f"socket:[{line[6]}]" in inodes]
    assert own
    assert not [line for line in own if len(line) > 7 and line[7].startswith("@")]
    for path in (rt.run_dir / "spawner.sock", rt.run_dir / "containers/c/shim.sock"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert (rt.run_dir / "containers/c").stat().st_mode & 0o777 == 0o700


def _sockets(pid: int) -> list[str]:
    directory = f"/proc/{pid}/fd"
    targets = (os.readlink(f"{directory}/{fd}") for fd in os.listdir(directory))
    return [target for target in targets if target.startswith("socket:")]


async def test_powercap_is_masked_by_default() -> None:
    assert "/sys/devices/virtual/powercap" in json.dumps(default_spec("1.3.0"))

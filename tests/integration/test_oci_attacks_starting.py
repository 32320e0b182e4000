"""Attacks on what is not the container's yet: the interpreter that becomes it, fds, cwd.

EXECUTOR.md, section 2, "Executable, fds, cwd"; the rest is in test_oci_attacks.py.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import hashlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtimeshim.cli import sealed
from runtimeshim.client import CreateError, Shim, ShimError
from tests.integration import harness, test_oci_attacks, tiny_elf
from tests.integration.oci_cli import CLI, installed_apart

pytestmark = pytest.mark.integration


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CLI]:
    with installed_apart(tmp_path) as program:
        made = CLI(tmp_path, program)
        yield made
        made.close()


def interpreter_hash(cli: CLI) -> str:
    return hashlib.sha256((cli.program.parent / "python3").read_bytes()).hexdigest()


# CVE-2019-5736 as it was published: the image's dynamic linker gets the runtime as its program

OVERWRITE = (
    "i=0; while [ $i -lt 20 ]; do i=$((i+1));"
    " (echo x > /proc/self/fd/3) 2>/dev/null && echo WRITTEN && exit; /bin/sleep 0.05; done;"
    " [ -e /proc/self/fd/3 ] && echo tried"
)


REMOUNT = (
    "mkdir -p /tmp; : > /tmp/exe; mount -o remount,bind,rw /proc/self/fd/3;"
    " mount --bind /proc/self/fd/3 /tmp/exe && mount -o remount,bind,rw /tmp/exe"
    " && (echo x > /tmp/exe) && echo WRITTEN; "
)


def with_loader(cli: CLI, script: str = OVERWRITE) -> None:
    loader = cli.layer / tiny_elf.LOADERS[tiny_elf.machine()]
    loader.parent.mkdir()
    loader.write_bytes(tiny_elf.open_self_and_run(script))
    loader.chmod(0o755)
    (cli.layer / "bin/script").write_text("#!/proc/self/exe\n")
    (cli.layer / "bin/script").chmod(0o755)


def exec_detached(cli: CLI, program: str) -> Path:
    """Start a program in container "c"; returns the file that gets its output."""
    output = cli.directory / "exec.out"
    with output.open("wb") as out:
        command = cli.command("exec", "-d", "c", program)
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    return output


@pytest.mark.parametrize("program", ["/proc/self/exe", "/bin/script"])
async def test_an_images_dynamic_linker_cannot_write_to_the_runtime_of_run(
    cli: CLI, program: str
) -> None:
    before = interpreter_hash(cli)
    with_loader(cli)
    output = cli.launch(cli.bundle([program]), "c", "run", "-d")  # nobody of ours stays behind
    await harness.until(lambda: output.read_text() != "")
    assert output.read_text() == "tried\n"
    assert interpreter_hash(cli) == before


@pytest.mark.parametrize("program", ["/proc/self/exe", "/bin/script"])
async def test_an_images_dynamic_linker_cannot_write_to_the_runtime_of_exec(
    cli: CLI, program: str
) -> None:
    before = interpreter_hash(cli)
    with_loader(cli)
    cli.started(["/bin/sleep", "1000"])
    output = exec_detached(cli, program)
    await harness.until(lambda: output.read_text() != "")
    assert output.read_text() == "tried\n"
    assert interpreter_hash(cli) == before


async def test_the_mount_of_the_interpreter_cannot_be_made_writable(cli: CLI) -> None:
    """By root with all capabilities: the mount is not in the container's mount namespace."""
    before = interpreter_hash(cli)
    with_loader(cli, f"( {REMOUNT} ) 2>/dev/null; {OVERWRITE}")
    bundle = cli.write(test_oci_attacks.privileged(cli.spec(["/proc/self/exe"])))
    output = cli.launch(bundle, "c", "run", "-d")
    await harness.until(lambda: output.read_text() != "")
    assert output.read_text() == "tried\n"
    assert interpreter_hash(cli) == before


async def test_a_volume_with_the_mount_of_the_interpreter_in_it_stays_read_only(cli: CLI) -> None:
    """Even for root with all capabilities, who can remount what a volume has taken along."""
    before = interpreter_hash(cli)
    cli.ok("run", "-b", cli.bundle(["true"]), "first")  # it is mounted then
    mounted = f"/volume{sealed.INTERPRETERS.removeprefix('/run')}{cli.program.parent}"
    script = (
        f"cd {mounted} && exec 3< python3; (mount -o remount,rw {mounted};"
        f" mount -o remount,bind,rw {mounted}) 2>/dev/null; {OVERWRITE}"
    )
    spec = test_oci_attacks.privileged(cli.spec(["sh", "-c", script]))
    spec["mounts"].append(test_oci_attacks.bind(Path("/run"), "/volume", "rbind"))
    output = cli.launch(cli.write(spec), "c", "run", "-d")
    await harness.until(lambda: output.read_text() != "")
    assert output.read_text() == "tried\n"
    assert interpreter_hash(cli) == before


def test_without_a_mount_the_interpreter_is_a_sealed_copy(cli: CLI) -> None:
    bundle = cli.bundle(["sleep", "1000"])
    readonly = 'mount -t tmpfs -o ro none /run/runtimeshim && exec "$@"'
    create = cli.command("create", "-b", bundle, "c")
    subprocess.run(["unshare", "-m", "sh", "-c", readonly, "sh", *create], check=True)
    fd = os.open(f"/proc/{cli.state()['pid']}/exe", os.O_RDONLY)
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & sealed.SEALS == sealed.SEALS
    os.close(fd)


# CVE-2024-21626


@pytest.mark.parametrize("first", [3, 27, 52, 77])
async def test_no_fd_number_is_a_working_directory(rt: harness.Runtime, first: int) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    for number in range(first, min(first + 25, 101)):
        cwd, name = f"/proc/self/fd/{number}", f"n{number}"
        with pytest.raises(ShimError, match=r"process\.cwd"):
            await test_oci_attacks.start_exec(rt, shim, ["pwd"], cwd=cwd)
        with pytest.raises(CreateError):
            await rt.create(rt.spec(["pwd"], name=name, cwd=cwd), name)


# CVE-2016-9962 for exec: it enters a PID namespace where others already look


async def test_a_starting_exec_is_closed_to_its_neighbours(rt: harness.Runtime) -> None:
    """It has the container's own rights by then, and is held at its execve: still it is closed."""
    python = ["/usr/bin/python3", "-I", "-S", "-c", test_oci_attacks.SPY]
    spec = test_oci_attacks.with_python(rt.spec(python, name="spy"))
    spy = await rt.start(spec, "spy", stdin=True)
    read, write = os.pipe()
    await spy.attach(stdin=read)
    os.close(read)
    await harness.until(lambda: rt.output("spy") == "up\n")
    with listening(rt.directory / "listener") as listener:
        victim = await rt.create(beside(rt, spy, rt.directory / "listener"), "victim")
        starting = asyncio.create_task(victim.start())
        (await held_at_execve(listener)).let_go()
        await starting
        executing = asyncio.create_task(test_oci_attacks.start_exec(rt, victim, ["true"]))
        held = await held_at_execve(listener)
        os.write(write, f"look {pid_inside(held.pid)}\n".encode())
        await harness.until(lambda: "looked" in rt.output("spy"))
        assert rt.output("spy") == "up\nlooked\n"
        held.let_go()
        assert await executing == (0, "")
    os.close(write)
    await victim.kill(9)


def beside(rt: harness.Runtime, spy: Shim, listener: Path) -> dict[str, Any]:
    """Return a container in the spy's PID namespace whose execve(2) waits for the listener."""
    spec = rt.spec(["sleep", "1000"], name="victim")
    for namespace in spec["linux"]["namespaces"]:
        if namespace["type"] == "pid":
            namespace["path"] = f"/proc/{spy.pid}/ns/pid"
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": str(listener),
        "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_NOTIFY"}],
    }
    return spec


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen on a path that may be longer than an address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        directory = os.open(path.parent, os.O_PATH)
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)
        listener.listen()
        yield listener


class Held:
    """A process in a system call that its seccomp filter has told of (man 2 seccomp_unotify)."""

    def __init__(self, pid: int, notifications: int) -> None:
        self.pid = pid
        self._notifications = notifications

    def let_go(self) -> None:
        """Let the system call go on."""
        libc = ctypes.CDLL(None, use_errno=True)
        request = ctypes.create_string_buffer(80)  # struct seccomp_notif
        assert libc.ioctl(self._notifications, ctypes.c_ulong(0xC0502100), request) == 0
        (identity,) = struct.unpack_from("=Q", request)
        answer = ctypes.create_string_buffer(struct.pack("=QqiI", identity, 0, 0, 1))
        assert libc.ioctl(self._notifications, ctypes.c_ulong(0xC0182101), answer) == 0
        os.close(self._notifications)


async def held_at_execve(listener: socket.socket) -> Held:
    """Wait for the next process that is about to execve."""
    connection, _ = await asyncio.to_thread(listener.accept)
    with connection:
        message, fds, _, _ = socket.recv_fds(connection, 65536, 1)
    os.set_inheritable(fds[0], False)
    select.select([fds[0]], [], [], 10)
    return Held(json.loads(message)["pid"], fds[0])


def pid_inside(pid: int) -> int:
    """Return a process's pid in its own PID namespace (man 5 proc, NSpid)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (found,) = [line for line in lines if line.startswith("NSpid:")]
    return int(found.split()[-1])


# CVE-2025-31133: what the mask of a file is made of


@pytest.mark.parametrize("null", ["file", "link", "another device"])
def test_a_null_device_that_is_another_file_masks_nothing(tmp_path: Path, null: str) -> None:
    """On a host whose /dev an attacker has prepared: in a mount namespace of this test."""
    fake = tmp_path / "fake"
    if null == "link":
        command = f"mount -t tmpfs t /dev && ln -s {fake} /dev/null"
    elif null == "file":
        command = f"mount -t tmpfs t /dev && : > /dev/null && : > {fake}"
    else:
        command = "mount -t tmpfs t /dev && mknod /dev/null c 1 5"
    code = "from runtimeshim.oci import rootfs; rootfs._open_null()"
    argv = ["unshare", "--mount", "sh", "-c", f'{command} && exec "$@"', "sh"]
    ran = subprocess.run(
        [*argv, sys.executable, "-c", code], capture_output=True, stdin=subprocess.PIPE
    )
    assert ran.returncode == 1
    assert b"is not the null device" in ran.stderr

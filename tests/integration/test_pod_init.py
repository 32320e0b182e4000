"""The shared PID namespace and the program that is its pid 1."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from api.cri import api_pb2 as cri
from podsandbox import pins
from runtimeshim.linux.cgroups import units
from tests.integration.sandboxes import World, new_world, pod_config, start

WAIT_SECONDS = 10.0


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    async with new_world() as made:
        yield made


def shared() -> cri.PodSandboxConfig:
    config = pod_config()
    config.linux.security_context.namespace_options.pid = cri.POD
    return config


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def in_pod(pid_namespace: str, script: str) -> subprocess.Popen[str]:
    """Start a shell in the PID namespace, with a /proc of it."""
    script = f"mount -t proc proc /proc; {script}"
    return start("nsenter", f"--pid={pid_namespace}", "unshare", "--mount", "sh", "-c", script)


def wait_until(condition, what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


async def test_it_holds_nothing_and_may_do_nothing(world: World) -> None:
    runtime = world.runtime(await world.create(shared()))
    pid = runtime.init_pid
    assert pid is not None
    of_init = status(pid)
    assert of_init["NSpid"].split()[-1] == "1"
    assert set(of_init["Uid"].split() + of_init["Gid"].split()) == {"65535"}
    assert of_init["Groups"] == ""
    assert {int(of_init[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert of_init["NoNewPrivs"] == "1"
    assert int(of_init["SigIgn"], 16) == 1 << (signal.SIGCHLD - 1)
    assert int(of_init["SigBlk"], 16) == int(of_init["SigCgt"], 16) == 0
    assert os.listdir(f"/proc/{pid}/fd") == []
    assert os.listdir(f"/proc/{pid}/root") == []
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"pod-init\0"
    assert os.getsid(pid) == pid
    for kind in ("net", "ipc", "uts", "pid"):
        pinned = runtime.namespaces[{"net": "network"}.get(kind, kind)]
        assert os.stat(f"/proc/{pid}/ns/{kind}").st_ino == os.stat(pinned).st_ino
    parent = units.directory(runtime.cgroup_parent)
    assert f"{parent}/" in Path(f"/proc/{pid}/cgroup").read_text()


async def test_its_program_is_sealed_and_not_the_interpreter(world: World) -> None:
    interpreter = Path(sys.executable).resolve()
    before = hashlib.sha256(interpreter.read_bytes()).digest()
    runtime = world.runtime(await world.create(shared()))
    exe = f"/proc/{runtime.init_pid}/exe"
    assert os.readlink(exe).startswith("/memfd:pod-init")
    assert os.stat(exe).st_size < 256
    # Even for root of the host: the program runs (ETXTBSY), and is sealed (EPERM).
    with pytest.raises(OSError, match=r"Text file busy|Operation not permitted"):
        os.open(exe, os.O_WRONLY)
    assert hashlib.sha256(interpreter.read_bytes()).digest() == before


async def test_orphans_are_reaped(world: World) -> None:
    runtime = world.runtime(await world.create(shared()))
    script = "(sleep 0.05 & exec true); (sh -c 'sleep 0.1 &' &); echo ready; read _; ps ax -o stat="
    shell = in_pod(runtime.namespaces["pid"], script)
    assert shell.stdout is not None and shell.stdin is not None
    assert shell.stdout.readline() == "ready\n"
    children = Path(f"/proc/{runtime.init_pid}/task/{runtime.init_pid}/children")
    wait_until(lambda: children.read_text() == "", "orphans of the pod are not reaped")
    output, _ = shell.communicate("go\n", timeout=WAIT_SECONDS)
    assert "Z" not in output


async def test_no_signal_from_inside_ends_it(world: World) -> None:
    runtime = world.runtime(await world.create(shared()))
    script = (
        "for s in TERM INT HUP QUIT USR1 ALRM CHLD KILL STOP SEGV; do kill -$s 1; done; echo ok"
    )
    output, _ = in_pod(runtime.namespaces["pid"], script).communicate("", timeout=WAIT_SECONDS)
    assert output == "ok\n"
    assert runtime.init_pid is not None
    assert status(runtime.init_pid)["State"].startswith("S")


async def test_other_users_of_the_pod_see_nothing_of_it(world: World) -> None:
    runtime = world.runtime(await world.create(shared()))
    script = "setpriv --reuid=65535 --clear-groups ls /proc/1/root /proc/1/fd; echo $?"
    output, _ = in_pod(runtime.namespaces["pid"], script).communicate("", timeout=WAIT_SECONDS)
    assert output.strip().splitlines()[-1] != "0"


async def test_killed_from_outside_it_takes_its_namespace_with_it(world: World) -> None:
    runtime = world.runtime(await world.create(shared()))
    shell = in_pod(runtime.namespaces["pid"], "echo ready; exec sleep 1000")
    assert shell.stdout is not None
    assert shell.stdout.readline() == "ready\n"
    assert runtime.init_pid is not None
    os.kill(runtime.init_pid, signal.SIGKILL)
    assert await asyncio.to_thread(shell.wait, WAIT_SECONDS) in (
        128 + signal.SIGKILL,
        -signal.SIGKILL,
    )
    # The spawner reaps it: nobody else is its parent.
    wait_until(lambda: not Path(f"/proc/{runtime.init_pid}").exists(), "pod init is a zombie")
    shell.communicate()


async def test_stop_ends_what_is_inside(world: World) -> None:
    pod = await world.create(shared())
    runtime = world.runtime(pod)
    shell = in_pod(runtime.namespaces["pid"], "echo ready; exec sleep 1000")
    assert shell.stdout is not None
    assert shell.stdout.readline() == "ready\n"
    await world.stop(pod)
    await asyncio.to_thread(shell.communicate, "", WAIT_SECONDS)
    assert shell.returncode != 0
    wait_until(lambda: not Path(f"/proc/{runtime.init_pid}").exists(), "pod init is a zombie")
    assert world.sandboxes._cgroups.pids(runtime.cgroup_parent) == []


async def test_a_process_with_the_same_pid_is_not_killed(world: World) -> None:
    """The record of a pod that ended long ago: its pid has a new owner."""
    stranger = start("sleep", "1000")
    directory = world.home / "sandboxes" / "old"
    directory.mkdir(parents=True)
    try:
        record = directory / "init.json"
        record.write_text(json.dumps({"pid": stranger.pid, "start_time": 1}))
        await pins.kill_init(directory)
        assert stranger.poll() is None
        assert not record.exists()
        record.write_text(json.dumps({"pid": 2**22, "start_time": 1}))  # nobody's
        await pins.kill_init(directory)
    finally:
        stranger.kill()
        stranger.communicate()


async def test_remove_after_a_crash_ends_it(world: World) -> None:
    pod = await world.create(shared())
    pid = world.runtime(pod).init_pid
    await world.restart()
    await world.sandboxes.reconcile([])
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "pod init is a zombie")
    assert not (world.home / "sandboxes" / pod).exists()

"""Between a fork into a container and its execve no code is loaded: strace looks on."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runtimeshim.oci.seccomp_default import default_profile
from tests.integration import bundles, harness
from tests.integration.adoption import shim_of
from tests.integration.oci_cli import CLI

pytestmark = pytest.mark.integration

CODE = re.compile(r'"[^"]*\.(?:py|pyc|so|so\.[0-9.]+|egg|zip|pth)"|"[^"]*site-packages')


ROOT_USER = [{"containerID": 0, "hostID": 300000, "size": 65536}]


def mapped(spec: dict[str, Any]) -> dict[str, Any]:
    """Give a container user and time namespaces of its own."""
    spec["linux"]["namespaces"] += [{"type": "user"}, {"type": "time"}]
    spec["linux"] |= {"uidMappings": ROOT_USER, "gidMappings": ROOT_USER}
    return spec


def filtered(spec: dict[str, Any]) -> dict[str, Any]:
    spec["linux"]["seccomp"] = default_profile(bundles.DEFAULT_CAPABILITIES, os.uname().machine)
    return spec


def strace(output: Path, *more: str) -> list[str]:
    return ["strace", "-f", "-qq", "-e", "trace=%file,execve", "-e", "signal=none",
            "-o", str(output), *more]  # fmt: skip


def family(pid: int) -> list[int]:
    """Return a process and its descendants: a spawner's shims are forked by a child of it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


@asynccontextmanager
async def traced(output: Path, *pids: int) -> AsyncIterator[None]:
    """Have strace follow processes and all that they fork."""
    argv = strace(output, *(f"--attach={pid}" for pid in pids))
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.DEVNULL)
    tracer = f"TracerPid:\t{process.pid}"
    for pid in pids:
        status = Path(f"/proc/{pid}/status")
        await harness.until(lambda status=status: tracer in status.read_text())
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


def assert_nothing_is_loaded(lines: list[str], started: int) -> None:
    """Assert that `started` programs were executed, and no code was opened by who became them."""
    executed = [line for line in lines if "execve(" in line and '["true"]' in line]
    assert len(executed) == started, executed
    assert not [line for line in before_execve(lines) if CODE.search(line)]


async def test_nothing_is_loaded_between_fork_and_execve(tmp_path: Path) -> None:
    plain = filtered(bundles.spec(["true"], "/set-later"))
    terminal = mapped(bundles.spec(["true"], "/set-later", terminal=True))
    hooked = bundles.spec(["true"], "/set-later", user={"uid": 1000, "gid": 1000})
    hook = {"path": "/bin/true", "timeout": 5}
    hooked["hooks"] = {kind: [hook] for kind in ("createRuntime", "createContainer")}
    output = tmp_path / "strace"
    async with harness.runtime(tmp_path) as rt, traced(output, *family(rt.spawner.pid)):
        for number, spec in enumerate((plain, terminal, hooked)):
            spec["linux"]["cgroupsPath"] = rt.cgroup_of(f"n{number}")
            record, _ = await rt.run(spec, f"n{number}")
            assert record.exit_code == 0
    assert_nothing_is_loaded(output.read_text().splitlines(), 3)


async def test_nothing_is_loaded_by_an_exec(tmp_path: Path) -> None:
    output = tmp_path / "strace"
    async with harness.runtime(tmp_path) as rt:
        plain = await rt.start(filtered(rt.spec(["sleep", "1000"])))
        other = await rt.start(mapped(rt.spec(["sleep", "1000"], name="mapped")), "mapped")
        null = os.open("/dev/null", os.O_RDWR)
        async with traced(output, shim_of(plain.pid), shim_of(other.pid)):
            for shim in (plain, other):
                for terminal in (False, True):
                    process = rt.spec(["true"], terminal=terminal)["process"]
                    stdio = None if terminal else (null, null, null)
                    started = await shim.exec(process, stdio)
                    assert await started.wait() == 0
                    if started.terminal is not None:
                        os.close(started.terminal)
        os.close(null)
    assert_nothing_is_loaded(output.read_text().splitlines(), 4)


@pytest.mark.parametrize("make", [filtered, mapped], ids=["seccomp", "user namespace"])
def test_nothing_is_loaded_after_the_fork_of_the_command_line(
    tmp_path: Path, make: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    cli = CLI(tmp_path)
    try:
        bundle = cli.write(make(cli.spec(["true"])))
        output = tmp_path / "strace"
        command = strace(output, *cli.command("run", "-b", bundle, "c"))
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        assert_nothing_is_loaded(forked(output), 1)
        cli.launch(cli.write(make(cli.spec(["sleep", "1000"]))), "c", "run", "-d")
        command = strace(output, *cli.command("exec", "c", "true"))
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        assert_nothing_is_loaded(forked(output), 1)
    finally:
        cli.close()


def forked(output: Path) -> list[str]:
    """Return what others than the first process did: that has to import its modules."""
    lines = output.read_text().splitlines()
    first = lines[0].split()[0]
    return [line for line in lines if line.split()[0] != first]


def before_execve(lines: list[str]) -> list[str]:
    """Drop what processes did after an execve of theirs: hooks load libraries, and may."""
    executed: set[str] = set()
    kept = []
    for line in lines:
        pid, _, call = line.strip().partition(" ")
        if pid not in executed:
            kept.append(call)
        if call.lstrip().startswith(("execve(", "<... execve resumed>")) and " = 0" in call:
            executed.add(pid)
    return kept

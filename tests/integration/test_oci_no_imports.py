"""Between the fork of an init and its execve no code is loaded: strace looks on."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from runtimeshim.oci.seccomp_default import default_profile
from tests.integration import bundles, harness

pytestmark = pytest.mark.integration

CODE = re.compile(r'"[^"]*\.(?:py|pyc|so|so\.[0-9.]+|egg|zip|pth)"|"[^"]*site-packages')


async def trace(directory: Path, specs: list[dict[str, Any]]) -> list[str]:
    """Run containers under a spawner that strace follows; returns its lines."""
    output = directory / "strace"
    async with harness.runtime(directory) as rt:
        argv = ["strace", "-f", "-qq", "-e", "trace=%file,execve", "-e", "signal=none",
                "-o", str(output), "-p", str(rt.spawner.pid)]  # fmt: skip
        strace = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.DEVNULL)
        status = Path(f"/proc/{rt.spawner.pid}/status")
        await harness.until(lambda: f"TracerPid:\t{strace.pid}" in status.read_text())
        try:
            for number, spec in enumerate(specs):
                spec["linux"]["cgroupsPath"] = f"{rt.cgroup}/n{number}"
                record, _ = await rt.run(spec, f"n{number}")
                assert record.exit_code == 0
        finally:
            strace.send_signal(signal.SIGINT)
            await strace.wait()
    return output.read_text().splitlines()


async def test_nothing_is_loaded_between_fork_and_execve(tmp_path: Path) -> None:
    plain = bundles.spec(["true"], "/set-later")
    plain["linux"]["seccomp"] = default_profile(bundles.DEFAULT_CAPABILITIES, os.uname().machine)
    mapped = bundles.spec(["true"], "/set-later", terminal=True)
    mapped["linux"]["namespaces"] += [{"type": "user"}, {"type": "time"}]
    mapping = [{"containerID": 0, "hostID": 300000, "size": 65536}]
    mapped["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}
    hook = {"path": "/bin/true", "timeout": 5}
    hooked = bundles.spec(["true"], "/set-later", user={"uid": 1000, "gid": 1000})
    hooked["hooks"] = {kind: [hook] for kind in ("createRuntime", "createContainer")}
    lines = await trace(tmp_path, [plain, mapped, hooked])
    executed = [line for line in lines if "execve(" in line]
    assert sum('"/bin/true"' in line for line in executed) >= 3, executed
    own = {line.split()[0] for line in executed if '["/bin/true"]' in line}
    assert not [line for line in before_execve(lines) if CODE.search(line)], own


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

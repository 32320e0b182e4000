"""Many containers from create to delete, several at a time: nothing of them is left."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.integration import harness, leaks

pytestmark = pytest.mark.integration

# The long run of issue 3 has 2,000 (hack/test says how).
CYCLES = int(os.environ.get("CRISERVER_TEST_CYCLES", "200"))
AT_A_TIME = 8
STILL_SECONDS = 0.5

# A page of an allocator here and there; a leak of 100 bytes a cycle would be 160 KB of 2,000.
MAX_GROWTH_KB = 128


async def test_cycles_leave_no_process_mount_cgroup_fd_or_file_and_no_memory(
    rt: harness.Runtime,
) -> None:
    await run(rt, range(AT_A_TIME))  # the first of each kind: caches are filled
    gc.collect()  # what earlier tests of this process have left open closes now, not later
    before = await settled(rt)
    quarter = CYCLES // 4
    await run(rt, range(quarter))
    memory = anonymous_kb(rt.spawner.pid)
    await run(rt, range(quarter, CYCLES))
    assert await settled(rt) == before
    assert anonymous_kb(rt.spawner.pid) - memory <= MAX_GROWTH_KB
    print(f"{CYCLES} cycles: the spawner has {anonymous_kb(rt.spawner.pid)} kB, had {memory} kB")


async def run(rt: harness.Runtime, numbers: range) -> None:
    """Run cycles, AT_A_TIME of them at a time."""
    waiting = iter(numbers)

    async def worker() -> None:
        for number in waiting:
            await cycle(rt, f"n{number}")

    await asyncio.gather(*(worker() for _ in range(AT_A_TIME)))


async def cycle(rt: harness.Runtime, name: str) -> None:
    """create, start, kill, delete, and what the daemon removes afterwards."""
    shim = await rt.start(rt.spec(["sleep", "1000"], name), name)
    await shim.kill(signal.SIGKILL)
    assert (await shim.wait()).exit_code == 137
    await shim.delete()
    rt.shims.remove(shim)
    assert {path.name for path in shim.bundle.iterdir()} == {"config.json", "exit.json", "rootfs"}
    shutil.rmtree(shim.bundle)
    shutil.rmtree(rt.directory / f"rw-{name}")
    rt.log(name).unlink()


async def settled(rt: harness.Runtime) -> dict[str, list[str]]:
    """What remains once nothing is ending any more: for as long as STILL_SECONDS."""
    found, since = remains(rt), time.monotonic()
    async with asyncio.timeout(60):
        while time.monotonic() - since < STILL_SECONDS:
            await asyncio.sleep(0.05)
            if (now := remains(rt)) != found:
                found, since = now, time.monotonic()
    return found


def remains(rt: harness.Runtime) -> dict[str, list[str]]:
    """What there is of this test's containers, of each kind."""
    spawner = rt.spawner.pid
    return {
        "processes": list(leaks.descendants(spawner).values()),
        "mounts": [mount for mount in leaks.mounts() if str(rt.directory) in mount],
        "cgroups": [str(path) for path in harness.cgroup_dirs(rt.cgroup) for path in path.iterdir()
                    if path.is_dir()],
        "files": sorted(leaks.files([rt.run_dir / "containers"])),
        "fds of the spawner": sorted(kinds_of_fds(spawner)),
        "fds of the client": sorted(kinds_of_fds(os.getpid())),
    }  # fmt: skip


def kinds_of_fds(pid: int) -> list[str]:
    """What a process has open, without the numbers that each pipe and socket has."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(fd).partition(":")[0])
        except FileNotFoundError:  # the one of this listing
            continue
    return found


def anonymous_kb(pid: int) -> int:
    """The memory of a process that is no file's, in kB (man 5 proc, RssAnon)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise LookupError(pid)

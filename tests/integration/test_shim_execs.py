"""exec through the shim: nothing waits for it, it is killed whole, and its memory is watched."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from runtimeshim.client import Exec, Shim, read_to_end
from runtimeshim.linux import cgroups
from tests.integration import harness, leaks

pytestmark = pytest.mark.integration

SLEEP = ["sleep", "1000"]


async def start(rt: harness.Runtime, shim: Shim, args: list[str]) -> Exec:
    null = os.open("/dev/null", os.O_RDWR)
    try:
        return await shim.exec(rt.spec(args)["process"], (null, null, null))
    finally:
        os.close(null)


async def output(rt: harness.Runtime, shim: Shim, args: list[str]) -> tuple[int, str]:
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read, False)
    null = os.open("/dev/null", os.O_RDONLY)
    started = await shim.exec(rt.spec(args)["process"], (null, write, write))
    os.close(write)
    os.close(null)
    said = bytearray()
    await read_to_end(read, said, 1 << 20)
    os.close(read)
    return await started.wait(), said.decode()


def inside(rt: harness.Runtime) -> list[str]:
    """The command lines of the container's processes."""
    pids = cgroups.manager().pids(rt.cgroup_of("c"))
    return [leaks.read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip() for pid in pids]


async def test_arguments_may_be_larger_than_a_message(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(SLEEP))
    large = ["x" * 120_000 for _ in range(8)]
    script = 'echo "$#"; echo "$8" | wc -c'
    assert await output(rt, shim, ["sh", "-c", script, "sh", *large]) == (0, "8\n120001\n")


async def test_the_shim_does_not_wait_for_an_execs_start(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sh", "-c", "read x; echo $x; sleep 1000"]), stdin=True)
    manager = cgroups.manager()
    manager.freeze(rt.cgroup_of("c"))
    starting = asyncio.create_task(start(rt, shim, ["sleep", "999"]))
    try:
        await harness.until(lambda: len(manager.pids(rt.cgroup_of("c"))) == 2)
        assert not starting.done()
        async with asyncio.timeout(20):
            await shim.refresh()
    finally:
        manager.thaw(rt.cgroup_of("c"))
    started = await starting
    await started.kill(signal.SIGKILL)
    assert await started.wait() == 137


async def test_a_kill_reaches_what_has_left_its_parents_and_session(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(SLEEP))
    script = "(setsid sh -c 'sleep 997 & sleep 998' &); sleep 999"
    started = await start(rt, shim, ["sh", "-c", script])
    other = await start(rt, shim, ["sleep", "996"])
    await harness.until(lambda: {"sleep 997", "sleep 998", "sleep 999"} <= set(inside(rt)))
    await started.kill(signal.SIGKILL)
    assert await started.wait() == 137
    await harness.until(lambda: sorted(filter(None, inside(rt))) == ["sleep 1000", "sleep 996"])
    await other.kill(signal.SIGTERM)
    assert await other.wait() == 143


async def test_an_execs_cgroup_goes_with_its_last_process(rt: harness.Runtime) -> None:
    # One that reaps: a zombie is in its cgroup until then.
    shim = await rt.start(rt.spec(["sh", "-c", "while :; do sleep 0.1; done"]))
    directories = harness.cgroup_dirs(rt.cgroup_of("c"))  # its own is in one hierarchy: freezer's

    def own() -> list[str]:
        return [each.name for path in directories for each in path.iterdir() if each.is_dir()]

    for _ in range(3):
        assert await output(rt, shim, ["true"]) == (0, "")
    assert own() == []
    left = await start(rt, shim, ["sh", "-c", "sleep 998 >/dev/null 2>&1 & exit 0"])
    assert await left.wait() == 0
    assert len(own()) == 1
    assert await output(rt, shim, ["killall", "-9", "sleep"]) == (0, "")
    await harness.until(lambda: "sleep 998" not in inside(rt))
    assert await output(rt, shim, ["true"]) == (0, "")
    assert own() == []


async def test_an_exec_reports_the_time_of_its_stages(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(SLEEP))
    started = await start(rt, shim, ["true"])
    assert started.timings.keys() >= {"cgroup-join", "namespaces", "credentials"}
    assert all(ns > 0 for ns in started.timings.values())
    assert await started.wait() == 0


async def test_an_exec_that_runs_out_of_memory_is_reported(rt: harness.Runtime) -> None:
    spec = rt.spec(["sh", "-c", "read x; exit 0"])
    spec["linux"]["resources"] = {"memory": {"limit": 32 << 20}}
    shim = await rt.start(spec, stdin=True)
    kills: list[int] = []
    shim.on_oom = kills.append
    code, _ = await output(rt, shim, ["sh", "-c", "exec tail /dev/zero"])
    assert code == 137
    await harness.until(lambda: kills == [1])
    read, write = os.pipe()
    await shim.attach(stdin=read)
    os.close(read)
    os.write(write, b"\n")
    record = await shim.wait()
    os.close(write)
    assert (record.exit_code, record.oom_killed) == (0, True)  # as containerd has it


async def test_a_containers_end_is_not_taken_for_the_oom_killer(rt: harness.Runtime) -> None:
    spec = rt.spec(SLEEP)
    spec["linux"]["resources"] = {"memory": {"limit": 32 << 20}}
    shim = await rt.start(spec)
    kills: list[int] = []
    shim.on_oom = kills.append
    await shim.kill(signal.SIGKILL)
    assert not (await shim.wait()).oom_killed
    assert kills == []

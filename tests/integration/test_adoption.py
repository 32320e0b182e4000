"""SIGKILL to shims and spawners: the container never notices, and nothing of it is lost."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from pathlib import Path

import pytest

from runtimeshim import exit_record
from runtimeshim.client import Shim
from tests.integration import harness
from tests.integration.adoption import is_ward, kill_spawner, killed, shim_pid

pytestmark = pytest.mark.integration


# How often one is killed in all; the long run of issue 3 has 100 (hack/test says how).
KILLS = int(os.environ.get("CRISERVER_TEST_KILLS", "20"))
KILLS_OF_ONE = 10  # container

CHUNK = 1 << 16  # bytes: what a pipe holds

# Bursts with pauses: long enough for many kills, and with data in the pipe when they come.
COUNT = (
    "trap 'exit %d' TERM; i=0; while :; do i=$((i+1)); echo line $i;"
    "[ $((i %% 500)) = 0 ] && sleep 0.02; done"
)

EXIT_7 = "trap 'exit 7' TERM; echo up; while :; do sleep 0.02; done"


async def test_a_killed_shim_is_replaced_and_the_container_runs_on(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    adopted = await killed(rt, shim)
    assert adopted.pid == shim.pid
    assert harness.alive(shim.pid)
    assert "adopted" in adopted.warnings[0]
    assert adopted.timings == shim.timings


async def test_its_exit_code_arrives(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sh", "-c", "read x; exit 7"]), stdin=True)
    adopted = await killed(rt, shim)
    read, write = os.pipe()
    await adopted.attach(stdin=read)
    os.close(read)
    os.write(write, b"go\n")
    assert (await adopted.wait()).exit_code == 7
    os.close(write)
    assert harness.cgroup_dirs(rt.cgroup_of("c")) == []


async def test_an_end_at_the_same_moment_is_not_lost(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    pid = shim_pid(shim)
    os.kill(pid, signal.SIGSTOP)
    os.kill(shim.pid, signal.SIGTERM)
    os.kill(shim.pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    await harness.until(lambda: exit_record.read(shim.bundle) is not None)
    record = exit_record.read(shim.bundle)
    assert record is not None
    assert record.exit_code == 137


async def test_an_end_while_nobody_is_there_to_hear_of_it_is_not_lost(rt: harness.Runtime) -> None:
    """Its shim and its first spawner are dead, and the next one has not got round to a new shim."""
    shim = await rt.start(rt.spec(["sh", "-c", EXIT_7]))
    await harness.until(lambda: "up" in rt.log("c").read_text())
    old = shim_pid(shim)
    await kill_spawner(rt)
    await harness.until(lambda: is_ward(rt, old))
    os.kill(rt.spawner.pid, signal.SIGSTOP)
    os.kill(old, signal.SIGKILL)
    await harness.until(lambda: not harness.alive(old))
    os.kill(shim.pid, signal.SIGTERM)
    await harness.until(lambda: not harness.alive(shim.pid))
    os.kill(rt.spawner.pid, signal.SIGCONT)
    await harness.until(lambda: exit_record.read(shim.bundle) is not None)
    record = exit_record.read(shim.bundle)
    assert record is not None
    assert record.exit_code == 7


@pytest.mark.parametrize("adopted", [False, True])
async def test_a_shim_that_is_killed_between_the_end_and_its_record_loses_nothing(
    rt: harness.Runtime, tmp_path: Path, *, adopted: bool
) -> None:
    mark = tmp_path / "killed"
    script = f"test -e {mark} || {{ touch {mark}; kill -9 $PPID; }}"
    spec = rt.spec(["sh", "-c", EXIT_7])
    spec["hooks"] = {"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
    shim = await rt.start(spec)
    await harness.until(lambda: "up" in rt.log("c").read_text())
    if adopted:
        await killed(rt, shim)
    os.kill(shim.pid, signal.SIGTERM)
    await harness.until(lambda: exit_record.read(shim.bundle) is not None)
    record = exit_record.read(shim.bundle)
    assert record is not None
    assert record.exit_code == 7
    assert mark.exists()


async def test_exec_signals_and_logs_go_on(rt: harness.Runtime) -> None:
    script = "trap 'echo got term; exit 3' TERM; echo up; while :; do sleep 0.02; done"
    shim = await rt.start(rt.spec(["sh", "-c", script]))
    await harness.until(lambda: "up" in rt.log("c").read_text())
    adopted = await killed(rt, shim)
    null = os.open("/dev/null", os.O_RDWR)
    started = await adopted.exec(rt.spec(["sh", "-c", "exit 5"])["process"], (null, null, null))
    assert await started.wait() == 5
    os.close(null)
    await adopted.kill(signal.SIGTERM)
    assert (await adopted.wait()).exit_code == 3
    assert rt.output() == "up\ngot term\n"


async def test_a_created_container_can_still_be_started(rt: harness.Runtime) -> None:
    shim = await rt.create(rt.spec(["sh", "-c", "echo hello; exit 4"]))
    adopted = await killed(rt, shim)
    await adopted.start()
    assert (await adopted.wait()).exit_code == 4
    assert rt.output() == "hello\n"


async def test_a_terminal_lives_on(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sh", "-c", "read x; echo $x; tty"], terminal=True), stdin=True)
    adopted = await killed(rt, shim)
    read, write = os.pipe()
    await adopted.attach(stdin=read)
    os.close(read)
    os.write(write, b"typed\n")
    assert (await adopted.wait()).exit_code == 0
    os.close(write)
    assert "/dev/pts/0" in rt.output()


async def test_a_half_written_line_is_not_torn(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sh", "-c", "printf half; read x; echo ' whole'"]), stdin=True)
    read, write = os.pipe()
    adopted = await killed(rt, shim)
    await adopted.attach(stdin=read)
    os.close(read)
    os.write(write, b"\n")
    await adopted.wait()
    os.close(write)
    assert rt.output() == "half whole\n"


async def test_a_killed_spawner_loses_nothing_and_the_next_one_adopts(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sh", "-c", "read x; echo got $x; exit 6"]), stdin=True)
    await kill_spawner(rt)
    await shim.refresh()
    # The shim finds the new spawner by itself; from then on it can be killed too.
    log = rt.run_dir / "spawner.log"
    old = shim_pid(shim)
    await harness.until(lambda: is_ward(rt, old))
    adopted = await killed(rt, shim)
    read, write = os.pipe()
    await adopted.attach(stdin=read)
    os.close(read)
    os.write(write, b"it\n")
    assert (await adopted.wait()).exit_code == 6
    os.close(write)
    assert rt.output() == "got it\n"
    assert "was killed" in log.read_text()


async def test_no_line_is_lost_or_torn_however_often_shim_and_spawner_are_killed(
    rt: harness.Runtime,
) -> None:
    """Of a kill, at most the chunk in flight is repeated, and whole; every exit code is right."""
    chance = random.Random(7)
    for number in range(max(1, KILLS // KILLS_OF_ONE)):
        name = f"n{number}"
        spec = rt.spec(["sh", "-c", COUNT % (number + 1)], name)
        shim = await rt.start(spec, name)
        kills = 0
        for _ in range(KILLS_OF_ONE):
            await asyncio.sleep(chance.uniform(0, 0.05))
            kills += await _kill_one(rt, shim, chance)
        os.kill(shim.pid, signal.SIGTERM)
        await harness.until(lambda bundle=shim.bundle: exit_record.read(bundle) is not None, 120)  # type: ignore[misc]
        record = exit_record.read(shim.bundle)
        assert record is not None
        assert record.exit_code == number + 1
        check_lines(rt.output(name).splitlines(), kills)


async def _kill_one(rt: harness.Runtime, shim: Shim, chance: random.Random) -> int:
    """Kill the shim or, less often, the spawner; returns how many shims were killed."""
    old = shim_pid(shim)
    if chance.random() < 0.3:
        await kill_spawner(rt)
        await harness.until(lambda: is_ward(rt, old))
        return 0
    os.kill(old, signal.SIGKILL)
    await harness.until(lambda: _replaced(shim, old))
    return 1


def check_lines(lines: list[str], kills: int) -> None:
    """Assert that all lines are there in their order, but for chunks that come twice."""
    numbers = [int(line.removeprefix("line ")) for line in lines]
    assert sorted(set(numbers)) == list(range(1, max(numbers) + 1))
    jumps = [(a, b) for a, b in itertools.pairwise(numbers) if b != a + 1]
    assert len(jumps) <= kills
    for last, again in jumps:
        repeated = sum(len(f"line {n}\n") for n in range(again, last + 1))
        assert 0 < repeated <= CHUNK, (last, again)


def _replaced(shim: Shim, old: int) -> bool:
    if exit_record.read(shim.bundle) is not None:
        return True
    try:
        return shim_pid(shim) != old
    except LookupError:
        return False

"""The spawner: workers, programs, and what a fork of it inherits."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from runtimeshim.client import ProgramTimeoutError, Spawner, SpawnerError, WorkerError, launch
from tests.integration import harness, leaks

pytestmark = pytest.mark.integration

WORKERS = {"test": "tests.integration.spawner_workers:main"}


@pytest.fixture
def _tests_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the spawner find the tests' own workers: it is isolated from the working directory."""
    root = str(Path(__file__).parents[2])
    entry = f"import sys; sys.path.append({root!r}); from runtimeshim.spawner import main; main()"
    monkeypatch.setattr(launch, "ENTRY", ["-I", "-c", entry])


async def test_a_program_gets_its_input_and_gives_its_output(rt: harness.Runtime) -> None:
    result = await rt.spawner.run_program(
        ["/bin/sh", "-c", "cat; echo $A >&2; exit 3"], env={"A": "b"}, stdin=b"in", timeout=20
    )
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"in", b"b\n")


async def test_a_program_that_hangs_is_killed_with_what_it_started(rt: harness.Runtime) -> None:
    script = "echo partial; echo why >&2; sleep 1000 & echo $! >&2; wait"
    with pytest.raises(ProgramTimeoutError, match="killed after") as raised:
        await rt.spawner.run_program(["/bin/sh", "-c", script], env={}, timeout=0.5)
    assert raised.value.stdout == b"partial\n"
    why, pid = raised.value.stderr.split()
    assert why == b"why"
    await harness.until(lambda: not harness.alive(int(pid)))


async def test_a_missing_program_is_named(rt: harness.Runtime) -> None:
    with pytest.raises(SpawnerError, match="/no/such"):
        await rt.spawner.run_program(["/no/such"], env={}, timeout=5)


async def test_a_program_inherits_nothing(rt: harness.Runtime) -> None:
    result = await rt.spawner.run_program(
        ["/bin/sh", "-c", "env; ls /proc/self/fd; grep -E 'SigIgn|SigBlk' /proc/self/status"],
        env={"ONLY": "this", "PATH": "/bin"},
        timeout=20,
    )
    text = result.stdout.decode()
    assert "ONLY=this" in text
    assert "LANG" not in text
    assert [line for line in text.splitlines() if line.isdigit()] == ["0", "1", "2", "3"]
    assert "SigBlk:\t0000000000000000" in text
    # glibc's posix_spawn leaves its own two signals, 32 and 33, ignored.
    ignored = int(text.split("SigIgn:\t")[1].split()[0], 16)
    assert ignored & ~0x180000000 == 0


async def test_an_unknown_worker_is_refused(rt: harness.Runtime) -> None:
    with pytest.raises(SpawnerError, match="nonesuch"):
        await rt.spawner.run_worker("nonesuch", {}, timeout=5)


async def test_the_spawner_is_sealed_and_knows_nothing(rt: harness.Runtime) -> None:
    proc = Path(f"/proc/{rt.spawner.pid}")
    assert os.readlink(proc / "exe").startswith("/memfd:criserver-python")
    environ = (proc / "environ").read_bytes().split(b"\0")
    assert [entry for entry in environ if entry] == [
        b"LANG=C.UTF-8",
        b"PATH=" + os.defpath.encode(),
    ]
    assert len(list((proc / "task").iterdir())) == 1
    assert "grpc" not in (proc / "maps").read_text()


async def test_the_template_of_shims_is_left_with_nothing_of_its_rehearsal(
    rt: harness.Runtime,
) -> None:
    await (await rt.start(rt.spec(["true"]))).wait()
    children = Path(f"/proc/{rt.spawner.pid}/task/{rt.spawner.pid}/children").read_text().split()
    fds = Path(f"/proc/{children[0]}/fd")
    assert Path(f"/proc/{children[0]}/comm").read_text() == "shim-template\n"
    await harness.until(lambda: len(list(fds.iterdir())) == 4)  # 0 to 2, and the spawner's


async def test_the_socket_is_for_root_alone(rt: harness.Runtime) -> None:
    assert (rt.run_dir / "spawner.sock").stat().st_mode & 0o777 == 0o600


async def test_a_spawner_that_died_is_replaced(rt: harness.Runtime) -> None:
    first = rt.spawner.pid
    os.kill(first, signal.SIGKILL)
    await harness.until(lambda: not harness.alive(first))
    result = await rt.spawner.run_program(["/bin/echo", "again"], env={}, timeout=20)
    assert result.stdout == b"again\n"
    assert rt.spawner.pid != first


async def test_a_spawner_of_another_build_is_retired(tmp_path: Path, rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    await rt.spawner.close()  # one daemon at a time
    other = await Spawner.connect(rt.run_dir, {"files": "runtimeshim.linux.syscalls:close_range"})
    assert other.pid != rt.spawner.pid
    assert harness.alive(rt.spawner.pid)  # until the last of its children has ended
    await shim.delete()
    await harness.until(lambda: not harness.alive(rt.spawner.pid))
    await other.retire()
    await other.close()
    await harness.until(lambda: not harness.alive(other.pid))
    rt.spawner = await Spawner.connect(rt.run_dir, {})


async def test_many_programs_at_once(rt: harness.Runtime) -> None:
    results = await asyncio.gather(
        *(
            rt.spawner.run_program(["/bin/sh", "-c", f"exit {n}"], env={}, timeout=60)
            for n in range(60)
        )
    )
    assert [result.exit_code for result in results] == list(range(60))


@pytest.mark.usefixtures("_tests_importable")
async def test_workers_answer_raise_die_and_hang(tmp_path: Path) -> None:
    async with harness.runtime(tmp_path, WORKERS) as rt:
        spawner = rt.spawner
        null = os.open("/dev/null", os.O_RDONLY)
        answer, _ = await spawner.run_worker("test", {"do": "echo"}, [null, null], timeout=20)
        os.close(null)
        assert answer == {"args": {"do": "echo"}, "fds": 2}
        _, fds = await spawner.run_worker("test", {"do": "pipe"}, timeout=20)
        assert os.read(fds[0], 100) == b"from the worker"
        os.close(fds[0])
        with pytest.raises(WorkerError) as raised:
            await spawner.run_worker("test", {"do": "raise"}, timeout=20)
        assert (raised.value.kind, raised.value.errno) == ("FileNotFoundError", 2)
        with pytest.raises(WorkerError, match="exit code 137"):
            await spawner.run_worker("test", {"do": "die"}, timeout=20)
        await hang(spawner)


@pytest.mark.usefixtures("_tests_importable")
async def test_a_fork_has_the_interpreter_and_nothing_of_the_daemon(tmp_path: Path) -> None:
    async with harness.runtime(tmp_path, WORKERS) as rt:
        facts, _ = await rt.spawner.run_worker("test", {"do": "facts"}, timeout=20)
        assert facts["exe"].startswith("/memfd:criserver-python")
        assert facts["environ"].keys() <= {"LANG", "PATH", "LC_CTYPE"}
        assert facts["fds"] == ["0", "1", "2", *facts["fds"][3:5]]
        assert facts["ppid"] == rt.spawner.pid
        assert facts["threads"] == 1
        unwanted = {"grpc", "asyncio", "logging", "dataclasses", "subprocess"}
        assert not unwanted & set(facts["modules"])


@pytest.mark.usefixtures("_tests_importable")
async def test_a_worker_stands_by_for_the_next_request_and_is_no_different(tmp_path: Path) -> None:
    async with harness.runtime(tmp_path, WORKERS) as rt:
        forked, _ = await rt.spawner.run_worker("test", {"do": "facts"}, timeout=20)
        waiting = await standing_by(rt.spawner)
        facts, _ = await rt.spawner.run_worker("test", {"do": "facts"}, timeout=20)
        assert facts["pid"] == waiting
        assert len(facts["fds"]) == len(forked["fds"])
        assert {**facts, "pid": 0, "fds": []} == {**forked, "pid": 0, "fds": []}
        await standing_by(rt.spawner)
        with pytest.raises(WorkerError, match="exit code 137"):
            await rt.spawner.run_worker("test", {"do": "die"}, timeout=20)


@pytest.mark.usefixtures("_tests_importable")
async def test_a_worker_that_stood_by_and_was_killed_is_not_missed(tmp_path: Path) -> None:
    async with harness.runtime(tmp_path, WORKERS) as rt:
        await rt.spawner.run_worker("test", {"do": "facts"}, timeout=20)
        waiting = await standing_by(rt.spawner)
        os.kill(waiting, signal.SIGKILL)
        await harness.until(lambda: not harness.alive(waiting))
        facts, _ = await rt.spawner.run_worker("test", {"do": "facts"}, timeout=20)
        assert facts["pid"] != waiting


@pytest.mark.usefixtures("_tests_importable")
async def test_a_worker_that_hangs_is_killed_if_it_stood_by_too(tmp_path: Path) -> None:
    async with harness.runtime(tmp_path, WORKERS) as rt:
        await rt.spawner.run_worker("test", {"do": "facts"}, timeout=20)
        waiting = await standing_by(rt.spawner)
        assert await hang(rt.spawner) == waiting


@pytest.mark.usefixtures("_tests_importable")
async def test_a_retired_spawner_leaves_no_worker_standing_by(tmp_path: Path) -> None:
    async with harness.runtime(tmp_path, WORKERS) as rt:
        await rt.spawner.run_worker("test", {"do": "facts"}, timeout=20)
        old, waiting = rt.spawner.pid, await standing_by(rt.spawner)
        await rt.spawner.retire()
        await rt.spawner.close()
        await harness.until(lambda: not harness.alive(old) and not harness.alive(waiting))
        rt.spawner = await Spawner.connect(rt.run_dir, WORKERS)


async def hang(spawner: Spawner) -> int:
    """Have a worker hang until its time is over and it has been killed; returns its pid."""
    read, write = os.pipe()
    with pytest.raises(TimeoutError):
        await spawner.run_worker("test", {"do": "hang"}, [write], timeout=0.5)
    pid = int(os.read(read, 20))
    os.close(read)
    os.close(write)
    await harness.until(lambda: not harness.alive(pid))
    return pid


async def standing_by(spawner: Spawner) -> int:
    """Return the pid of the worker that waits for a request, once there is one."""
    children = Path(f"/proc/{spawner.pid}/task/{spawner.pid}/children")
    found: list[int] = []

    def look() -> bool:
        for child in children.read_text().split():
            if leaks.read(Path(f"/proc/{child}/comm")).strip() == "worker-standby":
                found.append(int(child))
        return bool(found)

    await harness.until(look)
    return found[0]

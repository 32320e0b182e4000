"""The shim: exits, logs, exec, attach, and daemons that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import select
import signal
import socket
from pathlib import Path

import pytest

from runtimeshim.client import Shim, ShimError, Spawner, StartError, connect_shim, read_to_end
from tests.integration import harness, leaks

pytestmark = pytest.mark.integration


async def exec_output(shim: Shim, rt: harness.Runtime, script: str) -> tuple[int, bytes]:
    """Exec a shell script and return its exit code and output."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read, False)
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        started = await shim.exec(rt.spec(["sh", "-c", script])["process"], (null, write, write))
    finally:
        os.close(write)
        os.close(null)
    output = bytearray()
    await read_to_end(read, output, 1 << 20)
    os.close(read)
    return await started.wait(), bytes(output)


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$; sleep 5", 137)]
)
async def test_the_exit_code_is_the_programs(rt: harness.Runtime, script: str, code: int) -> None:
    if code == 137:  # pid 1 cannot signal itself: from outside, then
        shim = await rt.start(rt.spec(["sleep", "1000"]))
        await shim.kill(signal.SIGKILL)
        record = await shim.wait()
    else:
        record, _ = await rt.run(rt.spec(["sh", "-c", script]))
    assert record.exit_code == code
    assert not record.oom_killed


async def test_the_exit_record_is_on_disk_and_the_shim_is_gone(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sh", "-c", "exit 3"]))
    record = await shim.wait()
    stored = json.loads((rt.run_dir / "containers/c/exit.json").read_text())
    assert stored["exit_code"] == 3
    assert stored["finished_at"] == record.finished_at
    with pytest.raises(ShimError, match="no shim answers"):
        await connect_shim(rt.run_dir / "containers/c")
    assert harness.cgroup_dirs(rt.cgroup_of("c")) == []


async def test_the_log_has_both_streams_in_cri_format(rt: harness.Runtime) -> None:
    await rt.run(rt.spec(["sh", "-c", "echo out; echo err >&2; printf tail"]))
    lines = [line.split(" ", 3)[1:] for line in rt.log("c").read_text().splitlines()]
    assert sorted(lines) == [
        ["stderr", "F", "err"], ["stdout", "F", "out"], ["stdout", "P", "tail"],
    ]  # fmt: skip


async def test_not_one_of_many_lines_is_lost(rt: harness.Runtime) -> None:
    _, output = await rt.run(rt.spec(["seq", "1", "100000"]))
    assert output == "".join(f"{n}\n" for n in range(1, 100001))


async def test_reopen_log_follows_the_rename(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sh", "-c", "while read x; do echo $x; done"]), stdin=True)
    read, write = os.pipe()
    await shim.attach(stdin=read)
    os.close(read)
    os.write(write, b"one\n")
    await harness.until(lambda: "one" in rt.log("c").read_text())
    rt.log("c").rename(rt.log("old"))
    await shim.reopen_log()
    assert rt.log("c").exists()
    os.write(write, b"two\n")
    await harness.until(lambda: "two" in rt.log("c").read_text())
    assert "two" not in rt.log("old").read_text()
    os.close(write)


async def test_exec_runs_in_every_namespace_of_the_container(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    script = "for n in mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done"
    code, output = await exec_output(shim, rt, script)
    inside = [os.readlink(f"/proc/{shim.pid}/ns/{n}")
              for n in ("mnt", "pid", "net", "ipc", "uts", "cgroup")]  # fmt: skip
    assert (code, output.decode().split()) == (0, inside)


async def test_exec_belongs_to_the_containers_cgroup(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    script = "cut -d: -f2-3 /proc/self/cgroup; cut -d: -f2-3 /proc/1/cgroup"
    code, output = await exec_output(shim, rt, script)
    own, init = (set(part) for part in _halves(output.decode().split()))
    assert code == 0
    # To be killed with what it starts, it is below the container's cgroup in one hierarchy.
    (child,) = own - init
    assert re.fullmatch(r"(freezer)?:/exec-\d+-1", child)
    assert init - own == {re.sub("exec.*", "", child)}


def _halves(lines: list[str]) -> tuple[list[str], list[str]]:
    return lines[: len(lines) // 2], lines[len(lines) // 2 :]


async def test_exec_codes_and_failures(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    assert (await exec_output(shim, rt, "exit 9"))[0] == 9
    null = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(StartError, match=r"not found in \$PATH"):
        await shim.exec(rt.spec(["nonesuch"])["process"], (null, null, null))
    with pytest.raises(ShimError, match=r"process\.args"):
        await shim.exec(rt.spec([])["process"], (null, null, null))
    os.close(null)


async def test_exec_before_start_is_refused(rt: harness.Runtime) -> None:
    shim = await rt.create(rt.spec(["sleep", "1000"]))
    null = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(ShimError, match="container not running"):
        await shim.exec(rt.spec(["true"])["process"], (null, null, null))
    os.close(null)


async def test_killing_an_exec_ends_what_it_started(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    process = rt.spec(["sh", "-c", "setsid sleep 999 & setsid sleep 998 & wait"])["process"]
    null = os.open("/dev/null", os.O_RDWR)
    started = await shim.exec(process, (null, null, null))
    os.close(null)
    count = "ps | grep -c ' [s]leep 99[89]$'"
    await _until_output(shim, rt, count, b"2\n")
    await started.kill(signal.SIGKILL)
    assert await started.wait() == 137
    await _until_output(shim, rt, count, b"0\n")


async def _until_output(shim: Shim, rt: harness.Runtime, script: str, wanted: bytes) -> None:
    async with asyncio.timeout(20):
        while (await exec_output(shim, rt, script))[1] != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_exec_on_a_terminal(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    script = "tty; read x; stty size; echo got $x; exit 4"
    process = rt.spec(["sh", "-c", script], terminal=True)["process"]
    started = await shim.exec(process, None)
    assert started.terminal is not None
    os.set_blocking(started.terminal, False)
    await started.resize(101, 41)
    os.write(started.terminal, b"hello\n")
    output = bytearray()
    await read_to_end(started.terminal, output, 1 << 20)
    os.close(started.terminal)
    assert await started.wait() == 4
    assert b"/dev/pts/0" in output
    assert b"41 101" in output
    assert b"got hello" in output


async def test_a_container_with_a_terminal(rt: harness.Runtime) -> None:
    script = "tty; read x; stty size; echo $x; test -t 2 && test -c /dev/console && echo both"
    shim = await rt.create(rt.spec(["sh", "-c", script], terminal=True), stdin=True)
    ours, theirs = os.pipe()
    out_r, out_w = os.pipe()
    os.set_blocking(out_r, False)
    await shim.attach(stdin=ours, stdout=out_w)
    os.close(ours)
    os.close(out_w)
    await shim.start()
    await shim.resize(99, 33)
    os.write(theirs, b"typed\n")
    output = bytearray()
    await read_to_end(out_r, output, 1 << 20)
    os.close(theirs)
    os.close(out_r)
    assert (await shim.wait()).exit_code == 0
    text = output.decode()
    assert "/dev/pts/0" in text
    assert "33 99" in text
    assert "both" in text
    assert "stdout F both" in rt.log("c").read_text()


async def test_two_clients_see_the_same_output(rt: harness.Runtime) -> None:
    shim = await rt.create(rt.spec(["seq", "1", "20000"]))
    pipes = [os.pipe() for _ in range(2)]
    for read, write in pipes:
        os.set_blocking(read, False)
        await shim.attach(stdout=write)
        os.close(write)
    await shim.start()
    outputs = [bytearray(), bytearray()]
    await asyncio.gather(
        *(read_to_end(read, out, 1 << 24) for (read, _), out in zip(pipes, outputs, strict=True))
    )
    for read, _ in pipes:
        os.close(read)
    expected = "".join(f"{n}\n" for n in range(1, 20001)).encode()
    assert outputs[0] == outputs[1] == expected


async def test_a_slow_reader_gets_everything_and_the_exit_does_not_wait(
    rt: harness.Runtime,
) -> None:
    shim = await rt.create(rt.spec(["seq", "1", "50000"]))
    read, write = os.pipe2(os.O_CLOEXEC)
    await shim.attach(stdout=write)
    os.close(write)
    await shim.start()
    await shim.wait()  # nothing has been read yet
    os.set_blocking(read, False)
    output = bytearray()
    await read_to_end(read, output, 1 << 24)
    os.close(read)
    assert output.decode() == "".join(f"{n}\n" for n in range(1, 50001))


async def test_a_reader_that_stops_holds_the_container_back(rt: harness.Runtime) -> None:
    shim = await rt.create(rt.spec(["sh", "-c", "seq 1 500000; echo done >&2"]))
    read, write = os.pipe2(os.O_CLOEXEC)
    await shim.attach(stdout=write)
    os.close(write)
    await shim.start()
    await asyncio.sleep(1)
    assert "done" not in rt.output()
    os.set_blocking(read, False)
    output = bytearray()
    await read_to_end(read, output, 1 << 24)
    os.close(read)
    assert output.endswith(b"\n500000\n")
    assert (await shim.wait()).exit_code == 0


@pytest.mark.parametrize("terminal", [False, True])
async def test_output_without_a_pause_leaves_time_for_all_else(
    rt: harness.Runtime, terminal: bool
) -> None:
    spec = rt.spec(["yes"])
    spec["process"]["terminal"] = terminal
    shim = await rt.start(spec)
    assert await exec_output(shim, rt, "echo heard") == (0, b"heard\n")
    await shim.kill(signal.SIGKILL)
    assert (await shim.wait()).exit_code == 137


async def test_stdin_once_ends_with_its_client_and_otherwise_not(rt: harness.Runtime) -> None:
    for name, once in (("once", True), ("again", False)):
        shim = await rt.start(rt.spec(["cat"], name), name, stdin=True, stdin_once=once)
        read, write = os.pipe()
        await shim.attach(stdin=read)
        os.close(read)
        os.write(write, b"data\n")
        os.close(write)
        await harness.until(lambda name=name: "data" in rt.log(name).read_text())  # type: ignore[misc]
        if once:
            assert (await shim.wait()).exit_code == 0
        else:
            assert harness.alive(shim.pid)


async def test_a_container_without_stdin_reads_the_end_at_once(rt: harness.Runtime) -> None:
    record, output = await rt.run(rt.spec(["sh", "-c", "cat; echo done"]))
    assert (record.exit_code, output) == (0, "done\n")


async def test_a_new_daemon_finds_shim_and_spawner_as_they_were(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sh", "-c", "sleep 1000; exit 5"]))
    pid = shim.pid
    shim.close()
    await rt.spawner.close()
    spawner = await Spawner.connect(rt.run_dir, {})
    assert spawner.pid == rt.spawner.pid
    again = await connect_shim(rt.run_dir / "containers/c")
    assert again.pid == pid
    assert again.timings["total"] > 0
    await again.kill(signal.SIGKILL, everyone=True)
    assert (await again.wait()).exit_code == 137
    await spawner.close()


async def test_the_log_grows_while_no_daemon_is_there(rt: harness.Runtime) -> None:
    script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; exit 6"
    shim = await rt.start(rt.spec(["sh", "-c", script]))
    shim.close()
    await rt.spawner.close()
    record = rt.run_dir / "containers/c/exit.json"
    await harness.until(record.exists, 60)
    assert json.loads(record.read_text())["exit_code"] == 6
    assert rt.output() == "".join(f"line {n}\n" for n in range(1, 20001))


async def test_a_signal_to_an_ended_container_is_no_error(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["true"]))
    await shim.wait()
    await shim.kill(signal.SIGTERM)
    await shim.delete()


async def test_in_the_hosts_pid_namespace_the_rest_ends_with_init(rt: harness.Runtime) -> None:
    spec = rt.spec(["sh", "-c", "setsid sleep 1000 & echo $!"])
    spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "pid"]
    record, output = await rt.run(spec)
    assert record.exit_code == 0
    await harness.until(lambda: not harness.alive(int(output)))


async def test_a_client_that_never_reads_holds_nobody_up(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf:
        directory = os.open(shim.bundle, os.O_PATH)
        deaf.connect(f"/proc/self/fd/{directory}/shim.sock")
        os.close(directory)
        deaf.settimeout(5)
        with pytest.raises(OSError):  # dropped: EPIPE
            for number in range(100_000):
                deaf.send(json.dumps({"op": "state", "id": number}).encode())
        async with asyncio.timeout(20):
            await shim.refresh()
        assert shim.pid > 0


async def test_what_is_no_message_ends_its_connection_only(rt: harness.Runtime) -> None:
    shim = await rt.start(rt.spec(["sleep", "1000"]))
    for packet in (b"{", b"[]", b'{"op": "nonesuch", "id": 1}', b'{"id": 2}', b"null", b"\xff"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            directory = os.open(shim.bundle, os.O_PATH)
            client.connect(f"/proc/self/fd/{directory}/shim.sock")
            os.close(directory)
            client.send(packet)
            client.settimeout(10)
            client.recv(4096)
    await shim.refresh()


async def test_containers_have_the_machines_limit_on_files(rt: harness.Runtime) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = Path(f"/proc/{rt.spawner.pid}/limits").read_text()
    assert next(line for line in limits.splitlines() if "open files" in line).split()[3] == str(
        hard
    )
    _, output = await rt.run(rt.spec(["sh", "-c", "ulimit -Sn; ulimit -Hn"]))
    assert output.split() == [str(soft), str(hard)]


def children(pid: int) -> set[str]:
    """The names of a process's children; one that ends meanwhile has none."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {leaks.read(Path(f"/proc/{pid}/comm")).strip() for pid in pids} - {""}


def init_standing_by(pid: int) -> int | None:
    """The process below the spawner that is in a PID namespace of its own; without a container.

    None too where one of those on the way to it ends meanwhile.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if os.readlink(f"/proc/{child}/ns/pid") != os.readlink("/proc/self/ns/pid"):
                return int(child)
            found = init_standing_by(int(child))
            if found is not None:
                return found
    return None


async def an_init_stands_by(rt: harness.Runtime) -> int:
    """Wait for it; returns its pid."""
    found: list[int] = []

    def look() -> bool:
        pid = init_standing_by(rt.spawner.pid)
        found.extend([] if pid is None else [pid])
        return bool(found)

    await harness.until(look)
    return found[0]


async def test_an_init_stands_by_and_one_that_was_killed_is_made_up_for(
    rt: harness.Runtime,
) -> None:
    shim = await rt.start(rt.spec(["true"], "first"), "first")
    await shim.wait()
    first = await an_init_stands_by(rt)
    shim = await rt.start(rt.spec(["true"], "second"), "second")
    assert shim.pid == first
    await shim.wait()
    second = await an_init_stands_by(rt)
    pidfd = os.pidfd_open(second)
    os.kill(second, signal.SIGKILL)
    await asyncio.to_thread(select.select, [pidfd], [], [])  # it may still be told something
    os.close(pidfd)
    shim = await rt.start(rt.spec(["sh", "-c", "exit 3"], "third"), "third")
    assert shim.pid != second
    assert (await shim.wait()).exit_code == 3


async def test_fifty_containers_leave_nothing(rt: harness.Runtime) -> None:
    before = set(os.listdir("/proc/self/fd"))

    async def cycle(number: int) -> int:
        name = f"n{number}"
        shim = await rt.start(rt.spec(["sh", "-c", f"exit {number}"], name), name)
        return (await shim.wait()).exit_code

    codes = []
    for start in range(0, 50, 8):
        codes += await asyncio.gather(*(cycle(n) for n in range(start, min(start + 8, 50))))
    assert codes == list(range(50))
    spawner = rt.spawner.pid
    await harness.until(lambda: children(spawner) <= set(leaks.STANDING_BY))
    await harness.until(lambda: set(os.listdir("/proc/self/fd")) == before)
    assert len(os.listdir(f"/proc/{spawner}/fd")) < 16


async def test_a_line_in_many_small_pieces_is_whole_when_its_parts_are_joined(
    rt: harness.Runtime,
) -> None:
    script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); printf $i,; done; echo; echo end"
    await rt.run(rt.spec(["sh", "-c", script]))
    parts = [line.split(" ", 3)[2:] for line in rt.log("c").read_text().splitlines()]
    text = "".join(part + ("\n" if tag == "F" else "") for tag, part in parts)
    assert text == "".join(f"{n}," for n in range(1, 301)) + "\nend\n"


@pytest.mark.parametrize("size", [1 << 16, (1 << 16) + 1, 3_000_000])
async def test_bytes_without_a_newline_do_not_block_the_container(
    rt: harness.Runtime, size: int
) -> None:
    script = f"printf start; head -c {size} /dev/zero | tr '\\0' x; echo done >&2"
    record, output = await rt.run(rt.spec(["sh", "-c", script]))
    assert record.exit_code == 0
    assert output.replace("\n", "").replace("done", "") == "start" + "x" * size

"""Flags of the OCI command line that the other tests of it have no use for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtimeshim.linux import cgroups
from tests.integration import harness
from tests.integration.oci_cli import CLI, read_all, receive_fd, receiver

IS_V1 = cgroups.manager().version == 1
SLEEP = ["sleep", "1000"]
# Puts a pipe, fd $1, at 3 and 4, then runs the rest: only 3 is asked for.
WITH_FDS = 'fd=$1; shift; eval "exec 3>&$fd 4>&$fd"; exec "$@"'


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CLI]:
    made = CLI(tmp_path)
    try:
        yield made
    finally:
        made.close()


def with_fds(command: list[str]) -> str:
    """Run a command with a pipe at 3 and 4; returns what was written to it."""
    ours, theirs = os.pipe()
    argv = ["bash", "-c", WITH_FDS, "bash", str(theirs), *command]
    done = subprocess.run(argv, pass_fds=[theirs], check=False, stdin=subprocess.DEVNULL)
    os.close(theirs)
    assert done.returncode == 0
    with open(ours) as pipe:
        return pipe.read()


def test_flags_of_create_reach_the_init(cli: CLI) -> None:
    flags = ["--no-pivot", "--no-new-keyring", "--preserve-fds", "1"]
    script = "[ -e /proc/self/fd/4 ] || echo kept >&3"
    bundle = cli.bundle(["sh", "-c", script])
    # `create` ends at once, and the init has the pipe until it does: so it is started in between.
    command = [*cli.command("create", *flags, "-b", bundle, "c"), ";"]
    both = " ".join([*command, *cli.command("start", "c")])
    assert with_fds(["sh", "-c", f"{{ {both}; }} > {cli.directory}/out 2>&1"]) == "kept\n"


def test_run_detached_hands_its_terminal_and_pidfd_over(cli: CLI, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    bundle = cli.bundle(["sh", "-c", "tty; sleep 1000"], terminal=True)
    with receiver(cli.directory) as consoles, receiver(tmp_path / "second") as pidfds:
        sockets = ["--console-socket", f"{cli.directory}/console.sock"]
        sockets += ["--pidfd-socket", f"{tmp_path}/second/console.sock"]
        cli.launch(bundle, "c", "run", "-d", *sockets)
        _, master = receive_fd(consoles)
        _, pidfd = receive_fd(pidfds)
    info = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    assert f"Pid:\t{cli.state()['pid']}\n" in info
    os.close(pidfd)
    cli.ok("kill", "c", "KILL")
    assert read_all(master) == "/dev/pts/0\r\n"


@pytest.mark.parametrize("flag", [[], ["--no-subreaper"]])
def test_orphans_are_the_callers_on_demand(cli: CLI, flag: list[str]) -> None:
    """In the host's PID namespace an orphan has its parent outside: us, or who called us."""
    script = "(sh -c 'sleep 0.2; cut -d\" \" -f4 /proc/$$/stat' &); sleep 0.5"
    spec = cli.spec(["sh", "-c", script])
    spec["linux"]["namespaces"] = [
        each for each in spec["linux"]["namespaces"] if each["type"] != "pid"
    ]
    process = subprocess.Popen(
        cli.command("run", *flag, "-b", cli.write(spec), "c"), stdout=subprocess.PIPE, text=True
    )
    output, _ = process.communicate(timeout=30)
    assert (int(output) == process.pid) == (flag == [])


def test_the_pidfd_socket_of_exec_gets_the_processs(cli: CLI) -> None:
    cli.started(SLEEP)
    pid_file = cli.directory / "pid"
    with receiver(cli.directory) as listener:
        path = f"{cli.directory}/console.sock"
        flags = ["-d", "--pid-file", pid_file, "--pidfd-socket", path]
        command = cli.command("exec", *flags, "c", *SLEEP)
        subprocess.run(
            command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=30
        )
        _, pidfd = receive_fd(listener)
    info = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    assert f"Pid:\t{pid_file.read_text()}\n" in info
    os.close(pidfd)


def test_fds_of_exec_are_preserved_on_demand_only(cli: CLI) -> None:
    cli.started(SLEEP)
    script = "[ -e /proc/self/fd/4 ] || echo kept >&3"
    assert with_fds(cli.command("exec", "--preserve-fds", "1", "c", "sh", "-c", script)) == "kept\n"


@pytest.mark.parametrize(
    ("flag", "field"),
    [("--process-label", "label"), ("--apparmor", r"process.apparmorProfile")],
)
def test_a_label_of_exec_that_the_kernel_lacks_is_an_error(cli: CLI, flag: str, field: str) -> None:
    cli.started(SLEEP)
    done = cli("exec", flag, "some:label", "c", "true")
    assert done.returncode == 255
    assert field in done.stderr


def test_a_cgroup_of_exec_is_of_version_2(cli: CLI) -> None:
    cli.started(SLEEP)
    below = ["exec", "--cgroup", "below", "c"]
    if IS_V1:
        done = cli(*below, "true")
        assert done.returncode == 255
        assert "--cgroup is not supported on cgroup v1" in done.stderr
        return
    done = cli(*below, "true")
    assert done.returncode == 255
    assert "/below/cgroup.procs" in done.stderr
    (directory,) = harness.cgroup_dirs(cli.cgroup_of("c"))
    (directory / "below").mkdir()
    assert cli.ok(*below, "cat", "/proc/self/cgroup") == "0::/below\n"


LIMITS_V1 = {
    "--blkio-weight=123": ("blkio/blkio.bfq.weight", "blkio/blkio.weight", "123"),
    "--cpu-period=50000": ("cpu/cpu.cfs_period_us", "", "50000"),
    "--cpu-quota=25000": ("cpu/cpu.cfs_quota_us", "", "25000"),
    "--cpu-burst=5000": ("cpu/cpu.cfs_burst_us", "", "5000"),
    "--cpu-share=513": ("cpu/cpu.shares", "", "513"),
    "--memory-reservation=32m": ("memory/memory.soft_limit_in_bytes", "", str(32 << 20)),
    "--memory-swap=96m": ("memory/memory.memsw.limit_in_bytes", "", str(96 << 20)),
    "--cpuset-cpus=1": ("cpuset/cpuset.cpus", "", "1"),
    "--cpuset-mems=0": ("cpuset/cpuset.mems", "", "0"),
}
LIMITS_V2 = {
    "--blkio-weight=123": ("io.weight", "default 1142"),
    "--cpu-period=50000": ("cpu.max", "25000 50000"),
    "--cpu-quota=25000": ("cpu.max", "25000 50000"),
    "--cpu-burst=5000": ("cpu.max.burst", "5000"),
    "--cpu-share=512": ("cpu.weight", "59"),
    "--memory-reservation=32m": ("memory.low", str(32 << 20)),
    "--memory-swap=96m": ("memory.swap.max", str(32 << 20)),
    "--cpuset-cpus=1": ("cpuset.cpus", "1"),
    "--cpuset-mems=0": ("cpuset.mems", "0"),
}
LIMITS = LIMITS_V1 if IS_V1 else LIMITS_V2


def limit(cli: CLI, *files: str) -> str:
    """Return what is in the first of these files of container "c" that there is."""
    directories = harness.cgroup_dirs(cli.cgroup_of("c"))
    of = {path.parts[4]: path for path in directories} if IS_V1 else {"": directories[0]}
    for file in filter(None, files):
        controller, _, name = file.rpartition("/")
        if (of[controller] / name).exists():
            return (of[controller] / name).read_text().strip()
    raise FileNotFoundError(files)


def test_every_limit_of_update_is_in_its_file(cli: CLI) -> None:
    cli.started(SLEEP)
    cli.ok("update", "--memory=64m", *LIMITS, "c")
    seen = {flag: limit(cli, *files) for flag, (*files, _) in LIMITS.items()}
    assert seen == {flag: value for flag, (*_, value) in LIMITS.items()}
    cli.ok("update", "--cpu-idle=1", "c")
    assert limit(cli, "cpu/cpu.idle" if IS_V1 else "cpu.idle") == "1"


def test_limits_of_kernel_memory_are_passed_over(cli: CLI) -> None:
    """As in runc: no kernel since 5.16 has them, and old callers still give them."""
    cli.started(SLEEP)
    file = "memory/memory.limit_in_bytes" if IS_V1 else "memory.max"
    before = limit(cli, file)
    cli.ok("update", "--kernel-memory=1m", "--kernel-memory-tcp=1m", "c")
    assert limit(cli, file) == before

"""exec of the OCI command line: one more process in a container that runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration import harness
from tests.integration.oci_cli import CLI, read_all, receive_fd, receiver


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CLI]:
    made = CLI(tmp_path)
    try:
        made.started(["sleep", "1000"])
        yield made
    finally:
        made.close()


def process_file(cli: CLI, args: list[str], **process: Any) -> Path:
    path = cli.directory / "process.json"
    given = {"args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
    path.write_text(json.dumps(given | process))
    return path


def test_stdio_and_the_exit_code_are_passed(cli: CLI) -> None:
    done = cli("exec", "c", "sh", "-c", "cat; echo err >&2; exit 7", input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\n", "err\n")
    assert cli("exec", "c", "sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL


def test_flags_after_the_id_are_the_commands(cli: CLI) -> None:
    assert cli.ok("exec", "c", "echo", "-d", "--help") == "-d --help\n"


def test_what_cannot_be_started_is_told_with_255(cli: CLI) -> None:
    done = cli("exec", "c", "nonesuch")
    assert done.returncode == 255
    assert "executable file not found in $PATH" in done.stderr
    assert cli("exec", "c").returncode == 255


def test_it_is_inside(cli: CLI) -> None:
    init = cli.state()["pid"]
    inside = cli.ok(
        "exec", "c", "sh", "-c", "for n in pid net ipc uts mnt; do readlink /proc/self/ns/$n; done"
    )
    for kind, link in zip(("pid", "net", "ipc", "uts", "mnt"), inside.split(), strict=True):
        assert os.readlink(f"/proc/{init}/ns/{kind}") == link
    assert cli.ok("exec", "c", "cat", "/proc/1/comm") == "sleep\n"


def test_flags_change_the_containers_process(cli: CLI) -> None:
    script = 'pwd; echo "$A $B"; id -u; id -g; id -G; grep NoNewPrivs /proc/self/status'
    output = cli.ok(
        "exec", "--cwd", "/tmp", "-e", "A=1", "--env", "B=2", "-u", "1000:1001", "-g", "5",
        "--no-new-privs", "c", "sh", "-c", script,
    )  # fmt: skip
    assert output.split() == [
        "/tmp",
        "1",
        "2",
        "1000",
        "1001",
        "1001",
        "0",
        "5",
        "NoNewPrivs:",
        "1",
    ]


def test_a_capability_more(cli: CLI) -> None:
    script = "grep CapBnd /proc/self/status"
    before = int(cli.ok("exec", "c", "sh", "-c", script).split()[1], 16)
    after = int(cli.ok("exec", "-c", "CAP_NET_RAW", "c", "sh", "-c", script).split()[1], 16)
    assert after & ~before == 1 << 13


def test_the_process_comes_from_a_file(cli: CLI) -> None:
    path = process_file(cli, ["sh", "-c", "echo $X; exit 3"], env=["PATH=/bin", "X=from file"])
    done = cli("exec", "-p", path, "c")
    assert (done.returncode, done.stdout, done.stderr) == (3, "from file\n", "")


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"args": ["true"], "cwd": "relative"}', '{"cwd": "/"}']
)
def test_a_wrong_process_file_is_refused(cli: CLI, content: str) -> None:
    path = cli.directory / "process.json"
    path.write_text(content)
    done = cli("exec", "--process", path, "c")
    assert done.returncode == 255
    assert len(done.stderr.splitlines()) == 1


def test_detached_it_runs_on_and_its_pid_is_in_the_file(cli: CLI) -> None:
    pid_file = cli.directory / "pid"
    done = subprocess.run(
        cli.command(
            "exec", "-d", "--pid-file", pid_file, "-p", process_file(cli, ["sleep", "999"]), "c"
        ),
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    assert done.returncode == 0
    pid = int(pid_file.read_text())
    assert pid_file.read_text() == str(pid)
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\0" + b"999\0"
    assert pid in json.loads(cli.ok("ps", "-f", "json", "c"))


def test_the_console_socket_gets_the_terminal(cli: CLI) -> None:
    path = process_file(cli, ["sh", "-c", "tty"], terminal=True)
    with receiver(cli.directory) as listener:
        socket_path = cli.directory / "console.sock"
        command = cli.command("exec", "-d", "--console-socket", socket_path, "-p", path, "c")
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        name, master = receive_fd(listener)
    assert name == "/dev/ptmx"
    assert read_all(master) == "/dev/pts/0\r\n"


def test_a_terminal_in_the_foreground(cli: CLI) -> None:
    master, slave = os.openpty()
    process = subprocess.Popen(
        cli.command("exec", "-t", "c", "sh", "-c", "tty; read x; echo got $x; exit 6"),
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.write(master, b"typed\n")
    assert process.wait() == 6
    os.close(slave)
    shown = read_all(master)
    assert "/dev/pts/0\r\n" in shown
    assert "got typed\r\n" in shown


def test_a_signal_reaches_the_process(cli: CLI) -> None:
    script = "trap 'echo got; exit 8' TERM; echo up; sleep 1000 & wait"
    process = subprocess.Popen(
        cli.command("exec", "c", "sh", "-c", script), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "got\n"
    assert process.wait() == 8
    process.stdout.close()


def test_it_is_limited_with_the_container(cli: CLI) -> None:
    pid_file = cli.directory / "pid"
    script = "while :; do sleep 1; done"
    command = cli.command("exec", "-d", "--pid-file", pid_file, "c", "sh", "-c", script)
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for directory in harness.cgroup_dirs(cli.cgroup_of("c")):
        assert pid_file.read_text() in (directory / "cgroup.procs").read_text().split()


def test_in_a_created_container_too(cli: CLI) -> None:
    spec = cli.spec(["sleep", "1000"])
    spec["linux"]["cgroupsPath"] = cli.cgroup_of("second")
    cli.launch(cli.write(spec, "second"), "second")
    assert cli.ok("exec", "second", "echo", "hello") == "hello\n"
    assert cli.state("second")["status"] == "created"


def test_a_paused_container_takes_one_on_demand(cli: CLI) -> None:
    cli.ok("pause", "c")
    assert "cannot exec in a paused container" in cli("exec", "c", "true").stderr
    process = subprocess.Popen(
        cli.command("exec", "--ignore-paused", "c", "echo", "late"),
        stdout=subprocess.PIPE,
        text=True,
    )
    cli.ok("resume", "c")
    assert process.communicate()[0] == "late\n"


def test_the_hosts_interpreter_is_out_of_reach(cli: CLI) -> None:
    """CVE-2019-5736, the other way: the command in the container is /proc/self/exe."""
    done = cli("exec", "c", "/proc/self/exe", "--version")
    assert done.returncode == 255
    assert "Python" not in done.stdout

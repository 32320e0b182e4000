"""What callers of an OCI runtime rely on beyond the specification: the conventions of runc."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtimeshim.cli import sealed
from tests.integration import harness
from tests.integration.oci_cli import (
    CLI,
    RUNTIMESHIM,
    installed_apart,
    read_all,
    receive_fd,
    receiver,
)

SLEEP = ["sleep", "1000"]


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CLI]:
    made = CLI(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_the_version_is_in_the_conventional_form() -> None:
    done = subprocess.run([RUNTIMESHIM, "--version"], capture_output=True, text=True, check=True)
    first, commit, spec = done.stdout.splitlines()
    assert first.startswith("runtimeshim version ")
    assert commit.startswith("commit: ")
    assert spec.startswith("spec: 1.")


@pytest.mark.parametrize("verb", ["create", "run"])
def test_the_pid_file_holds_the_pid_alone(cli: CLI, verb: str) -> None:
    pid_file = cli.directory / "pid"
    arguments = ["--pid-file", str(pid_file)] + (["-d"] if verb == "run" else [])
    cli.launch(cli.bundle(SLEEP), "c", verb, *arguments)
    assert pid_file.read_text() == str(cli.state()["pid"])  # without a newline


def test_the_pid_file_of_a_failure_does_not_appear(cli: CLI) -> None:
    pid_file = cli.directory / "pid"
    assert cli("create", "--pid-file", pid_file, "-b", cli.bundle(["nonesuch"]), "c").returncode
    assert not pid_file.exists()


def test_the_console_socket_gets_the_terminals_master(cli: CLI) -> None:
    bundle = cli.bundle(
        ["sh", "-c", "tty; stty size"], terminal=True, consoleSize={"width": 91, "height": 33}
    )
    with receiver(cli.directory) as listener:
        cli.launch(bundle, "c", "create", "--console-socket", f"{cli.directory}/console.sock")
        name, master = receive_fd(listener)
    assert name == "/dev/ptmx"
    cli.ok("start", "c")
    assert read_all(master).split() == ["/dev/pts/0", "33", "91"]


def test_the_console_socket_may_have_a_path_longer_than_an_address(
    cli: CLI, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    here = os.open(deep, os.O_PATH)
    with receiver(Path(f"/proc/self/fd/{here}")) as listener:
        bundle = cli.bundle(["tty"], terminal=True)
        cli.launch(bundle, "c", "create", "--console-socket", f"{deep}/console.sock")
        _, master = receive_fd(listener)
    os.close(here)
    os.close(master)


@pytest.mark.parametrize(
    ("terminal", "arguments", "message"),
    [
        (True, ["create"], "has to give a --console-socket"),
        (True, ["run", "-d"], "has to give a --console-socket"),
        (False, ["create", "--console-socket", "SOCKET"], "--console-socket needs"),
        (True, ["run", "--console-socket", "SOCKET"], "--console-socket needs"),
        (True, ["create", "--console-socket", "/nonesuch"], "the socket cannot be connected to"),
    ],
)
def test_a_terminal_that_nobody_would_have_is_refused(
    cli: CLI, terminal: bool, arguments: list[str], message: str
) -> None:
    bundle = cli.bundle(["true"], terminal=terminal)
    with receiver(cli.directory):
        given = [each.replace("SOCKET", f"{cli.directory}/console.sock") for each in arguments]
        done = cli(*given, "-b", bundle, "c")
    assert done.returncode == 1
    assert message in done.stderr


def test_the_pidfd_socket_gets_a_pidfd_of_the_init(cli: CLI) -> None:
    with receiver(cli.directory) as listener:
        path = f"{cli.directory}/console.sock"
        cli.launch(cli.bundle(SLEEP), "c", "create", "--pidfd-socket", path)
        _, pidfd = receive_fd(listener)
    info = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    assert f"Pid:\t{cli.state()['pid']}\n" in info
    os.close(pidfd)


def test_errors_go_to_the_log_as_json_lines(cli: CLI) -> None:
    log = cli.directory / "log.json"
    flags = ["--log", str(log), "--log-format", "json"]
    done = cli("start", "nonesuch", flags=flags)
    assert done.returncode == 1
    assert done.stderr == "container does not exist\n"
    cli("run", "-b", cli.bundle(["nonesuch"]), "c", flags=flags)
    first, second = (json.loads(line) for line in log.read_text().splitlines())
    assert set(first) == set(second) == {"level", "msg", "time"}
    assert (first["level"], first["msg"]) == ("error", "container does not exist")
    assert "executable file not found in $PATH" in second["msg"]
    assert len(first["time"]) == len("2026-01-02T03:04:05Z")


def test_errors_without_a_log_are_one_line_on_stderr(cli: CLI) -> None:
    line = cli("start", "nonesuch").stderr
    assert line.startswith('time="')
    assert line.endswith('" level=error msg="container does not exist"\n')


def test_debug_tells_how_long_the_stages_took(cli: CLI) -> None:
    log = cli.directory / "log.json"
    cli("--log", log, "--log-format=json", "--debug", "run", "-b", cli.bundle(["true"]), "c")
    (line,) = (json.loads(line) for line in log.read_text().splitlines())
    assert line["level"] == "debug"
    assert "pivot" in line["msg"]


@pytest.mark.parametrize(
    "arguments",
    [["state"], ["start"], ["kill"], ["delete"], ["exec", "true"], ["ps"], ["pause"], ["resume"]],
)
def test_a_container_that_is_not_there_does_not_exist(cli: CLI, arguments: list[str]) -> None:
    verb, *more = arguments
    done = cli(verb, "nonesuch", *more)
    assert done.returncode == (255 if verb == "exec" else 1)
    assert 'msg="container does not exist"' in done.stderr


async def test_what_has_ended_is_not_running(cli: CLI) -> None:
    cli.started(["true"])
    await cli.status("stopped")
    for arguments in (["kill", "c"], ["exec", "c", "true"], ["update", "--memory=1g", "c"]):
        done = cli(*arguments)
        assert done.returncode != 0
        assert "container not running" in done.stderr


@pytest.mark.parametrize(
    ("container_id", "message"),
    [
        ("", "container id cannot be empty"),
        ("../up", "invalid container ID format"),
        (".hidden", "invalid container ID format"),
        ("a/b", "invalid container ID format"),
        ("a b", "invalid container ID format"),
    ],
)
def test_ids_are_checked(cli: CLI, container_id: str, message: str) -> None:
    bundle = cli.bundle(["true"])
    for arguments in (["run", "-b", bundle], ["state"], ["delete"]):
        done = cli(*arguments, container_id)
        assert done.returncode == 1
        assert message in done.stderr


def test_a_missing_id_is_an_error(cli: CLI) -> None:
    for verb in ("create", "run", "start", "state", "kill", "delete", "exec", "ps", "events"):
        done = cli(verb)
        assert done.returncode in (1, 255)
        assert "needed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint", "c"], "checkpoint and restore are not supported"),
        (["restore", "--image-path", "/x", "c"], "checkpoint and restore are not supported"),
        (["nonesuch"], "no such command"),
        (["list", "--nonesuch"], "flag provided but not defined: -nonesuch"),
        (["list", "-f"], "flag needs an argument: -f"),
        (["list", "-f", "xml"], "unknown format"),
        (["kill", "c", "NOSUCH"], "unknown signal 'NOSUCH'"),
        (["kill", "c", "0"], "unknown signal '0'"),
        (["--log-format", "xml", "list"], "unknown log-format"),
    ],
)
def test_what_is_not_supported_is_said(cli: CLI, arguments: list[str], message: str) -> None:
    done = cli(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_rootless_is_accepted(cli: CLI) -> None:
    assert cli.ok("--rootless=false", "list", "-q") == ""


def test_flags_are_read_as_go_does(cli: CLI) -> None:
    bundle = cli.bundle(["echo", "ran"])
    for given in (["-bundle", str(bundle)], [f"-bundle={bundle}"], [f"--b={bundle}"]):
        assert cli.ok("run", *given, "--keep=false", "c") == "ran\n"


@pytest.mark.parametrize("verb", ["", "create", "run", "exec", "kill", "list", "events"])
def test_help_names_the_flags(cli: CLI, verb: str) -> None:
    text = cli.ok(*filter(None, [verb]), "--help")
    assert text.startswith("usage: runtimeshim")


def test_fds_are_preserved_on_demand_only(cli: CLI) -> None:
    ours, theirs = os.pipe()
    script = "ls /proc/self/fd | tr '\\n' ' '; echo kept >&3"
    bundle = cli.bundle(["sh", "-c", script])
    command = cli.command("run", "--preserve-fds", "1", "-b", bundle, "c")
    # In the child theirs is 3; one that is not asked for is 4.
    wrapper = f'exec 3>&{theirs} 4>&{theirs}; exec "$@"'
    done = subprocess.run(
        ["bash", "-c", wrapper, "bash", *command],
        pass_fds=[theirs],
        capture_output=True,
        text=True,
        check=True,
    )
    os.close(theirs)
    with open(ours) as pipe:
        assert pipe.read() == "kept\n"
    assert done.stdout.split() == ["0", "1", "2", "3", "4"]  # 4 is that of ls itself


def test_fds_that_are_not_there_cannot_be_preserved(cli: CLI) -> None:
    done = cli("run", "--preserve-fds", "1", "-b", cli.bundle(["true"]), "c", close_fds=True)
    assert done.returncode == 1
    assert "fd 3, one of 1 to preserve, is not open" in done.stderr


@pytest.mark.parametrize(("meant", "seen"), [("$$", "1 1 yes"), ("1", "no")])
def test_sockets_of_systemd_are_handed_on(cli: CLI, meant: str, seen: str) -> None:
    script = "echo $LISTEN_FDS $LISTEN_PID $([ -e /proc/self/fd/3 ] && echo yes || echo no)"
    command = cli.command("run", "-b", cli.bundle(["sh", "-c", script]), "c")
    activate = f'export LISTEN_FDS=1 LISTEN_PID={meant}; exec 3>/dev/null; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", activate, "sh", *command], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == (f"{seen}\n", "")


def test_a_terminal_in_the_foreground_is_passed_through(cli: CLI) -> None:
    bundle = cli.bundle(
        ["sh", "-c", "tty; stty size; read line; echo got $line; exit 4"], terminal=True
    )
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x16\x00\x43\x00\x00\x00\x00\x00")
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        cli.command("run", "-b", bundle, "c"), stdin=slave, stdout=slave, stderr=slave
    )
    os.write(master, b"typed\n")
    assert process.wait() == 4
    assert termios.tcgetattr(slave) == before  # and not raw any more
    os.close(slave)
    shown = read_all(master)
    for line in ("/dev/pts/0", "22 67", "got typed"):
        assert f"{line}\r\n" in shown


async def test_nobody_stays_behind_a_created_container(cli: CLI) -> None:
    cli.created(SLEEP)
    init = cli.state()["pid"]
    status = Path(f"/proc/{init}/status").read_text()
    parent = int(status.split("PPid:\t")[1].split()[0])
    assert "runtimeshim" not in Path(f"/proc/{parent}/cmdline").read_text()


def test_the_init_that_waits_holds_nothing_of_the_host(cli: CLI) -> None:
    cli.created(SLEEP)
    init = cli.state()["pid"]
    targets = [os.readlink(path) for path in Path(f"/proc/{init}/fd").iterdir()]
    fifos = [str(cli.root / "c" / name) for name in ("start.fifo", "outcome.fifo")]
    output = str(cli.directory / "c.out")
    assert sorted(targets) == sorted([*fifos, "/dev/null", output, output])


def test_the_hosts_interpreter_is_out_of_reach(tmp_path: Path) -> None:
    """CVE-2019-5736: what an init's /proc/self/exe is cannot be written to, now or later."""
    with installed_apart(tmp_path) as program:
        cli = CLI(tmp_path, program)
        interpreter = program.parent / "python3"
        before = hashlib.sha256(interpreter.read_bytes()).digest()
        for _ in range(2):  # by the mount that the first command makes
            cli.created(SLEEP)
            exe = Path(f"/proc/{cli.state()['pid']}/exe")
            assert exe.readlink() == Path(f"{sealed.INTERPRETERS}{interpreter}")
            held = os.open(exe, os.O_RDONLY)
            cli.ok("kill", "c", "KILL")
            cli.ok("delete", "-f", "c")
            with pytest.raises(OSError, match="Read-only file system"):  # nobody runs it now
                os.write(os.open(f"/proc/self/fd/{held}", os.O_WRONLY), b"#!/bin/evil")
            os.close(held)
        assert hashlib.sha256(interpreter.read_bytes()).digest() == before
        cli.close()


def test_a_replaced_interpreter_is_the_one_that_runs(tmp_path: Path) -> None:
    """By an update of its package: what is mounted is the old one, until the next command."""
    with installed_apart(tmp_path) as program:
        cli = CLI(tmp_path, program)
        interpreter = program.parent / "python3"
        cli.ok("run", "-b", cli.bundle(["true"]), "c")
        new = Path(shutil.copy(interpreter, f"{interpreter}.new"))
        new.write_bytes(new.read_bytes() + b"\n")  # it is executed all the same
        new.rename(interpreter)
        cli.created(SLEEP)
        exe = Path(f"/proc/{cli.state()['pid']}/exe")
        assert exe.readlink() == Path(f"{sealed.INTERPRETERS}{interpreter}")
        assert exe.read_bytes() == interpreter.read_bytes()
        cli.close()


def test_a_cgroup_of_v1_takes_a_thread_that_joins_itself(cli: CLI) -> None:
    """All of its controllers: the container can be frozen, counted and limited as a whole."""
    cli.started(SLEEP)
    pid = cli.state()["pid"]
    for directory in harness.cgroup_dirs(cli.cgroup_of("c")):
        assert (directory / "cgroup.procs").read_text().split() == [str(pid)]


def test_without_pivot_root_the_root_is_the_containers(cli: CLI) -> None:
    (cli.layer / "mark").write_text("inside\n")
    assert cli.ok("run", "--no-pivot", "-b", cli.bundle(["cat", "/mark"]), "c") == "inside\n"


@pytest.mark.parametrize(("flag", "shared"), [([], False), (["--no-new-keyring"], True)])
def test_keys_of_the_caller_are_the_containers_on_demand(
    cli: CLI, flag: list[str], shared: bool
) -> None:
    # Another user sees a keyring of root only when it has it.
    spec = cli.spec(["grep", "-c", "_crtest", "/proc/keys"], user={"uid": 1000, "gid": 1000})
    spec["linux"]["maskedPaths"] = []
    command = cli.command("run", *flag, "-b", cli.write(spec), "c")
    in_session = (
        "import sys, os; from runtimeshim.linux import syscalls;"
        "syscalls.join_session_keyring('_crtest'); os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", in_session, *command], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("1\n" if shared else "0\n", "")


def test_hooks_run_in_the_process_that_they_belong_to(cli: CLI) -> None:
    trace = cli.directory / "trace"
    script = f"cat >> {trace}; echo >> {trace}"
    spec = cli.spec(SLEEP)
    spec["hooks"] = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", script]}]
        for kind in ("createRuntime", "poststart", "poststop")
    }
    cli.launch(cli.write(spec))
    assert statuses(trace) == ["creating"]
    cli.ok("start", "c")
    assert statuses(trace) == ["creating", "running"]
    cli.ok("delete", "-f", "c")
    assert statuses(trace) == ["creating", "running", "stopped"]


def statuses(trace: Path) -> list[str]:
    return [json.loads(line)["status"] for line in trace.read_text().splitlines()]


def test_a_poststart_hook_that_fails_ends_the_container(cli: CLI) -> None:
    spec = cli.spec(SLEEP)
    spec["hooks"] = {"poststart": [{"path": "/bin/false"}]}
    cli.launch(cli.write(spec))
    done = cli("start", "c")
    assert done.returncode == 1
    assert "hooks.poststart[0]" in done.stderr
    assert cli.state()["status"] == "stopped"


def test_signals_are_at_their_defaults_inside(cli: CLI) -> None:
    done = cli.ok("run", "-b", cli.bundle(["grep", "^Sig[IB]", "/proc/self/status"]), "c")
    assert [line.split()[1] for line in done.splitlines()] == ["0" * 16] * 2
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN  # though CPython ignores it

"""`criserver exec` and `criserver logs`."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.cri import api_pb2 as cri
from tests.integration import images
from tests.integration.cli import SECONDS, Cli, end, read_until
from tests.integration.daemon import Daemon, wait_for
from tests.integration.registry import Registry

IMAGE = "registry.test/cli-busybox:latest"


@pytest.fixture
def cli(registry: Registry, daemon: Daemon) -> Iterator[Cli]:
    images.push(registry.address, "cli-busybox", images.busybox())
    made = Cli(daemon)
    made("pull", IMAGE)
    yield made
    made("rm", "--all", "--force")


@pytest.fixture
def web(cli: Cli) -> str:
    """The id of a running container named web."""
    return cli.output(
        "run",
        "-d",
        "--name",
        "web",
        "-e",
        "A=1",
        "-w",
        "/tmp",
        "-u",
        "1000",
        IMAGE,
        "sleep",
        "1000",
    ).strip()


def test_exec(cli: Cli, web: str) -> None:
    result = cli("exec", "web", "sh", "-c", "echo $A; pwd; id -u; echo err >&2; exit 7")
    assert (result.returncode, result.stdout, result.stderr) == (7, b"1\n/tmp\n1000\n", b"err\n")

    data = os.urandom(8 << 20)
    echoed = cli("exec", "-i", web[:12], "cat", stdin=data).stdout
    assert hashlib.sha256(echoed).digest() == hashlib.sha256(data).digest()

    for arguments, exit_code in (
        (("web", "/nonexistent"), 127),
        (("web", "/etc/passwd"), 126),
        (("nope", "true"), 125),
    ):
        result = cli("exec", *arguments)
        assert (result.returncode, result.stderr.count(b"\n")) == (exit_code, 1), result

    cli.output("stop", "-t", "0", "web")
    result = cli("exec", "web", "true")
    assert result.returncode == 125 and b"EXITED" in result.stderr


def test_a_terminal(cli: Cli, web: str) -> None:
    with cli.at_terminal("exec", "-it", "web", "sh", width=101, height=37) as terminal:
        terminal.type("stty size; echo end$((1+1))\n")
        assert "37 101" in terminal.expect("\nend2")
        terminal.resize(77, 22)
        terminal.type(
            "while [ \"$(stty size)\" != '22 77' ]; do sleep 0.05; done; echo re$((1+1))\n"
        )
        terminal.expect("\nre2")
        terminal.type("\x04")
        assert terminal.wait() == 0


@pytest.mark.parametrize("terminal", [False, True])
def test_a_client_that_is_killed_ends_its_command(cli: Cli, web: str, terminal: bool) -> None:
    script = "echo up; sleep 1001 & sleep 1001"
    running = "ps | grep '[s]leep 1001'"
    if terminal:
        with cli.at_terminal("exec", "-it", "web", "sh", "-c", script, width=1, height=1) as shown:
            shown.expect("up")
            shown.process.kill()
            shown.process.wait()
    else:
        with cli.started("exec", "web", "sh", "-c", script) as process:
            read_until(process, b"up\n")
            process.kill()
    wait_for(lambda: cli("exec", "web", "sh", "-c", running).returncode == 1, "the command's end")


def test_signals_are_passed_on(cli: Cli, web: str) -> None:
    script = "trap 'exit 5' INT; echo up; while :; do sleep 0.05; done"
    with cli.started("exec", "web", "sh", "-c", script) as process:
        read_until(process, b"up\n")
        assert end(process, signal.SIGINT) == 5


def test_logs(cli: Cli) -> None:
    script = "echo one; echo two >&2; printf three"
    cli("run", "--name", "c", IMAGE, "sh", "-c", script)
    result = cli("logs", "c")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"one\nthree", b"two\n")
    stamped = cli("logs", "-t", "c").stdout.splitlines()
    assert [line.split(b" ", 1)[1] for line in stamped] == [b"one", b"three"]
    cli("run", "--name", "d", IMAGE, "sh", "-c", "echo one; printf two")
    assert cli.output("logs", "--tail", "1", "d") == "two"  # two streams have no order
    assert cli("logs", "nope").returncode == 1


def test_following_a_log_through_rotation_and_a_daemons_death(cli: Cli, daemon: Daemon) -> None:
    script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; usleep 10000; done"
    container = cli.output("run", "-d", "--name", "c", IMAGE, "sh", "-c", script).strip()
    request = cri.ContainerStatusRequest(container_id=container)
    log = Path(daemon.runtime.ContainerStatus(request).status.log_path)
    with cli.started("logs", "-f", "c") as process:
        received = read_until(process, b"\n50\n")
        log.rename(log.with_suffix(".old"))
        daemon.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container))
        received += read_until(process, b"\n100\n")
        daemon.kill9()
        received += read_until(process, b"\n200\n")
        daemon.start()
        assert process.stdout is not None
        received += process.stdout.read()
        assert process.wait(SECONDS) == 0
    assert received.split() == [str(number).encode() for number in range(1, 301)]


def test_a_foreground_container_outlives_the_daemon_and_its_client_says_so(
    cli: Cli, daemon: Daemon
) -> None:
    script = "echo up; while [ ! -e /go ]; do sleep 0.05; done; exit 3"
    with cli.started("run", "--rm", "--name", "c", IMAGE, "sh", "-c", script) as process:
        read_until(process, b"up\n")
        daemon.kill9()
        assert process.wait(SECONDS) == 125
        assert process.stderr is not None
        message = process.stderr.read().decode()
    assert "lost sight of container c, which runs on" in message and message.count("\n") == 1
    assert "`criserver logs -f c`, and `criserver rm -f c`" in message
    daemon.start()
    cli.output("exec", "c", "touch", "/go")
    assert cli.output("logs", "-f", "c") == "up\n"
    assert "Exited (3)" in cli.output("ps", "-a")

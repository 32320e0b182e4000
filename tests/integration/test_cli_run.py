"""`criserver run`: output, input, exit codes, signals, terminals, settings; nothing is left."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import images
from tests.integration.cli import SECONDS, Cli, end, read_until
from tests.integration.daemon import Daemon, wait_for
from tests.integration.registry import Registry

IMAGE = "registry.test/cli-busybox:latest"


@pytest.fixture(scope="module")
def pulled(registry: Registry, module_daemon: Daemon) -> Cli:
    images.push(registry.address, "cli-busybox", images.busybox())
    made = Cli(module_daemon)
    made.output("pull", "--quiet", IMAGE)
    return made


@pytest.fixture
def cli(pulled: Cli) -> Iterator[Cli]:
    """A client whose containers, pods and logs are gone afterwards, by its own rm."""
    yield pulled
    pulled("rm", "--all", "--force")
    assert pulled.output("ps", "-aq") == ""
    assert list(pulled.logs.glob("*")) == []


def test_run_pulls_what_is_missing_and_prints_what_the_container_prints(
    registry: Registry, cli: Cli
) -> None:
    images.push(registry.address, "cli-missing", images.busybox(), "1")
    result = cli("run", "--rm", "registry.test/cli-missing:1", "echo", "hello")
    assert (result.returncode, result.stdout) == (0, b"hello\n")
    assert result.stderr == b"criserver run: pulling registry.test/cli-missing:1\n"
    assert cli.output("ps", "-aq") == ""


def test_the_streams_are_kept_apart_and_the_exit_code_is_the_containers(cli: Cli) -> None:
    result = cli("run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.returncode, result.stdout, result.stderr) == (7, b"out\n", b"err\n")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ((IMAGE, "/nonexistent"), 127, "/nonexistent"),
        ((IMAGE, "nonexistent"), 127, "nonexistent"),
        ((IMAGE, "/etc/passwd"), 126, "/etc/passwd"),
        (("registry.test/not-there:1",), 125, "cannot pull registry.test/not-there:1"),
        (("--pull=never", "registry.test/not-there:1"), 125, "--pull=never"),
        (("--user", "nobodysuch", IMAGE, "id"), 125, "nobodysuch"),
    ],
)
def test_what_cannot_run_has_dockers_exit_code_one_line_and_leaves_nothing(
    cli: Cli, arguments: tuple[str, ...], exit_code: int, message: str
) -> None:
    result = cli("run", *arguments)
    lines = [line for line in result.stderr.decode().splitlines() if ": pulling " not in line]
    assert (result.returncode, len(lines)) == (exit_code, 1), result
    assert message in lines[0]
    assert cli.output("ps", "-aq") == ""


def test_without_rm_the_container_stays_with_its_log(cli: Cli) -> None:
    assert cli("run", "--name", "kept", IMAGE, "sh", "-c", "echo a; exit 3").returncode == 3
    (header, row) = cli.output("ps", "-a").splitlines()
    assert header.split() == ["CONTAINER", "ID", "IMAGE", "CREATED", "STATUS", "NAME", "POD"]
    assert "Exited (3)" in row and IMAGE in row and row.split()[-2:] == ["kept", "kept"]
    assert cli.output("ps") == "CONTAINER ID  IMAGE  CREATED  STATUS  NAME  POD\n"
    assert cli.output("logs", "kept") == "a\n"
    result = cli("run", "--name", "kept", IMAGE, "true")
    assert result.returncode == 125 and b"in use" in result.stderr
    assert cli.output("rm", "kept") == "kept\n"


def test_detached(cli: Cli) -> None:
    container = cli.output("run", "-d", "--name", "web", IMAGE, "sleep", "1000").strip()
    assert cli.output("ps", "-q").split() == [container]
    assert " Up " in cli.output("ps")
    refused = cli("rm", "web")
    assert refused.returncode == 1 and b"is running" in refused.stderr
    assert cli.output("stop", "-t", "0", container[:12]) == f"{container[:12]}\n"
    assert "Exited (137)" in cli.output("ps", "-a")
    assert cli.output("rm", container) == f"{container}\n"


def test_megabytes_go_in_and_out_and_the_end_of_input_arrives(cli: Cli) -> None:
    data = os.urandom(8 << 20)
    result = cli("run", "--rm", "-i", IMAGE, "cat", stdin=data)
    assert result.returncode == 0
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()


def test_without_i_the_container_has_no_input(cli: Cli) -> None:
    assert cli.output("run", "--rm", IMAGE, "cat", stdin=b"not passed on") == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_are_passed_on(cli: Cli, number: int) -> None:
    script = f"trap 'echo got; exit 5' {number}; echo up; while :; do sleep 0.05; done"
    with cli.started("run", "--rm", IMAGE, "sh", "-c", script) as process:
        read_until(process, b"up\n")
        assert end(process, number) == 5
        assert process.stdout is not None and process.stdout.read() == b"got\n"


def test_the_third_interrupt_gives_up_on_a_container_that_ignores_them(cli: Cli) -> None:
    command = (
        "run",
        "--rm",
        IMAGE,
        "sh",
        "-c",
        "trap 'echo no' INT; echo up; while :; do sleep 0.05; done",
    )
    with cli.started(*command) as process:
        read_until(process, b"up\n")
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            read_until(process, b"no\n")
        assert end(process, signal.SIGINT) == 125
        assert process.stderr is not None and b"is removed" in process.stderr.read()
    assert cli.output("ps", "-aq") == ""


def test_a_reader_that_has_had_enough_ends_it(cli: Cli) -> None:
    with cli.started("run", "--rm", IMAGE, "yes") as process:
        read_until(process, b"y\n")
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(SECONDS) == 141
    assert cli.output("ps", "-aq") == ""


def test_a_client_that_is_killed_leaves_its_container_running(cli: Cli) -> None:
    with cli.started(
        "run", "--name", "orphan", IMAGE, "sh", "-c", "echo up; sleep 1000"
    ) as process:
        read_until(process, b"up\n")
        process.kill()
    assert " Up " in cli.output("ps")
    assert cli.output("rm", "-f", "orphan") == "orphan\n"


def test_a_terminal(cli: Cli) -> None:
    with cli.at_terminal("run", "-it", "--rm", IMAGE, "sh", width=101, height=37) as terminal:
        terminal.type("stty size; tty; echo end$((1+1))\n")
        shown = terminal.expect("\nend2")
        assert ("37 101" in shown and "/dev/pts/0" in shown) or "/dev/console" in shown
        terminal.resize(77, 22)
        terminal.type(
            "while [ \"$(stty size)\" != '22 77' ]; do sleep 0.05; done; echo re$((1+1))\n"
        )
        terminal.expect("\nre2")
        # The line comes from the process that is to be interrupted: it is in the foreground then.
        terminal.type("sh -c 'echo sleep$((1+1)); exec sleep 1000'\n")
        terminal.expect("\nsleep2")
        terminal.type("\x03")
        terminal.type("echo awake$((1+1))\n")
        terminal.expect("\nawake2")
        terminal.type("exit 9\n")
        assert terminal.wait() == 9


def test_a_terminal_needs_one_here(cli: Cli) -> None:
    result = cli("run", "-it", "--rm", IMAGE, "sh")
    assert result.returncode == 125 and b"needs a terminal" in result.stderr


def test_settings_reach_the_container(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mounted\n")
    tmp_path.chmod(0o755)
    script = (
        "echo $A $B; cat /data/f; touch /data/f 2>/dev/null && echo writable;"
        " pwd; id -u; id -g; hostname"
    )
    cli.environment["B"] = "two"
    output = cli.output(
        "run", "--rm", "-e", "A=1", "-e", "B", "-v", f"{tmp_path}:/data:ro", "-w", "/tmp",
        "-u", "1000:2000", "--hostname", "host1", "--entrypoint", "sh", IMAGE, "-c", script,
    )  # fmt: skip
    assert output.split("\n") == ["1 two", "mounted", "/tmp", "1000", "2000", "host1", ""]


def test_out_of_memory_is_said(cli: Cli) -> None:
    hog = "x=a; while :; do x=$x$x; done"
    result = cli("run", "--rm", "-m", "32m", IMAGE, "sh", "-c", hog)
    assert result.returncode == 137
    assert b"out of memory" in result.stderr


def test_a_published_port(cli: Cli) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = "mkdir /w; echo served >/w/f; exec httpd -f -h /w"
    cli.output("run", "-d", "--name", "web", "-p", f"{port}:80", IMAGE, "sh", "-c", server)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/f", timeout=SECONDS) as answer:
                return bool(answer.read() == b"served\n")
        except OSError:
            return False

    wait_for(answers, "an answer through the host port")


def test_the_hosts_network(cli: Cli) -> None:
    namespace = cli.output(
        "run", "--rm", "--network", "host", IMAGE, "readlink", "/proc/self/ns/net"
    )
    assert namespace.strip() == os.readlink("/proc/self/ns/net")
    namespace = cli.output("run", "--rm", IMAGE, "readlink", "/proc/self/ns/net")
    assert namespace.strip() != os.readlink("/proc/self/ns/net")


def test_the_quick_start_image_can_be_imported_and_run(cli: Cli, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    name = "registry.test/made-here:1"
    subprocess.run(
        ["hack/busybox-archive", archive, name], check=True, cwd=Path(__file__).parents[2]
    )
    assert cli.output("image", "import", str(archive)) == f"{name}\n"
    assert cli.output("run", "--rm", name, "echo", "hello") == "hello\n"
    assert cli.output("rmi", name) == f"{name}\n"
    refused = cli("rmi", name)
    assert refused.returncode == 1 and b"no image" in refused.stderr

"""`criserver attach, inspect, pods, stats, top, events, cp, port-forward` on real containers."""

from __future__ import annotations

import json
import os
import re
import select
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
HTTPD = "httpd -f -p 127.0.0.1:8080 -h /www"
SERVER = f"mkdir /www; echo served > /www/index.html; exec {HTTPD}"


@pytest.fixture(scope="module")
def pulled(registry: Registry, module_daemon: Daemon) -> Cli:
    images.push(registry.address, "cli-busybox", images.busybox())
    made = Cli(module_daemon)
    made.output("pull", "--quiet", IMAGE)
    return made


@pytest.fixture
def cli(pulled: Cli) -> Iterator[Cli]:
    yield pulled
    pulled("rm", "--all", "--force")


@pytest.fixture
def web(cli: Cli) -> str:
    """The id of a running container named web, in a pod of that name."""
    run = ("run", "-d", "--name", "web", "-m", "64m", IMAGE, "sh", "-c", SERVER)
    container = cli.output(*run).strip()
    wait_for(lambda: cli.output("top", "web").endswith(f" {HTTPD}\n"), "the server")
    return container


def test_inspect_prints_containers_and_pods(cli: Cli, web: str) -> None:
    container, pod = json.loads(cli.output("inspect", web[:12], "web"))[0], None
    assert (container["kind"], container["status"]["id"]) == ("container", web)
    assert Path("/proc", str(container["info"]["info"]["pid"])).exists()
    pod_id = cli.output("pods", "-q").strip()
    (pod,) = json.loads(cli.output("inspect", pod_id))
    assert (pod["kind"], pod["status"]["id"]) == ("pod", pod_id)
    result = cli("inspect", "nope")
    assert result.returncode == 1 and b"no pod 'nope'" in result.stderr


def test_pods_are_listed(cli: Cli, web: str) -> None:
    header, row = cli.output("pods").splitlines()
    assert header.split()[:4] == ["POD", "ID", "NAMESPACE", "NAME"]
    assert " web " in row and " Ready " in row and re.search(r" 10\.\d+\.\d+\.\d+", row)
    assert cli.output("pods", "--namespace", "elsewhere").count("\n") == 1
    cli.output("stop", "-t", "0", "web")
    assert cli.output("pods").count("\n") == 1
    assert " Stopped" in cli.output("pods", "-a")


def test_top_needs_no_ps_in_the_container(cli: Cli, web: str) -> None:
    header, first = cli.output("top", "web").splitlines()
    assert header.split()[:3] == ["PID", "IN", "CONTAINER"]
    pid, inner, _parent, user, *_ = first.split()
    assert (inner, user) == ("1", "0") and Path("/proc", pid).exists()
    assert first.endswith(f" {HTTPD}")
    cli.output("stop", "-t", "0", "web")
    assert b"does not run" in cli("top", "web").stderr


def test_stats_are_printed_once_or_live(cli: Cli, web: str) -> None:
    header, row = cli.output("stats", "--no-stream", "--interval", "0.2", "web").splitlines()
    assert header.startswith("CONTAINER ID")
    assert re.search(r"^[0-9a-f]{13} +web +web +\d+\.\d% +\S+B / 67\.1MB +\d", row), row
    with cli.at_terminal("stats", "--interval", "0.1", width=120, height=30) as shown:
        shown.expect(web[:12])
        shown.expect(web[:12])
        shown.type("\x03")
        assert shown.wait() == 130
    assert cli("stats", "nope").returncode == 1
    assert b"must be from" in cli("stats", "--interval", "0").stderr


def test_events_tell_of_a_container_from_beginning_to_end(cli: Cli, web: str) -> None:
    with cli.started("events") as process, cli.started("events", "--json") as machine:
        outputs = [process.stdout, machine.stdout]
        while len(select.select(outputs, [], [], 0)[0]) < 2:  # then both listen
            assert cli("run", "--rm", IMAGE, "true").returncode == 0
        ended = cli("run", "--rm", "--name", "second", IMAGE, "sh", "-c", "exit 3")
        assert ended.returncode == 3
        printed = b""
        while not re.search(rb"deleted pod \w{13} default/second\n", printed):
            printed += read_until(process, b"\n")
        assert end(process, signal.SIGINT) == 130
        messages = read_until(machine, b'"name": "second"').splitlines()
        assert end(machine, signal.SIGINT) == 130
    told = [
        re.sub(r"^\S+ (\w+ \w+) \w{13} \S+?/", r"\1 ", line)
        for line in printed.decode().splitlines()
    ]
    assert [line for line in told if "second" in line] == [
        "created pod second",
        "started pod second",
        "created container second/second",
        "started container second/second",
        "stopped container second/second (3, Error)",
        "stopped pod second",
        "deleted pod second",
    ]
    assert {"container_id", "container_event_type"} <= set(json.loads(messages[0]))


def test_files_are_copied_both_ways(cli: Cli, web: str, tmp_path: Path) -> None:
    data = os.urandom(5 << 20)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/data").write_bytes(data)
    (tmp_path / "in/run").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "in/run").chmod(0o755)
    cli.output("cp", str(tmp_path / "in"), "web:/tmp")
    assert cli.output("exec", "web", "/tmp/in/run") == "ran\n"
    assert cli.output("exec", "web", "stat", "-c", "%u %a", "/tmp/in/run") == "0 755\n"
    cli.output("cp", "web:/tmp/in/data", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data
    cli.output("cp", "web:/tmp/in/.", str(tmp_path))
    assert (tmp_path / "data").read_bytes() == data

    # What the container says is its own matter, and never leads out of it.
    cli.output("exec", "web", "ln", "-s", f"/../../..{tmp_path}/in/data", "/tmp/out")
    result = cli("cp", "web:/tmp/out", str(tmp_path / "stolen"))
    assert result.returncode == 1 and result.stderr.count(b"\n") == 1
    assert not (tmp_path / "stolen").exists()

    result = cli("cp", "web:/dev", str(tmp_path / "dev"))
    assert result.returncode == 1 and b"/dev/null is left out: it is a device" in result.stderr
    for arguments in (("a", "b"), ("web:a", "web:b")):
        assert b"one of SOURCE and TARGET" in cli("cp", *arguments).stderr


def test_ports_are_forwarded(cli: Cli, web: str) -> None:
    with cli.started("port-forward", "web", ":8080", ":9090") as process:
        lines = read_until(process, b"-> 9090\n").decode().splitlines()
        ports = [int(re.fullmatch(r"127\.0\.0\.1:(\d+) -> \d+", line)[1]) for line in lines]
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/", timeout=SECONDS) as answer:
                assert answer.read() == b"served\n"
        with socket.create_connection(("127.0.0.1", ports[1]), SECONDS) as connection:
            assert connection.recv(10) == b""  # nobody listens: told here, and it goes on
        assert end(process, signal.SIGINT) == 130
        assert process.stderr is not None
        assert b"port 9090: " in process.stderr.read()


def test_attach_joins_and_leaves(cli: Cli) -> None:
    cli.output("run", "-dit", "--name", "shell", IMAGE, "sh")
    with cli.at_terminal("attach", "-i", "shell", width=91, height=31) as terminal:
        terminal.type("stty size; echo at$((1+1))\n")
        assert "31 91" in terminal.expect("\nat2")
        terminal.type("\x10\x11")
        assert terminal.wait() == 0
    with cli.at_terminal("attach", "-i", "shell", width=91, height=31) as terminal:
        terminal.type("exit 4\n")
        assert terminal.wait() == 4
    result = cli("attach", "shell")
    assert result.returncode == 125 and b"EXITED" in result.stderr


def test_names_are_completed(cli: Cli, web: str) -> None:
    for line, expected in (
        ("criserver exec w", "web\n"),
        ("criserver port-forward we", "web\n"),
        ("criserver run registry.test/cli-b", IMAGE + "\n"),
    ):
        assert cli.output("completion", "--line", line, "zsh") == expected
    rest = cli.output("completion", "--line", f"criserver rmi {IMAGE[:-4]}", "bash")
    assert rest == "latest\n"
    subprocess.run(["bash", "-n"], input=cli.output("completion", "bash").encode(), check=True)

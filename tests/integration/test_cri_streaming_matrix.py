"""Execs over both transports: stdin x terminal x 10 MB each way x early exit x client vanishing."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from tests.integration.daemon import wait_for
from tests.integration.pods import Pods
from tests.integration.stream_clients import Command
from tests.integration.stream_commands import (
    ALL,
    OUT,
    TERMINAL,
    Opener,
    exec_url,
    processes,
    writing,
)

MUCH = os.urandom(10_000_000)


@pytest.fixture(scope="module")
def container(pods: Pods) -> Iterator[str]:
    pod = pods.run_pod()
    yield pods.run(pod, "sleep", "3600")
    pods.remove_pod(pod)


@pytest.fixture
def run(pods: Pods, container: str, opener: Opener) -> Callable[..., Command]:
    def start(script: str, streams: str = OUT, *, tty: bool = False) -> Command:
        url = exec_url(pods, container, "sh", "-c", script, streams=streams, tty=tty)
        return opener(url, *streams.split())

    return start


def test_output_and_exit_code(run: Callable[..., Command]) -> None:
    command = run("echo out; echo err >&2; exit 7")
    assert command.exit_code() == 7
    assert (command.output(), command.output("stderr")) == (b"out\n", b"err\n")


def test_success_is_said(run: Callable[..., Command]) -> None:
    assert run("true").status() == {"metadata": {}, "status": "Success"}


def test_10_mb_each_way(run: Callable[..., Command]) -> None:
    command = run("cat", ALL)
    thread = writing(command, MUCH)
    assert command.exit_code() == 0
    thread.join()
    assert command.output() == MUCH


def test_10_mb_in_and_10_mb_out_of_both(run: Callable[..., Command]) -> None:
    script = "sha256sum; head -c 10000000 /dev/zero; head -c 10000000 /dev/zero >&2"
    command = run(script, ALL)
    writing(command, MUCH).join()
    assert command.exit_code() == 0
    assert command.output().startswith(hashlib.sha256(MUCH).hexdigest().encode())
    assert len(command.output()) == 10_000_000 + 68
    assert command.output("stderr") == bytes(10_000_000)


def test_a_terminal_with_stdin(run: Callable[..., Command]) -> None:
    until = 'while [ "$(stty size 2>&1)" != "33 99" ]; do sleep 0.1; done'
    script = f"stty -echo; echo ready; {until}; stty size; cat; exit 4"
    command = run(script, TERMINAL, tty=True)
    command.until_output(b"ready\r\n")
    command.resize(99, 33)
    command.resize(0, 0)  # ignored
    command.until_output(b"33 99\r\n")
    command.write(b"typed\n")
    command.end_stdin()  # the end-of-file key
    assert command.exit_code() == 4
    assert command.output() == b"ready\r\n33 99\r\ntyped\r\n"


def test_10_mb_out_of_a_terminal_without_stdin(run: Callable[..., Command]) -> None:
    script = "stty -onlcr; head -c 10000000 /dev/zero | tr '\\0' x; exit 3"
    command = run(script, "stdout resize", tty=True)
    assert command.exit_code() == 3
    assert command.output() == b"x" * 10_000_000


def test_10_mb_into_a_terminal(run: Callable[..., Command]) -> None:
    script = "stty raw -echo; echo ready; head -c 10000000 | sha256sum"
    command = run(script, TERMINAL, tty=True)
    command.until_output(b"ready")
    thread = writing(command, MUCH)
    assert command.exit_code() == 0
    thread.join()
    assert hashlib.sha256(MUCH).hexdigest().encode() in command.output()


@pytest.mark.parametrize("tty", [False, True])
def test_an_exit_before_the_input_is_read(run: Callable[..., Command], tty: bool) -> None:
    command = run("echo out; exit 5", TERMINAL if tty else ALL, tty=tty)
    thread = writing(command, b"no key that kills\n" * 600_000)
    assert command.exit_code() == 5
    assert b"out" in command.output()
    thread.join()


@pytest.mark.parametrize("tty", [False, True])
def test_a_client_that_vanishes_takes_its_command_along(
    run: Callable[..., Command], tty: bool
) -> None:
    name = f"sleep {1_000_000 + os.getpid()}"
    command = run(f"echo up; {name}", TERMINAL if tty else ALL, tty=tty)
    command.until_output(b"up")
    assert processes(name)
    command.vanish()
    wait_for(lambda: not processes(name), "the end of the command")


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("stdin", [False, True])
def test_much_each_way_at_once_and_an_exit_in_the_middle_of_it(
    run: Callable[..., Command], stdin: bool, tty: bool
) -> None:
    """What was written before the exit arrives, whatever the client still sends."""
    raw = "stty raw -echo; " if tty else ""
    reads = "head -c 1000000 >/dev/null; " if stdin else ""
    script = f"{raw}echo ready; {reads}head -c 10000000 /dev/zero; exit 9"
    command = run(script, _streams(stdin, tty), tty=tty)
    command.until_output(b"ready")
    thread = writing(command, MUCH) if stdin else None
    assert command.exit_code() == 9
    assert command.output().endswith(bytes(10_000_000))
    if thread is not None:
        thread.join()


def _streams(stdin: bool, tty: bool) -> str:
    names = ["stdin"] if stdin else []
    return " ".join([*names, "stdout", "resize" if tty else "stderr"])


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("stdin", [False, True])
def test_a_client_that_vanishes_in_the_middle_of_much(
    run: Callable[..., Command], stdin: bool, tty: bool
) -> None:
    name = f"yes {3_000_000 + os.getpid()}"
    command = run(f"exec {name}", _streams(stdin, tty), tty=tty)
    command.until_output(b"\n" if not tty else b"\r\n")
    assert processes(name)
    command.vanish()
    wait_for(lambda: not processes(name), "the end of the command")


def test_a_client_that_vanishes_while_nothing_is_read(run: Callable[..., Command]) -> None:
    name = f"sleep {2_000_000 + os.getpid()}"
    command = run(f"echo up; exec {name}", ALL)
    command.until_output(b"up")
    command.fill_stdin(MUCH + MUCH)  # stays in the sockets, and the end of file behind it
    command.vanish()
    wait_for(lambda: not processes(name), "the end of the command")


def test_a_command_that_does_not_read_does_not_hold_up_its_terminals_size(
    run: Callable[..., Command],
) -> None:
    command = run("trap 'stty size; exit 6' WINCH; echo up; while :; do sleep 0.1; done", TERMINAL,
                  tty=True)  # fmt: skip
    command.until_output(b"up")
    command.write(b"x" * 200_000)
    command.resize(50, 40)
    command.until_output(b"40 50")
    assert command.exit_code() == 6


def test_output_waits_for_a_slow_client(pods: Pods, container: str) -> None:
    url = exec_url(pods, container, "sh", "-c", "seq 1 5000000; echo end >&2", streams=OUT)
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as slow:
        slow.sendall(
            f"GET {parts.path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            .encode()
        )  # fmt: skip
        wait_for(lambda: processes("echo end >&2"), "the command")
        data = bytearray()
        while piece := slow.recv(1 << 20):
            data += piece
    assert b"\n5000000\n" in data[-1000:]
    assert len(data) > 38_888_896
    assert b"end\n" in data


def test_what_a_command_leaves_behind_does_not_keep_its_streams(
    run: Callable[..., Command],
) -> None:
    command = run("sleep 3602 & echo done; exit 3")
    assert command.exit_code() == 3
    assert command.output() == b"done\n"


def test_a_command_that_is_not_there(pods: Pods, container: str, opener: Opener) -> None:
    command = opener(exec_url(pods, container, "/no/such", streams=OUT), *OUT.split())
    status = command.status()
    assert (status["status"], status["reason"], status["code"]) == ("Failure", "InternalError", 500)
    assert "/no/such" in status["message"]


def test_a_container_that_ends_before_the_client_comes(pods: Pods, opener: Opener) -> None:
    pod = pods.run_pod()
    container = pods.run(pod, "sleep", "3600")
    url = exec_url(pods, container, "true", streams=OUT)
    pods.stop(container)
    assert "EXITED" in opener(url, *OUT.split()).status()["message"]
    pods.remove_pod(pod)


def test_a_container_that_is_stopped_ends_its_execs(pods: Pods, opener: Opener) -> None:
    pod = pods.run_pod()
    container = pods.run(pod, "sleep", "3600")
    command = opener(exec_url(pods, container, "sh", "-c", "echo up; sleep 3600", streams=OUT),
                     *OUT.split())  # fmt: skip
    command.until_output(b"up")
    pods.stop(container)
    assert command.exit_code() == 137
    pods.remove_pod(pod)

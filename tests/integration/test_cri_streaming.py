"""Exec and attach as clients of the CRI have them: over SPDY and WebSocket, to the last byte."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from api.cri import api_pb2 as cri
from tests.integration.daemon import RPC_SECONDS, wait_for
from tests.integration.pods import Pods, refused
from tests.integration.stream_clients import (
    V4,
    Refused,
    Spdy,
    WebSocket,
    client_frame,
    spdy_command,
    websocket_command,
)
from tests.integration.stream_commands import (
    ALL,
    OUT,
    TERMINAL,
    Opener,
    attach_url,
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


# --- versions ---


@pytest.mark.parametrize("protocol", ["channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io"])
def test_before_v4_the_status_is_text(pods: Pods, container: str, protocol: str) -> None:
    for opener in (spdy_command, websocket_command):
        for code, said in (
            (0, b""),
            (9, b"command terminated with non-zero exit code: exit code 9"),
        ):
            url = exec_url(pods, container, "sh", "-c", f"echo out; exit {code}", streams=OUT)
            command = opener(url, *OUT.split(), protocol=protocol)
            command.client.until_over()
            assert (command.output(), command.output("error")) == (b"out\n", said)
            assert command.client.protocol == protocol


@pytest.mark.parametrize("protocol", ["v4.base64.channel.k8s.io", "base64.channel.k8s.io"])
def test_base64(pods: Pods, container: str, protocol: str) -> None:
    script = "head -c 10000 | sha256sum; head -c 1000000 /dev/zero"
    url = exec_url(pods, container, "sh", "-c", script, streams=ALL)
    command = websocket_command(url, protocol=protocol)
    command.write(MUCH[:10_000])
    command.client.until_over()
    assert command.output()[:64] == hashlib.sha256(MUCH[:10_000]).hexdigest().encode()
    assert command.output()[68:] == bytes(1_000_000)
    assert command.client.closed == (1000, "")


def test_a_websocket_begins_with_an_empty_message(pods: Pods, container: str) -> None:
    for streams, first in (("stdout stderr", b"\1"), ("stderr", b"\2"), ("stdin", b"\3")):
        url = exec_url(pods, container, "sleep", "0.1", streams=streams)
        command = websocket_command(url, protocol=V4)
        command.client.until_over()
        assert command.client.first_message == first  # type: ignore[union-attr]


def test_versions_in_the_clients_order(pods: Pods, container: str) -> None:
    offered = "v5.channel.k8s.io, v4.channel.k8s.io, v3.channel.k8s.io"
    url = exec_url(pods, container, "true", streams=OUT)
    client = Spdy(url, offered)
    assert client.protocol == V4
    client.hang_up()


def test_pings_are_answered(pods: Pods, container: str) -> None:
    url = exec_url(pods, container, "cat", streams=ALL)
    spdy = spdy_command(url, *ALL.split())
    spdy.client.control(6, b"\0\0\0\1")  # type: ignore[union-attr]
    spdy.client.until(lambda: spdy.client.pongs == [b"\0\0\0\1"])
    spdy.vanish()
    socket_ = websocket_command(exec_url(pods, container, "cat", streams=ALL))
    socket_.client.frame(9, b"hello")  # type: ignore[union-attr]
    socket_.client.until(lambda: socket_.client.pongs == [b"hello"])
    socket_.vanish()


# --- URLs ---


def test_a_url_is_good_once(pods: Pods, container: str) -> None:
    url = exec_url(pods, container, "true", streams=OUT)
    assert spdy_command(url, *OUT.split()).exit_code() == 0
    for again in (url, url.replace("/exec/", "/attach/"), f"{url}x"):
        with pytest.raises(Refused) as caught:
            Spdy(again, V4)
        assert caught.value.status == 404


def test_a_url_outlives_a_refused_upgrade(pods: Pods, container: str) -> None:
    url = exec_url(pods, container, "true", streams=OUT)
    with pytest.raises(Refused) as caught:
        WebSocket(url, "v9.channel.k8s.io")
    assert caught.value.status == 403
    assert b"v5.channel.k8s.io" in caught.value.body
    with pytest.raises(Refused) as caught:
        Spdy(url, "v9")
    assert "X-Accepted-Stream-Protocol-Versions: v4.channel.k8s.io" in caught.value.headers
    assert spdy_command(url, *OUT.split()).exit_code() == 0


def test_what_the_rpcs_refuse(pods: Pods, container: str) -> None:
    runtime = pods.daemon.runtime
    for rpc, message in ((runtime.Exec, cri.ExecRequest), (runtime.Attach, cri.AttachRequest)):
        extra = {"cmd": ["true"]} if message is cri.ExecRequest else {}
        both = message(container_id=container, tty=True, stderr=True, **extra)
        assert "tty and stderr" in refused("INVALID_ARGUMENT", rpc, both, timeout=RPC_SECONDS)
        none = message(container_id=container, **extra)
        assert "stdin, stdout and stderr" in refused("INVALID_ARGUMENT", rpc, none)
        refused("INVALID_ARGUMENT", rpc, message(stdout=True, **extra))
        refused("NOT_FOUND", rpc, message(container_id="f" * 64, stdout=True, **extra))
    empty = cri.ExecRequest(container_id=container, stdout=True)
    assert "empty" in refused("INVALID_ARGUMENT", runtime.Exec, empty)


# --- attach ---


def test_an_attach_before_the_start_misses_nothing(pods: Pods, pod: str, opener: Opener) -> None:
    script = "seq 1 200000; echo err >&2; exit 6"
    container = pods.create(pod, "sh", "-c", script)
    command = opener(attach_url(pods, container, streams=OUT), *OUT.split())
    wait_for(lambda: attached(pods, container), "the attach")
    pods.start(container)
    assert command.status()["status"] == "Success"
    assert command.output().split() == [b"%d" % n for n in range(1, 200_001)]
    assert command.output("stderr") == b"err\n"


def attached(pods: Pods, container: str) -> bool:
    """Whether the daemon holds the streams of an attach: that is in its log at level debug."""
    return f"attach to container {container}: open" in pods.daemon.log.read_text()


def test_10_mb_through_an_attach_with_stdin_once(pods: Pods, pod: str, opener: Opener) -> None:
    container = pods.create(pod, "cat", stdin=True, stdin_once=True)
    pods.start(container)
    command = opener(attach_url(pods, container, streams=ALL), *ALL.split())
    thread = writing(command, MUCH)
    assert command.status()["status"] == "Success"
    thread.join()
    assert command.output() == MUCH
    assert pods.exited(container).exit_code == 0


def test_the_end_of_the_input_detaches_where_stdin_stays_open(
    pods: Pods, pod: str, opener: Opener
) -> None:
    container = pods.run(pod, "sh", "-c", "while read x; do echo got $x; done", stdin=True)
    for word in (b"one", b"two"):
        command = opener(attach_url(pods, container, streams=ALL), *ALL.split())
        command.write(word + b"\n")
        command.until_output(b"got " + word)
        command.end_stdin()
        assert command.status()["status"] == "Success"
    assert pods.status(container).state == cri.CONTAINER_RUNNING


def test_a_container_without_stdin_is_watched_to_its_end(
    pods: Pods, pod: str, opener: Opener
) -> None:
    container = pods.run(pod, "sh", "-c", "sleep 2; echo done")
    command = opener(attach_url(pods, container, streams=ALL), *ALL.split())
    command.end_stdin()
    assert command.status()["status"] == "Success"
    assert command.output() == b"done\n"


def test_a_terminal_is_attached_resized_and_left(pods: Pods, pod: str, opener: Opener) -> None:
    container = pods.run(pod, "sh", stdin=True, tty=True)
    command = opener(attach_url(pods, container, streams=TERMINAL, tty=True), *TERMINAL.split())
    command.resize(77, 55)
    command.write(b"stty size\n")
    command.until_output(b"55 77\r\n")
    command.vanish()
    assert pods.status(container).state == cri.CONTAINER_RUNNING
    again = opener(attach_url(pods, container, streams=TERMINAL, tty=True), *TERMINAL.split())
    again.write(b"exit 3\n")
    assert again.status()["status"] == "Success"
    assert pods.exited(container).exit_code == 3


# --- bad input ---


def alive(pods: Pods, container: str) -> bool:
    url = exec_url(pods, container, "true", streams=OUT)
    return spdy_command(url, *OUT.split()).exit_code() == 0


def open_files(pods: Pods) -> int:
    return len(os.listdir(f"/proc/{pods.daemon.pid}/fd"))


def test_broken_frames_end_their_connection_alone(pods: Pods, container: str) -> None:
    name = f"sleep {3_000_000 + os.getpid()}"
    before = open_files(pods)
    for garbage in (b"\x80\x03\x00\x06\x00\x00\x00\x01\x00", b"\x00\x00\x00\x63" + bytes(4)):
        url = exec_url(pods, container, *name.split(), streams=ALL)
        spdy = spdy_command(url, *ALL.split())
        spdy.client.send(garbage)  # type: ignore[union-attr]
        spdy.client.until_over()
        assert spdy.client.closed in (0, 1)
    for garbage in (client_frame(3, b"x"), b"\x82\x01x", client_frame(2, b"\xff\x00\x00")):
        url = exec_url(pods, container, *name.split(), streams=ALL)
        websocket = websocket_command(url)
        websocket.client.connection.sock.sendall(garbage)
        websocket.client.until_over()
        assert websocket.client.closed[0] in (1002, 1007)
    wait_for(lambda: not processes(name), "the end of the commands")
    wait_for(lambda: open_files(pods) <= before, "files to be closed")
    assert alive(pods, container)
    assert "Traceback" not in pods.daemon.log.read_text()


def test_half_open_connections_by_the_thousand(pods: Pods, container: str) -> None:
    before = open_files(pods)
    parts = urlsplit(exec_url(pods, container, "true", streams=OUT))
    opened = []
    for number in range(2000):
        sock = socket.create_connection((parts.hostname, parts.port))
        sock.sendall(b"GET /exec/ HTTP/1.1\r\nX-Half:"[: number % 30])
        opened.append(sock)
    assert alive(pods, container)
    for sock in opened:
        sock.close()
    wait_for(lambda: open_files(pods) <= before + 2, "files to be closed")


@pytest.mark.parametrize("request_", [b"\0" * 20_000, b"GET " + b"x" * 100_000, b"\r\n" * 9000])
def test_what_is_no_http(pods: Pods, container: str, request_: bytes) -> None:
    parts = urlsplit(exec_url(pods, container, "true", streams=OUT))
    with socket.create_connection((parts.hostname, parts.port)) as sock:
        sock.settimeout(RPC_SECONDS)
        sock.sendall(request_)
        sock.shutdown(socket.SHUT_WR)
        answer = sock.recv(100)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert alive(pods, container)

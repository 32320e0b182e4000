"""The streaming server itself: TLS, timeouts, the daemon's stop and restart."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from api.cri import api_pb2 as cri
from tests.integration import leaks
from tests.integration.daemon import RPC_SECONDS, Daemon, wait_for
from tests.integration.pods import Pods
from tests.integration.registry import Registry
from tests.integration.stream_clients import (
    V4,
    Refused,
    Spdy,
    Tunnel,
    spdy_command,
    websocket_command,
)
from tests.integration.stream_commands import ALL, OUT, attach_url, exec_url, processes


def settings(daemon: Daemon, text: str) -> None:
    with daemon.config.open("a") as file:
        file.write(f"[streaming]\n{text}\n")


def pods_of(daemon: Daemon, registry: Registry) -> tuple[Pods, str]:
    """A started daemon's pods, and a container that sleeps."""
    daemon.start()
    pods = Pods(daemon)
    pods.pull(registry)
    return pods, pods.run(pods.run_pod(), "sleep", "3600")


def make_certificate(directory: Path, name: str) -> None:
    """Write directory/tls.crt and tls.key as an operator's tool does: to the side, then renamed."""
    for kind in ("crt", "key"):
        (directory / f"new.{kind}").unlink(missing_ok=True)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-batch",
         "-subj", f"/CN={name}", "-days", "1",
         "-out", str(directory / "new.crt"), "-keyout", str(directory / "new.key")],
        check=True, capture_output=True, timeout=RPC_SECONDS,
    )  # fmt: skip
    for kind in ("key", "crt"):
        (directory / f"new.{kind}").rename(directory / f"tls.{kind}")


def common_name(url: str) -> str:
    parts = urlsplit(url)
    assert parts.hostname is not None
    pem = ssl.get_server_certificate((parts.hostname, parts.port or 0), timeout=RPC_SECONDS)
    command = ["openssl", "x509", "-noout", "-subject", "-nameopt", "sep_multiline"]
    said = subprocess.run(
        command, input=pem, text=True, capture_output=True, check=True, timeout=RPC_SECONDS
    )
    return said.stdout.strip().partition("CN=")[2]


def test_tls_with_a_certificate_of_our_own(
    make_daemon: Callable[[], Daemon], registry: Registry
) -> None:
    daemon = make_daemon()
    settings(daemon, "tls = true")
    pods, container = pods_of(daemon, registry)
    for opener in (spdy_command, websocket_command):
        url = exec_url(pods, container, "cat", streams=ALL)
        assert url.startswith("https://127.0.0.1:")
        command = opener(url, *ALL.split())
        command.write(data := os.urandom(1_000_000))
        command.end_stdin()
        assert command.exit_code() == 0
        assert command.output() == data
    assert common_name(url) == "criserver"
    assert (daemon.run_dir / "streaming.key").stat().st_mode & 0o777 == 0o600


def test_a_given_certificate_is_read_again_when_it_changes(
    make_daemon: Callable[[], Daemon], registry: Registry, tmp_path: Path
) -> None:
    daemon = make_daemon()
    paths = f'tls_cert_file = "{tmp_path}/tls.crt"\ntls_key_file = "{tmp_path}/tls.key"'
    settings(daemon, f"tls = true\n{paths}")
    make_certificate(tmp_path, "first")
    pods, container = pods_of(daemon, registry)
    url = exec_url(pods, container, "true", streams=OUT)
    assert common_name(url) == "first"
    (tmp_path / "tls.crt").write_text("half a file")
    assert common_name(url) == "first"
    make_certificate(tmp_path, "second")
    assert common_name(url) == "second"
    assert spdy_command(url, *OUT.split()).exit_code() == 0


def test_a_certificate_that_cannot_be_used_is_said_at_the_start(
    make_daemon: Callable[[], Daemon], tmp_path: Path
) -> None:
    daemon = make_daemon()
    settings(daemon, f'tls = true\ntls_cert_file = "{tmp_path}/no"\ntls_key_file = "{tmp_path}/no"')
    with pytest.raises(AssertionError, match=f"{tmp_path}/no"):
        daemon.start()


def test_no_tls_is_spoken_without_being_asked(daemon: Daemon, registry: Registry) -> None:
    pods = Pods(daemon)
    pods.pull(registry)
    container = pods.run(pods.run_pod(), "sleep", "3600")
    parts = urlsplit(exec_url(pods, container, "true", streams=OUT))
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((parts.hostname, parts.port), RPC_SECONDS) as sock,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(sock)


def test_idle_streams_end_with_their_reason(
    make_daemon: Callable[[], Daemon], registry: Registry
) -> None:
    daemon = make_daemon()
    settings(daemon, "idle_timeout_seconds = 1.5")
    pods, container = pods_of(daemon, registry)
    name = f"sleep {4_000_000 + os.getpid()}"
    for opener in (spdy_command, websocket_command):
        command = opener(exec_url(pods, container, *name.split(), streams=ALL), *ALL.split())
        assert "idle for 1.5 s" in command.status()["message"]
    assert command.client.closed[0] == 1001
    wait_for(lambda: not processes(name), "the end of the commands")
    # What is not idle goes on.
    url = exec_url(pods, container, "sh", "-c", "for n in 1 2 3 4 5; do sleep 0.7; echo; done",
                   streams=OUT)  # fmt: skip
    assert spdy_command(url, *OUT.split()).exit_code() == 0


def test_a_port_is_taken_from_the_settings(
    make_daemon: Callable[[], Daemon], registry: Registry
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = make_daemon()
        settings(daemon, f'address = "0.0.0.0"\nport = {port}')
        with pytest.raises(AssertionError, match="address already in use"):
            daemon.start()
    pods, container = pods_of(daemon, registry)
    url = exec_url(pods, container, "true", streams=OUT)
    assert url.startswith(f"http://127.0.0.1:{port}/exec/")
    assert spdy_command(url, *OUT.split()).exit_code() == 0


def test_open_streams_end_with_the_reason_when_the_daemon_stops(
    daemon: Daemon, registry: Registry
) -> None:
    pods = Pods(daemon)
    pods.pull(registry)
    pod = pods.run_pod()
    container = pods.run(pod, "sh", "-c", "while read x; do echo got $x; done", stdin=True)
    commands = []
    for opener in (spdy_command, websocket_command):
        attached = opener(attach_url(pods, container, streams=ALL), *ALL.split())
        attached.write(b"one\n")
        attached.until_output(b"got one")
        execed = opener(exec_url(pods, container, "sh", "-c", "echo up; sleep 3603", streams=OUT),
                        *OUT.split())  # fmt: skip
        execed.until_output(b"up")
        commands += [attached, execed]
    request = cri.PortForwardRequest(pod_sandbox_id=pod)
    forward = Spdy(
        daemon.runtime.PortForward(request, timeout=RPC_SECONDS).url, "portforward.k8s.io"
    )
    tunnel = Tunnel(daemon.runtime.PortForward(request, timeout=RPC_SECONDS).url)
    tunnelled = Spdy("", "", connection=tunnel)
    daemon.stop()
    for command in commands:
        assert "criserver is stopping" in command.status()["message"]
        assert command.client.closed in (0, (1001, "criserver is stopping"))
    forward.until_over()
    tunnelled.until_over()
    assert (forward.closed, tunnel.closed) == (0, (1001, "criserver is stopping"))
    daemon.start()
    assert pods.status(container).state == cri.CONTAINER_RUNNING
    again = spdy_command(attach_url(pods, container, streams=ALL), *ALL.split())
    again.write(b"two\n")
    again.until_output(b"got two")
    again.vanish()


def test_a_url_does_not_outlive_its_daemon_nor_do_streams(
    daemon: Daemon, registry: Registry
) -> None:
    pods = Pods(daemon)
    pods.pull(registry)
    container = pods.run(pods.run_pod(), "sleep", "3600")
    name = f"sleep {5_000_000 + os.getpid()}"
    command = spdy_command(
        exec_url(pods, container, "sh", "-c", f"echo up; exec {name}", streams=OUT), *OUT.split()
    )
    command.until_output(b"up")
    path = urlsplit(exec_url(pods, container, "true", streams=OUT)).path
    daemon.kill9()
    command.client.until_over()
    daemon.start()
    fresh = urlsplit(exec_url(pods, container, "true", streams=OUT))
    with pytest.raises(Refused) as caught:
        Spdy(f"http://{fresh.netloc}{path}", V4)
    assert caught.value.status == 404
    for pid, running in leaks.session_processes().items():
        if running.endswith(name):  # without its daemon an exec goes on, as with the peers
            os.kill(pid, signal.SIGKILL)

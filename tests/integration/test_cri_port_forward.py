"""Port-forward over SPDY, over SPDY in a WebSocket, and over WebSocket's channels."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.cri import api_pb2 as cri
from tests.integration import pod_server
from tests.integration.daemon import RPC_SECONDS, Daemon, wait_for
from tests.integration.pods import Pods, refused
from tests.integration.stream_clients import Refused, Spdy, Tunnel, WebSocket

MUCH = os.urandom(10_000_000)
CLOSED_PORT = 4

Opener = Callable[[str], Spdy]


def over_spdy(url: str) -> Spdy:
    return Spdy(url, "portforward.k8s.io")


def over_websocket(url: str) -> Spdy:
    return Spdy(url, "", connection=Tunnel(url))


class Forwarded:
    """One connection through a port-forward, as client-go makes it."""

    _number = 0

    def __init__(self, client: Spdy, port: int | str, *, with_id: bool = True) -> None:
        Forwarded._number += 1
        headers = {"port": str(port)}
        if with_id:
            headers["requestid"] = str(Forwarded._number)
        self.client = client
        self.error = client.open(streamtype="error", **headers)
        client.end(self.error)
        self.stream = client.open(streamtype="data", **headers)

    def write(self, data: bytes) -> None:
        self.client.write(self.stream, data)

    def end(self) -> None:
        self.client.end(self.stream)

    @property
    def data(self) -> bytes:
        return self.client.data(self.stream)

    def until(self, data: bytes) -> None:
        self.client.until(lambda: self.data == data, f"{data[:99]!r}")

    def until_ended(self) -> None:
        self.client.until(lambda: self.stream in self.client.ended, "the end of the stream")

    def until_reset(self) -> str:
        """Wait for the reset; what the error stream has said."""
        self.client.until(lambda: self.stream in self.client.resets, "the reset of the stream")
        self.client.until(lambda: self.error in self.client.ended, "the end of the error stream")
        return self.client.data(self.error).decode()


@pytest.fixture(scope="module")
def pods(module_daemon: Daemon) -> Pods:
    return Pods(module_daemon)


@pytest.fixture(scope="module")
def pod(pods: Pods) -> Iterator[str]:
    """A pod with a network of its own, and in it the servers of pod_server."""
    config = pods.config(linux=cri.LinuxPodSandboxConfig())
    config.port_mappings.add(container_port=53, protocol=cri.UDP)
    made = pods.run_pod(config)
    netns = pods.daemon.run_dir / "sandboxes" / made / "ns/net"
    command = ["nsenter", f"--net={netns}", sys.executable, str(Path(pod_server.__file__))]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    yield made
    server.stdin.close()
    server.stdout.close()
    server.wait(RPC_SECONDS)
    pods.remove_pod(made)


def url(pods: Pods, pod: str, *ports: int) -> str:
    request = cri.PortForwardRequest(pod_sandbox_id=pod, port=ports)
    return str(pods.daemon.runtime.PortForward(request, timeout=RPC_SECONDS).url)


@pytest.fixture(params=[over_spdy, over_websocket])
def client(request: pytest.FixtureRequest, pods: Pods, pod: str) -> Iterator[Spdy]:
    made = request.param(url(pods, pod))
    yield made
    made.hang_up()


def test_10_mb_each_way(client: Spdy) -> None:
    forwarded = Forwarded(client, pod_server.ECHO)
    thread = threading.Thread(target=lambda: (forwarded.write(MUCH), forwarded.end()))
    thread.start()
    forwarded.until_ended()
    thread.join()
    assert forwarded.data == MUCH


def test_a_half_close_goes_through(client: Spdy) -> None:
    forwarded = Forwarded(client, pod_server.SINK)
    forwarded.write(MUCH)
    forwarded.end()
    forwarded.until(b"%d" % len(MUCH))
    forwarded.until_ended()


def test_the_pods_end_goes_through(client: Spdy) -> None:
    forwarded = Forwarded(client, pod_server.SOURCE)
    forwarded.until_ended()
    assert forwarded.data == bytes(pod_server.SOURCE_BYTES)


def test_what_listens_on_ipv6_alone_is_reached(client: Spdy) -> None:
    forwarded = Forwarded(client, pod_server.SIX)
    forwarded.write(b"six")
    forwarded.until(b"six")


def test_many_connections_at_once(client: Spdy) -> None:
    several = [Forwarded(client, pod_server.ECHO) for _ in range(50)]
    for number, forwarded in enumerate(several):
        forwarded.write(b"%d" % number)
    for number, forwarded in enumerate(several):
        forwarded.until(b"%d" % number)
        forwarded.end()
        forwarded.until_ended()


def test_a_reset_ends_its_connection_alone(client: Spdy) -> None:
    lasting = Forwarded(client, pod_server.ECHO)
    lasting.write(b"before ")
    lasting.until(b"before ")
    for _ in range(3):
        forwarded = Forwarded(client, pod_server.RESETTING)
        forwarded.until(b"hello")
        forwarded.write(b"x")
        # Any text on the error stream would have client-go close everything.
        assert forwarded.until_reset() == ""
    lasting.write(b"after")
    lasting.until(b"before after")


def test_the_clients_reset_ends_its_connection_alone(client: Spdy) -> None:
    lasting = Forwarded(client, pod_server.ECHO)
    forwarded = Forwarded(client, pod_server.ECHO)
    client.reset(forwarded.stream)
    client.until(lambda: forwarded.error in client.ended)
    lasting.write(b"still here")
    lasting.until(b"still here")


def test_a_refused_connection_says_why_and_ends_alone(client: Spdy) -> None:
    said = Forwarded(client, CLOSED_PORT).until_reset()
    assert "port 4 at the pod's localhost" in said
    assert "127.0.0.1: Connection refused, ::1: Connection refused" in said
    forwarded = Forwarded(client, pod_server.ECHO)
    forwarded.write(b"x")
    forwarded.until(b"x")


@pytest.mark.parametrize("port", ["53", "53/udp"])
def test_udp_is_refused_clearly(client: Spdy, port: str) -> None:
    assert "port-forward carries TCP only" in Forwarded(client, port).until_reset()


@pytest.mark.parametrize("port", ["0", "65536", "http", ""])
def test_what_is_no_port(client: Spdy, port: str) -> None:
    assert "is not a TCP port" in Forwarded(client, port).until_reset()


def test_the_last_words_of_a_pod_that_does_not_read_arrive(client: Spdy) -> None:
    forwarded = Forwarded(client, pod_server.LAST_WORDS)
    forwarded.write(b"x" * 100_000)
    forwarded.until(b"enough")
    forwarded.end()


def test_streams_that_say_nothing_sensible_are_refused(client: Spdy) -> None:
    for headers in ({"streamtype": "stdin", "port": "7"}, {"port": "7"}, {}):
        stream = client.open(**headers)
        client.until(lambda stream=stream: stream in client.resets)
    forwarded = Forwarded(client, pod_server.ECHO, with_id=False)
    forwarded.write(b"an old client, without request ids")
    forwarded.until(b"an old client, without request ids")


def test_pings_are_answered_while_nothing_else_happens(client: Spdy) -> None:
    client.control(6, b"\0\0\0\1")
    client.until(lambda: client.pongs == [b"\0\0\0\1"])


def test_the_clients_end_closes_what_is_open_in_the_pod(pods: Pods, pod: str) -> None:
    before = open_files(pods)
    for opener in (over_spdy, over_websocket):
        client = opener(url(pods, pod))
        for port in (pod_server.ECHO, pod_server.SILENT):
            Forwarded(client, port).write(b"x" * 100_000)
        client.hang_up()
    wait_for(lambda: open_files(pods) <= before, "files to be closed")


def open_files(pods: Pods) -> int:
    return len(os.listdir(f"/proc/{pods.daemon.pid}/fd"))


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""])
def test_websocket_channels(pods: Pods, pod: str, protocol: str) -> None:
    ports = (pod_server.ECHO, CLOSED_PORT, pod_server.SOURCE)
    client = WebSocket(url(pods, pod, *ports), protocol)
    client.write(0, MUCH[:100_000])
    client.until(lambda: len(client.data(0)) == 100_002, "the echo")
    assert client.data(0) == pod_server.ECHO.to_bytes(2, "little") + MUCH[:100_000]
    client.until(lambda: b"Connection refused" in client.data(3), "the refusal")
    assert client.data(3)[:2] == CLOSED_PORT.to_bytes(2, "little")
    client.until(lambda: len(client.data(4)) == 2 + pod_server.SOURCE_BYTES, "the source")
    assert client.data(1) == client.data(0)[:2]
    client.hang_up()


def test_websocket_channels_end_with_the_last_of_the_pods(pods: Pods, pod: str) -> None:
    client = WebSocket(f"{url(pods, pod)}?port={pod_server.SOURCE}", "v4.channel.k8s.io")
    client.until_over()
    assert len(client.data(0)) == 2 + pod_server.SOURCE_BYTES
    assert client.closed == (1000, "")


def test_websocket_channels_need_ports(pods: Pods, pod: str) -> None:
    with pytest.raises(Refused) as caught:
        WebSocket(url(pods, pod), "v4.channel.k8s.io")
    assert caught.value.status == 400
    assert b"port" in caught.value.body


def test_a_pod_on_the_hosts_network(pods: Pods) -> None:
    pod = pods.run_pod()
    command = [sys.executable, "-c", HOST_SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        client = over_spdy(url(pods, pod))
        Forwarded(client, port).until(b"the host's")
        client.hang_up()
    pods.remove_pod(pod)


HOST_SERVER = """
import socket
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    sock, _ = listener.accept()
    with sock:
        sock.sendall(b"the host's")
        sock.recv(1)
"""


def test_what_the_rpc_refuses(pods: Pods, pod: str) -> None:
    def call(pod: str, *ports: int) -> None:
        request = cri.PortForwardRequest(pod_sandbox_id=pod, port=ports)
        pods.daemon.runtime.PortForward(request, timeout=RPC_SECONDS)

    refused("INVALID_ARGUMENT", call, "")
    refused("NOT_FOUND", call, "f" * 64)
    refused("INVALID_ARGUMENT", call, pod, 0)
    refused("INVALID_ARGUMENT", call, pod, 70000)
    assert "TCP only" in refused("INVALID_ARGUMENT", call, pod, 53)
    stopped = pods.run_pod()
    client = over_spdy(url(pods, stopped))
    pods.stop_pod(stopped)
    refused("FAILED_PRECONDITION", call, stopped)
    assert "not ready" in Forwarded(client, 7).until_reset()
    client.hang_up()
    pods.remove_pod(stopped)
